"""Masked diffusion against its closed form, and what it fills in."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SPECIAL, V, pack, params_of

from model import random
from model.backbone import backbone
from model.config import sized
from model.heads import mlm_head
from objectives import types
from objectives.diffusion import diffusion
from train import step as training


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=64, dropout=0.0, attention_dropout=0.0))


def test_the_loss_is_that_of_all_orders(bb, vocab):
    """Its expectation is the mean of -log p over all orders in which tokens could be predicted one after another
    (Hoogeboom et al. 2022, https://arxiv.org/abs/2110.02037): here of two tokens, by hand.
    """
    objective = diffusion(bb, vocab, least=1e-6)
    params = params_of(bb, objective)
    encode = partial(bb.encode, params["backbone"])
    a, b, mask, n = 7, 11, vocab.mask, 4000
    given = np.array([[2, mask, mask, 3], [2, a, mask, 3], [2, mask, b, 3]], np.int32)
    rows = lambda tokens: dict(
        tokens=tokens, segments=np.ones(tokens.shape, np.int32),
        positions=np.tile(np.arange(4, dtype=np.int32), (len(tokens), 1)),
        example=np.stack([np.zeros(len(tokens)), np.arange(len(tokens))], -1).astype(np.uint32)[:, None],
    )  # fmt: skip
    apply = mlm_head(bb.config).apply
    logits = apply(params["diffusion"], encode(rows(given)).hidden, params["backbone"]["embed"]["tokens"])
    nll = -np.asarray(jax.nn.log_softmax(np.where(np.isin(np.arange(V), SPECIAL), -1e9, logits)), np.float64)
    both, second, first = nll
    want = 0.5 * (both[1, a] + second[2, b]) + 0.5 * (both[2, b] + first[1, a])
    tokens = np.tile(np.array([[2, a, b, 3]], np.int32), (n, 1))
    batch = training.corrupted(rows(tokens), random.key(5), jnp.int32(0), objective)
    each = jax.jit(jax.vmap(lambda row: objective.loss(
        params, encode, jax.tree.map(lambda x: x[None], row), None, 0
    ).terms["diffusion"].sum))(batch)  # fmt: skip
    each = np.asarray(each, np.float64)
    assert abs(each.mean() - want) < 4 * each.std() / np.sqrt(n)
    got = types.report(objective.loss(params, encode, batch, None, 0))["diffusion"]
    np.testing.assert_allclose(got, each.mean() / 2, rtol=1e-4)


def test_shares_are_uniform(bb, vocab):
    rows = pack([[d, d + 1] for d in range(0, 600, 2)], 40, 2)
    out = jax.device_get(training.corrupted(rows, random.key(5), jnp.int32(0), diffusion(bb, vocab)))
    mine = out["diffusion"]
    on = mine["hidden"] > 0
    assert (out["tokens"][on] == 4).all() and (mine["target"] == rows["tokens"]).all()
    np.testing.assert_array_equal(out["tokens"][~on], rows["tokens"][~on])
    assert not np.isin(rows["tokens"][on], (0, 2, 3)).any()
    shares = []
    for b in range(len(on)):
        for s in (1, 2):
            here = (rows["segments"][b] == s) & (mine["counted"][b] > 0)
            shares.append(on[b, here].mean())
            weights = set(mine["weight"][b, here][on[b, here]].tolist())
            assert len(weights) <= 1 and all(1 <= w <= 1000 for w in weights)  # one t a segment
    assert abs(np.mean(shares) - 0.5) < 4 * np.sqrt((1 / 12 + 1 / 6 / 7) / len(shares))
    assert np.mean(np.array(shares) < 0.2) > 0.1 and np.mean(np.array(shares) > 0.8) > 0.1
    plain = training.corrupted(rows, random.key(5), jnp.int32(0), diffusion(bb, vocab, weighted=False))["diffusion"]
    for name in ("weight", "counted"):
        np.testing.assert_array_equal(plain[name], mine["hidden"])


@pytest.mark.parametrize("key", [None, 3])
def test_filling_in(bb, vocab, key):
    """Every mask is filled, by no special token, alike however texts are packed; what was given stays."""
    objective = diffusion(bb, vocab, steps=4)
    params = params_of(bb, objective)
    fill = jax.jit(lambda rows: objective.predict(
        params, partial(bb.encode, params["backbone"]), rows, None if key is None else random.key(key)
    )["prediction"])  # fmt: skip
    found = []
    for layout, length in (([[d] for d in range(4)], 20), ([[2, 0], [3, 1]], 40)):
        rows = pack(layout, length, 2)
        hidden = (rows["positions"] % 3 > 0) & (rows["tokens"] > 4)
        rows["tokens"] = np.where(hidden, 4, rows["tokens"])
        out = np.asarray(fill(rows))
        np.testing.assert_array_equal(out[~hidden], rows["tokens"][~hidden])
        assert (out[hidden] > 4).all()
        found.append({
            rows["example"][b, s, 1]: out[b][rows["segments"][b] == s + 1].tolist()
            for b, documents in enumerate(layout) for s in range(len(documents))
        })  # fmt: skip
    assert found[0] == found[1]


def test_what_is_drawn_is_as_likely_as_the_model_says(bb, vocab):
    """Of many rows alike but for who they are, one mask in one pass."""
    objective, n = diffusion(bb, vocab, steps=1), 4000
    params = params_of(bb, objective)
    encode = partial(bb.encode, params["backbone"])
    row = pack([[5]], 20, 1)
    row["tokens"][0, 3] = vocab.mask
    logits = mlm_head(bb.config).apply(params["diffusion"], encode(row).hidden, params["backbone"]["embed"]["tokens"])
    p = np.exp(np.asarray(logits, np.float64)[0, 3]) * ~np.isin(np.arange(V), SPECIAL)
    p /= p.sum()
    rows = {k: np.repeat(x, n, 0) for k, x in row.items()}
    rows["example"] = np.stack([np.zeros(n), np.arange(n)], -1).astype(np.uint32)[:, None]
    drawn = np.asarray(objective.predict(params, encode, rows, random.key(1))["prediction"])[:, 3]
    common = p * n > 5
    chi = ((np.bincount(drawn, minlength=V) - n * p) ** 2 / np.where(common, n * p, 1))[common].sum()
    assert common.sum() > 20 and chi < common.sum() + 5 * np.sqrt(2 * common.sum())


def test_what_is_certain_is_filled_in_as_many_passes(bb, vocab):
    """Where all places are as certain as can be, each pass takes its share: what is left then reads what is filled."""
    rows = pack([[5, 0], [3]], 40, 2)
    rows["tokens"] = np.where(rows["tokens"] > 4, vocab.mask, rows["tokens"])
    seen = []

    def encode(batch, *_, **how):
        jax.debug.callback(lambda tokens: seen.append(np.asarray(tokens)), batch["tokens"], ordered=True)
        return bb.encode(params["backbone"], batch, **how)

    objective = diffusion(bb, vocab, steps=4)
    params = params_of(bb, objective)
    params["diffusion"]["bias"][7] = 1e4
    assert (np.asarray(objective.predict(params, encode, rows)["prediction"]) != vocab.mask).all()
    jax.effects_barrier()
    of = rows["segments"][0] == 1
    left = [int((tokens[0, of] == vocab.mask).sum()) for tokens in seen]
    for i, (before, after) in enumerate(zip(left, [*left[1:], 0], strict=True)):
        assert before - after == -(-before // (4 - i))


def test_refusals(bb, vocab):
    with pytest.raises(ValueError, match=r"diffusion least=0 is the smallest share"):
        diffusion(bb, vocab, least=0)
    with pytest.raises(ValueError, match=r"diffusion steps=0 must be a whole number"):
        diffusion(bb, vocab, steps=0)
