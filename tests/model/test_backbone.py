from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import V, pack, params_of

from model import ops, random
from model.backbone import backbone
from model.config import sized

TOY = dict(V=V, D=16, heads=4, F=32, max_length=64)
MODERN = dict(TOY, layers=5, window=8)


def value_and_gradient(size: str, base: dict, **how):
    """Of a loss over packed rows with dropout."""
    bb = backbone(sized(size, **base, **how, dropout=0.2, attention_dropout=0.2))
    batch = pack([[0, 1], [2, 3]], 40, 2)
    loss = lambda params: (bb.encode(params, batch, random.key(1)).hidden ** 2 * 0.1).sum()
    return jax.jit(jax.value_and_grad(loss))(params_of(bb))


@pytest.mark.parametrize("size, base", [("tiny", dict(TOY, conv=3, layers=3)), ("modern-base", MODERN)])
def test_scanned_unrolled_and_recomputed_are_one(size, base):
    """Five layers in a pattern of three: one period is scanned, two layers are left over."""
    want = value_and_gradient(size, base, scan=False)
    for remat in ("none", "dots", "full"):
        got = value_and_gradient(size, base, scan=True, remat=remat)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-4, err_msg=remat), got, want)


@pytest.mark.parametrize(
    "size, changes",
    [
        ("tiny", dict(scan=True, layers=3)),
        ("tiny", dict(relative="bias", norm_at="pre", embed_norm=False)),
        ("tiny", dict(relative="disentangled", buckets=8, distance=8)),
        ("tiny", dict(share=2, layers=4, embed_width=8, qk_norm=True)),
        ("tiny", dict(conv=3, layers=4, scan=True)),
        ("modern-base", dict(MODERN, conv=5, layers=2, scan=True)),
        ("modern-base", dict(MODERN, layers=4, scan=True, bias=True)),  # the last attends globally, by RoPE
        ("modern-base", dict(MODERN, layers=3)),  # the last attends by blocks
        ("modern-base", dict(MODERN, layers=3, window=64)),  # the last attends locally, in one block
    ],
)
def test_at_some_places_alone(size, changes):
    """Their states, and the gradients of a loss on them, are those that the whole has there."""
    bb = backbone(sized(size, **TOY | changes, dropout=0.2, attention_dropout=0.2))
    batch = pack([[0, 1], [2, 3]], 40, 2) | {"reach": np.full((2, 40), 11, np.int32)}
    at = np.array([[3, 0, 9, 21], [17, 17, 30, 2]], np.int32)
    weights = np.random.default_rng(0).normal(size=(2, 4, 16)).astype(np.float32)

    def loss(params, narrow: bool):
        encode = partial(bb.encode, params, batch, random.key(1))
        return ((encode(at=at).hidden if narrow else ops.pick(encode().hidden, at)) * weights).sum()

    params = params_of(bb)
    got, want = (jax.jit(jax.value_and_grad(partial(loss, narrow=n)))(params) for n in (True, False))
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-4), got, want)


def test_captures():
    bb = backbone(sized("modern-base", **MODERN))
    params = params_of(bb)
    batch = pack([[0, 1], [2, 3]], 40, 2)
    out = bb.encode(params, batch, capture=("hidden", "attention"))
    assert out.captured["hidden"].shape == (6, 2, 40, 16)
    assert out.captured["attention"].shape == (5, 2, 4, 40, 40)
    np.testing.assert_allclose(out.captured["attention"].sum(-1), 1, rtol=1e-5)
    # padding attends to nothing in particular, and that differs between blocks and the whole
    real = batch["segments"] > 0
    np.testing.assert_allclose(out.hidden[real], bb.encode(params, batch).hidden[real], atol=1e-5)
    with pytest.raises(ValueError, match="capture 'maps' is unknown"):
        bb.encode(params, batch, capture=("maps",))


def test_capture_of_the_mlp_is_what_a_layer_adds_where_its_attention_adds_nothing():
    bb = backbone(sized("modern-base", **MODERN))
    params = params_of(bb)
    out = params["layers"]["attention"]["out"]
    params["layers"]["attention"]["out"] = jax.tree.map(jnp.zeros_like, out)
    captured = bb.encode(params, pack([[0, 1], [2, 3]], 40, 2), capture=("hidden", "mlp")).captured
    assert captured["mlp"].shape == (5, 2, 40, 16)
    np.testing.assert_allclose(captured["mlp"], np.diff(captured["hidden"], axis=0), atol=1e-5)
    assert abs(captured["mlp"]).max() > 0.1


