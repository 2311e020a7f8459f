"""Spoilt rows against walks over them: what moves, how far and how often; and the loss against its closed form."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SPECIAL, V, params_of

from model import random
from model.backbone import backbone
from model.config import sized
from model.heads import mlm_head
from objectives import types
from objectives.denoise import denoise
from train import step as training

B, L = 300, 40
STILL = dict(mask=0.0, replace=0.0, shuffle=0.0)


@pytest.fixture(scope="module")
def rows():
    """Two segments of a row, tokens all different in each, special tokens at both ends and one within."""
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.permutation(np.arange(5, V))[:L] for _ in range(B)]).astype(np.int32)
    tokens[:, [0, 18]], tokens[:, [10, 17, 37]], tokens[:, 38:] = 2, 3, 0
    segments = np.repeat([1, 2, 0], [18, 20, 2])[None].repeat(B, 0).astype(np.int32)
    positions = np.r_[np.arange(18), np.arange(20), 0, 0][None].repeat(B, 0).astype(np.int32)
    example = np.stack([np.zeros((B, 2)), np.arange(2 * B).reshape(B, 2)], -1).astype(np.uint32)
    return dict(tokens=tokens, segments=segments, positions=positions, example=example)


STRETCHES = [(1, 10), (11, 17), (19, 37)]


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=64))


def corrupt(objective, rows):
    out = jax.jit(partial(training.corrupted, objective=objective))(rows, random.key(9), jnp.int32(0))
    return jax.device_get(out)


@pytest.mark.parametrize("window", [2, 3])
def test_windows_are_shuffled(bb, vocab, rows, window):
    out = corrupt(denoise(bb, vocab, **STILL | dict(shuffle=0.4), window=window), rows)["tokens"]
    moved, windows = 0, 0
    np.testing.assert_array_equal(
        out[np.isin(rows["tokens"], SPECIAL)], rows["tokens"][np.isin(rows["tokens"], SPECIAL)]
    )
    for b in range(B):
        for first, end in STRETCHES:
            for i in range(first, end, window):
                here = slice(i, min(i + window, end))
                assert sorted(out[b, here]) == sorted(rows["tokens"][b, here])
                if here.stop - i == window:
                    windows += 1
                    moved += (out[b, here] != rows["tokens"][b, here]).any()
    p = 0.4 * (1 - 1 / {2: 2, 3: 6}[window])  # an order drawn may be the one that was
    assert abs(moved / windows - p) < 4.5 * np.sqrt(p * (1 - p) / windows)


def test_spans_are_permuted(bb, vocab, rows):
    """Words stay whole, and of n spans in random order as few follow each other as there are spans."""
    out = corrupt(denoise(bb, vocab, **STILL, permute=0.5, span=4.0), rows)["tokens"]
    tokens, changed, breaks, words = rows["tokens"], 0, 0, 0
    for b in range(B):
        for first, end in STRETCHES:
            old, new = tokens[b, first:end], out[b, first:end]
            assert sorted(old) == sorted(new)
            at = {t: i for i, t in enumerate(old)}
            order = [at[t] for t in new]
            changed += order != sorted(order)
            for x, y in pairwise(order):
                if y != x + 1:  # a span begins with a word, and a span that another followed ended before one
                    assert y == 0 or vocab.word_starts[old[y]]
                    assert x + 1 == len(old) or vocab.word_starts[old[x + 1]]
                    breaks += 1
            words += vocab.word_starts[old].sum()
    still = (out[:, :18] == tokens[:, :18]).all(1).mean()
    assert 0.5 < still < 0.65
    assert (out[:, np.isin(tokens[0], SPECIAL)] == tokens[:, np.isin(tokens[0], SPECIAL)]).all()
    assert 0.05 < breaks / words < 0.5 / 4 + 0.05 and changed > 200


def test_hiding_alone_is_that_of_mlm(bb, vocab, rows):
    out = corrupt(denoise(bb, vocab, rate=0.25, mask=1.0, replace=0.0, shuffle=0.0), rows)
    ordinary = ~np.isin(rows["tokens"], SPECIAL)
    hidden = out["tokens"] == vocab.mask
    assert set(hidden[:, :18].sum(1)) <= {3, 4} and set(hidden[:, 18:].sum(1)) <= {4, 5}
    assert not (hidden & ~ordinary).any()
    np.testing.assert_array_equal(out["denoise"]["weight"], ordinary)
    np.testing.assert_array_equal(out["denoise"]["changed"], hidden)
    np.testing.assert_array_equal(out["denoise"]["target"], rows["tokens"])


def test_the_loss_is_of_every_ordinary_token(bb, vocab, rows):
    objective = denoise(bb, vocab, permute=0.5)
    params = params_of(bb, objective)
    few = {k: x[:20] for k, x in rows.items()}
    batch = corrupt(objective, few)
    encode = partial(bb.encode, params["backbone"])
    sums = jax.jit(lambda b: objective.loss(params, encode, b, None, 0))(batch)
    said = mlm_head(bb.config).apply(params["denoise"], encode(batch).hidden, params["backbone"]["embed"]["tokens"])
    said = np.asarray(said, np.float64)
    logp = said - np.log(np.exp(said).sum(-1, keepdims=True))
    own = np.take_along_axis(logp, few["tokens"][..., None], -1)[..., 0]
    ordinary = ~np.isin(few["tokens"], SPECIAL)
    np.testing.assert_allclose(float(types.loss(sums)), -own[ordinary].mean(), rtol=1e-5)
    changed = batch["tokens"] != few["tokens"]
    prediction = objective.predict(params, encode, batch)["prediction"]
    report = types.report(sums)
    np.testing.assert_allclose(report["denoise_repaired"], (prediction == few["tokens"])[changed].mean(), rtol=1e-6)
    np.testing.assert_allclose(report["denoise_changed"], changed.sum() / ordinary.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(shuffle=1.5), "denoise shuffle=1.5 must be a share"),
        (dict(permute=-0.5), "denoise permute=-0.5 must be a share"),
        (dict(window=1), "denoise window=1 must be 2 tokens or more"),
        (dict(rate=0.0), "denoise rate=0.0 must be a share"),
        (dict(unit="ngram"), "belong together"),
    ],
)
def test_refusals(bb, vocab, wrong, says):
    with pytest.raises(ValueError, match=says):
        denoise(bb, vocab, **wrong)
