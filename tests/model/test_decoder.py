"""The decoder sees what is written and its own segment of the source, alike by steps and in one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import V, pack, params_of

from model.backbone import backbone
from model.config import sized
from model.decoder import decoder
from objectives.types import Objective

TOY = dict(V=V, D=8, heads=2, F=12, layers=2, max_length=64)
KINDS = {
    "bert": dict(TOY, scan=True),
    "t5": dict(
        TOY, position="none", relative="bias", norm_at="pre", norm="rms", embed_norm=False, mlp="geglu", types=0
    ),
    "modern": dict(TOY, position="rope", norm_at="pre", qk_norm=True, types=0, pattern=("global", "local"), window=8),
    "albert": dict(TOY, embed_width=6, share=2),
}
SOURCE, TARGET = pack([[0, 1], [2, 3]], 40, 2), pack([[1, 4], [5, 0]], 36, 2)


def made(kind: str, layers: int | None = None):
    """(decoder, its params, the backbone's, memory); all wide as if trained."""
    bb = backbone(sized("tiny", **KINDS[kind]))
    d = decoder(bb.config, layers=layers)
    params = jax.device_put(params_of(bb, Objective("writer", dict, dict, d.init, d.axes)))
    memory = np.random.default_rng(1).standard_normal((2, 40, 8)).astype(np.float32)
    return d, params["writer"], params["backbone"], memory


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen(kind):
    """No token that comes later, none of another segment, in the target nor in the source."""
    d, params, base, memory = made(kind)
    decode = jax.jit(lambda target, memory: d.decode(params, base, target, SOURCE, memory))
    target = {k: TARGET[k] for k in ("tokens", "segments", "positions", "example")}
    want = np.array(decode(target, memory))
    place = 6
    other = dict(target, tokens=target["tokens"].copy())
    other["tokens"][:, place] = 9
    got = np.array(decode(other, memory))
    mine = (target["segments"] == target["segments"][:, place : place + 1]) & (np.arange(36) >= place)
    there = target["segments"] > 0
    np.testing.assert_array_equal(got[there & ~mine], want[there & ~mine])
    assert (abs(got - want)[mine].max(-1) > 1e-4).all()
    got = np.array(decode(target, memory + (SOURCE["segments"] == 1)[..., None] * np.arange(8, dtype=np.float32)))
    mine = target["segments"] == 1
    np.testing.assert_array_equal(got[there & ~mine], want[there & ~mine])
    assert (abs(got - want)[mine].max(-1) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_whole_pass(kind):
    """Three texts a row written side by side, two of them reading the same segment, and exchanged half way."""
    d, params, base, memory = made(kind, layers=3)
    segments = np.array([[1, 2, 2], [2, 1, 1]], np.int32)
    tokens = np.random.default_rng(2).integers(5, V, (2, 3, 7)).astype(np.int32)
    order = np.array([[0, 2, 1], [0, 1, 1]])

    @jax.jit
    def by_steps(tokens):
        cache, step = d.start(params, base, SOURCE, memory, segments, 9)
        out = []
        for i in range(7):
            hidden, cache = step(tokens[:, :, i], cache)
            out.append(hidden)
            if i == 3:
                cache = cache.take(order)
        return jnp.stack(out, 2)

    @jax.jit
    def whole(tokens, segments):  # a text is a row
        target = dict(
            tokens=tokens, segments=jnp.repeat(segments[:, None], 7, 1), example=jnp.zeros((2, 2, 2), jnp.uint32),
            positions=jnp.repeat(jnp.arange(7, dtype=jnp.int32)[None], 2, 0),
        )  # fmt: skip
        return d.decode(params, base, target, SOURCE, memory)

    rows = np.arange(2)[:, None]
    before = np.stack([whole(tokens[:, q], segments[:, q]) for q in range(3)], 1)
    np.testing.assert_allclose(by_steps(tokens)[:, :, :4], before[:, :, :4], atol=2e-5, rtol=1e-4)
    mixed = np.concatenate([tokens[rows, order][:, :, :4], tokens[:, :, 4:]], 2)
    after = np.stack([whole(mixed[:, q], segments[:, q]) for q in range(3)], 1)
    np.testing.assert_allclose(by_steps(tokens)[:, :, 4:], after[:, :, 4:], atol=2e-5, rtol=1e-4)


def test_depth():
    with pytest.raises(ValueError, match="decoder layers=0 must be at least 1, or None for the encoder's 2"):
        made("bert", 0)
    assert decoder(sized("tiny", V=V, D=8, heads=2, F=12, layers=2, conv=3), layers=1)  # has no convolution
    assert made("albert", 3)[1]["layers"]["cross"]["qkv"]["kernel"].shape == (3, 8, 2, 3, 4)
