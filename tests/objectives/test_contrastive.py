"""Contrastive learning against loops over anchors and candidates, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import V, pack, params_of

from model import heads, random
from model.backbone import backbone
from model.config import sized
from objectives import types
from objectives.contrastive import contrastive

STILL = dict(V=V, D=16, heads=4, F=32, layers=1, max_length=96, dropout=0.0, attention_dropout=0.0)
LAYOUT = [[0, 1, 2], [3, 4], [5, 6, 7], [], [8, 9, 10]]


@pytest.fixture(scope="module")
def bb():
    with jax.enable_x64(True):
        yield backbone(sized("tiny", **STILL, dtype="float64", param_dtype="float64"))


def report(objective, params, bb, rows, key=None):
    encode = partial(bb.encode, params["backbone"])
    outputs = jax.jit(lambda rows: objective.loss(params, encode, rows, key, 0))(rows)
    return {k: float(x) for k, x in types.report(objective.join(params, outputs, rows)).items()}, np.asarray(outputs)


def likeness(a, b, similarity):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b) if similarity == "cosine" else 1)


def by_loop(triples, similarity, temperature):
    """(mean of -log of the positive's share, share of anchors whose positive is nearest) over (anchor, positive) in
    candidates."""
    losses, hits = [], []
    for anchor, positive, candidates in triples:
        scores = np.array([likeness(anchor, c, similarity) / temperature for c in candidates])
        losses.append(np.log(np.exp(scores - scores[positive]).sum()))
        hits.append(scores.argmax() == positive)
    return np.mean(losses), np.mean(hits)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_groups_by_a_loop(bb, vocab, similarity):
    """Anchors against the second and later texts of all groups, negatives without an anchor of their own included."""
    with jax.enable_x64(True):
        rows = pack(LAYOUT, 48, 3)
        objective = contrastive(bb, vocab, positives="group", similarity=similarity, temperature=0.7)
        params = params_of(bb, objective)
        got, _ = report(objective, params, bb, rows)
        hidden = np.asarray(jax.jit(bb.encode)(params["backbone"], rows).hidden)
        mean = {
            d: hidden[b][rows["segments"][b] == s + 1].mean(0)
            for b, row in enumerate(LAYOUT)
            for s, d in enumerate(row)
        }
        candidates = [d for row in LAYOUT for d in row[1:]]
        triples = [(mean[r[0]], candidates.index(r[1]), [mean[c] for c in candidates]) for r in LAYOUT if r]
        want = by_loop(triples, similarity, 0.7)
        np.testing.assert_allclose([got["contrastive"], got["contrastive_accuracy"]], want, rtol=1e-10)


def test_views_by_a_loop(vocab, packed):
    """Views that dropout tells apart: the first ones against all second ones of texts that are there."""
    with jax.enable_x64(True):
        wet = backbone(sized("tiny", **STILL | dict(dropout=0.1, dtype="float64", param_dtype="float64")))
        objective = contrastive(wet, vocab, pooling="first", temperature=0.3)
        params = params_of(wet, objective)
        got, outputs = report(objective, params, wet, packed, random.key(1))
        there = np.arange(1, 4) <= packed["segments"].max(1)[:, None]
        first, second = outputs[there][:, 0], outputs[there][:, 1]
        assert there.sum() == 16
        assert np.abs(first - second).max() > 1e-2, "two views differ"
        np.testing.assert_allclose(np.linalg.norm(first, axis=-1), 1)
        want = by_loop([(a, i, second) for i, a in enumerate(first)], "cosine", 0.3)
        np.testing.assert_allclose([got["contrastive"], got["contrastive_accuracy"]], want, rtol=1e-10)


def test_groups_packed_to_a_row(bb, vocab):
    """Two groups in a row give what each in its own row does."""
    with jax.enable_x64(True):
        apart, joined = pack([[0, 1], [2, 3, 4], [5, 6], []], 96, 5), pack([[0, 1, 2, 3, 4], [5, 6], [], []], 96, 5)
        joined["group"][0] = [1, 1, 2, 2, 2]
        objective = contrastive(bb, vocab, positives="group")
        params = params_of(bb, objective)
        (a, _), (b, _) = (report(objective, params, bb, rows) for rows in (apart, joined))
        assert a == pytest.approx(b, rel=1e-12)


@pytest.mark.parametrize("positives", ["dropout", "group"])
def test_a_text_that_comes_twice_is_no_negative_of_itself(vocab, positives):
    """Each row once more, as another example: against a loop that leaves out what is the anchor's text or its
    positive's.
    """
    with jax.enable_x64(True):
        wet = backbone(sized("tiny", **STILL | dict(dropout=0.1, dtype="float64", param_dtype="float64")))
        objective = contrastive(wet, vocab, positives=positives, temperature=0.3)
        params, rows = params_of(wet, objective), pack(LAYOUT, 48, 3)
        twice = {k: np.concatenate([x, x]) for k, x in rows.items()}
        twice["example"] = twice["example"] + np.arange(10, dtype=np.uint32)[:, None, None] * 100
        got, outputs = report(objective, params, wet, twice, random.key(1))
        layout = LAYOUT + LAYOUT
        every = [(b, s, d) for b, row in enumerate(layout) for s, d in enumerate(row)]
        triples = []
        for b, s, d in every:
            if positives == "group" and s:
                continue
            positive = (b, s + 1) if positives == "group" else (b, s)
            same = {d, layout[positive[0]][positive[1]]}
            others = [(c, t) for c, t, e in every if e not in same and (t or positives == "dropout")]
            view = outputs.shape[2] - 1
            triples.append((outputs[b, s, 0], 0, [outputs[*at, view] for at in (positive, *others)]))
        want = by_loop(triples, "cosine", 0.3)
        np.testing.assert_allclose([got["contrastive"], got["contrastive_accuracy"]], want, rtol=1e-10)


def test_predictions(bb, vocab):
    """Embeddings of length one, and each text's likeness to the first of its group, which is not scored itself."""
    with jax.enable_x64(True):
        rows = pack(LAYOUT, 48, 3)
        objective = contrastive(bb, vocab)
        params = params_of(bb, objective)
        said = jax.jit(lambda rows: objective.predict(params, partial(bb.encode, params["backbone"]), rows))
        found = jax.device_get(said(rows))
        assert found["scored"].tolist() == [[False, s < len(r), s + 1 < len(r)] if r else [False] * 3
                                            for r in LAYOUT for s in [1]]  # fmt: skip
        for b, row in enumerate(LAYOUT):
            for s in range(len(row)):
                x = found["embedding"][b, s]
                np.testing.assert_allclose(np.linalg.norm(x), 1)
                np.testing.assert_allclose(found["prediction"][b, s], x @ found["embedding"][b, 0])
        assert said({k: v for k, v in rows.items() if k != "group"}).keys() == {"embedding"}


def test_attention_pooling(bb, vocab, packed):
    """Against a loop over segments; with a query of zeros, which is how it begins, it is the mean."""
    with jax.enable_x64(True):
        head = heads.pooled(bb.config, "attention")
        query = np.random.default_rng(0).normal(size=16)
        params = params_of(bb)
        encode = jax.jit(lambda batch, key: bb.encode(params, batch))
        hidden = np.asarray(encode(packed, None).hidden)
        got = head.apply({"query": query}, encode, packed)
        for b, s in zip(*np.nonzero(np.arange(1, 4) <= packed["segments"].max(1)[:, None]), strict=True):
            x = hidden[b][packed["segments"][b] == s + 1]
            weights = np.exp(x @ query / 4)
            np.testing.assert_allclose(got[b, s], weights @ x / weights.sum(), rtol=1e-10)
        fresh = head.init(random.generator(0))
        mean = heads.pooled(bb.config, "mean").apply({}, encode, packed)
        np.testing.assert_allclose(head.apply(fresh, encode, packed), mean, rtol=1e-10, atol=1e-12)


def test_places_without_a_segment_have_a_gradient_of_zero(bb, vocab):
    """A vector of zeros has no direction, and no gradient that is not finite."""
    rows = {k: jnp.asarray(v) for k, v in pack([[0, 1], []], 48, 3).items()}
    objective = contrastive(bb, vocab, positives="group")
    with jax.enable_x64(True):
        params = params_of(bb, objective)

        def loss(params):
            outputs = objective.loss(params, partial(bb.encode, params["backbone"]), rows, None, 0)
            return types.loss(objective.join(params, outputs, rows))

        assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(positives="pairs"), "positives='pairs' must be one of dropout, group"),
        (dict(similarity="l2"), "similarity='l2' must be one of cosine, dot"),
        (dict(temperature=0.0), "temperature=0.0 divides the similarities"),
        (dict(scores=("accuracy",)), "'accuracy' is none that a number for each candidate has"),
        (dict(scores="mrr"), r"scores='mrr': expected a tuple of names, as \('mrr',\)"),
        (dict(pooling="max"), "pooling='max' must be one of first, mean, root, attention"),
    ],
)
def test_errors(bb, vocab, options, message):
    with pytest.raises(ValueError, match=message):
        contrastive(bb, vocab, **options)


def test_two_views_need_dropout_and_a_batch_another_text(vocab):
    sure = backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=64, dropout=0.0, attention_dropout=0.0))
    with pytest.raises(ValueError, match="by the backbone's dropout, which is 0"):
        contrastive(sure, vocab).loss({}, None, {}, random.key(0), 0)
    with pytest.raises(ValueError, match="this one holds a single text"):
        contrastive(sure, vocab).join({}, jnp.zeros((1, 1, 2, 16)), pack([[0]], 16, 1))