def test_types_of_a_model_that_has_one():
    """A table of one row is added to all tokens, whatever types a pair's have; its gradient is theirs."""
    bb = backbone(sized("tiny", **TOY, types=1, dropout=0.0, attention_dropout=0.0))
    params, batch = params_of(bb), pack([[0, 1], [2, 3]], 40, 2)
    loss = lambda params, batch: (bb.encode(params, batch).hidden[:, :, 0] ** 2).sum()
    untold = {k: v for k, v in batch.items() if k != "types"}
    got, want = (jax.grad(loss)(params, given)["embed"]["types"] for given in (batch, untold))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_a_row_may_be_longer_than_its_segments(position):
    """Than any text may be that it holds; a text that is too long is refused, or no number where nobody can refuse."""
    bb = backbone(sized("tiny", **TOY | dict(max_length=16, position=position, dropout=0.0, attention_dropout=0.0)))
    params = params_of(bb)
    long = pack([[0, 1, 2]], 80, 3)
    sizes = np.bincount(long["segments"][0])[1:4]
    cut = lambda n: {k: v[:, :n] if k != "example" else v for k, v in long.items()}
    assert sizes.max() <= 16 < sizes.sum()
    each = np.asarray(bb.encode(params, long).hidden)[:, : sizes[0]]
    np.testing.assert_allclose(each, bb.encode(params, cut(sizes[0])).hidden, atol=1e-5)
    assert np.isfinite(jax.jit(bb.encode)(params, long).hidden).all()
    short = backbone(sized("tiny", **TOY | dict(max_length=4, position=position)))
    with pytest.raises(ValueError, match=f"segments of {sizes.max()} tokens do not fit a backbone of max_length=4"):
        short.encode(params_of(short), long)
    assert np.isnan(jax.jit(short.encode)(params_of(short), long).hidden[:, : sizes.sum()]).any(-1).all()


def test_no_key_no_dropout():
    bb = backbone(sized("tiny", **TOY))
    params, batch = params_of(bb), pack([[0]], 20, 1)
    a, b = bb.encode(params, batch).hidden, bb.encode(params, batch).hidden
    c, d = bb.encode(params, batch, random.key(1)).hidden, bb.encode(params, batch, random.key(2)).hidden
    np.testing.assert_array_equal(a, b)
    assert abs(a - c).max() > 0.1
    assert abs(c - d).max() > 0.1


def test_cross_entropy_against_log_softmax():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((5, 7)) * 30, rng.integers(0, 7, 5)
    with jax.enable_x64(True):
        nll, hit = ops.cross_entropy(logits, labels)
        want = -jax.nn.log_softmax(logits)[np.arange(5), labels]
        np.testing.assert_allclose(nll, want, rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(hit, logits.argmax(-1) == labels)
        grad = jax.grad(lambda x: ops.cross_entropy(x, labels)[0] @ np.arange(5.0))(logits)
        wanted = jax.grad(lambda x: -jax.nn.log_softmax(x)[np.arange(5), labels] @ np.arange(5.0))(logits)
        np.testing.assert_allclose(grad, wanted, atol=1e-12)


def test_the_hits_of_labels_that_score_alike():
    """In bfloat16 the sum over all labels is 1 whatever is alike; nobody has a label that there is not."""
    logits = (np.random.default_rng(0).standard_normal((5000, 50)) * 3).astype(jnp.bfloat16)
    each = np.stack([ops.cross_entropy(logits, np.full(5000, label))[1] for label in range(50)], -1)
    np.testing.assert_allclose(each.sum(-1), 1, rtol=1e-6)
    assert 0 < (each.max(-1) < 1).mean() < 0.1
    for label in (-1, 50):
        assert np.isnan(ops.cross_entropy(logits, np.full(5000, label))[0]).all()


def test_dropout_is_unbiased_in_the_mean():
    x = np.ones((4000, 64), np.float32)
    y = random.dropout(x, 0.3, random.key(0), np.arange(4000, dtype=np.uint32))
    assert abs(float(y.mean()) - 1) < 0.01
