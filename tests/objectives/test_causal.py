"""Causal, prefix and hybrid language modelling: probabilities that add up to one, and corruption by a loop."""

import itertools
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
from objectives.causal import causal
from objectives.hybrid import hybrid
from train import step as training

LAYOUT = [[5, 0, 9], [1], [12, 3], [2, 15]]


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=64, dropout=0.0, attention_dropout=0.0))


def corrupt(objective, rows, step=0):
    make = jax.jit(partial(training.corrupted, objective=objective))
    return jax.device_get(make(rows, random.fold(random.key(9), step), jnp.int32(step)))


def segments(rows):
    """(row, places) of each packed segment."""
    for b in range(len(rows["segments"])):
        for s in range(1, rows["segments"][b].max() + 1):
            yield b, np.flatnonzero(rows["segments"][b] == s)


def loss(objective, bb, params, batch):
    sums = objective.loss(params, partial(bb.encode, params["backbone"]), batch, None, jnp.int32(0))
    return jax.device_get(types.report(sums))


def test_probabilities_of_all_continuations_add_up_to_one(bb, vocab):
    objective = causal(bb, vocab)
    params = params_of(bb, objective)
    a, b = (x.ravel() for x in np.meshgrid(np.arange(V), np.arange(V)))
    n = V * V
    rows = dict(
        tokens=np.stack([np.full(n, 2), a, b], 1).astype(np.int32), segments=np.ones((n, 3), np.int32),
        positions=np.tile(np.arange(3, dtype=np.int32), (n, 1)), example=np.zeros((n, 1, 2), np.uint32),
    )  # fmt: skip
    said = jax.jit(partial(objective.predict, params, partial(bb.encode, params["backbone"])))(rows)
    log_likelihood = np.asarray(said["log_likelihood"], np.float64)
    assert (log_likelihood[:, 0] == 0).all()
    np.testing.assert_allclose(np.exp(log_likelihood.sum(1)).sum(), 1, rtol=1e-5)
    first = np.exp(log_likelihood[b == 7, 1])  # one of each
    np.testing.assert_allclose(first.sum(), 1, rtol=1e-5)


def test_the_loss_is_the_mean_of_what_predict_says(bb, vocab):
    objective = causal(bb, vocab)
    params, rows = params_of(bb, objective), pack(LAYOUT, 48, 3)
    said = objective.predict(params, partial(bb.encode, params["backbone"]), rows)["log_likelihood"]
    count = sum(len(places) - 1 for _, places in segments(rows))
    got = loss(objective, bb, params, corrupt(objective, rows))
    np.testing.assert_allclose(got["causal"], -np.asarray(said).sum() / count, rtol=1e-5)


def test_prefixes(bb, vocab):
    """What is seen and what is predicted, by a loop; lengths are uniform; a hidden token changes nothing before it."""
    objective = causal(bb, vocab, prefix=True)
    rows = pack(LAYOUT, 48, 3)
    found = []
    for step in range(40):
        out = corrupt(objective, rows, step)
        weight = np.zeros_like(out["causal"]["weight"])
        for b, places in segments(rows):
            reach = out["reach"][b, places]
            length = reach[0] + 1
            assert 1 <= length < len(places)
            assert reach.tolist() == [max(i, length - 1) for i in range(len(places))]
            weight[b, places[length - 1 : -1]] = 1
            found.append((length - 0.5) / (len(places) - 1))
        np.testing.assert_array_equal(out["causal"]["weight"], weight)
        on = weight > 0
        np.testing.assert_array_equal(out["causal"]["target"][on], np.roll(rows["tokens"], -1, 1)[on])
    assert abs(np.mean(found) - 0.5) < 4 * np.sqrt(1 / 12 / len(found))
    params = params_of(bb, objective)
    last = [places[-1] for _, places in segments(rows)]
    changed = out | {"tokens": out["tokens"].copy()}
    for (b, _), place in zip(segments(rows), last, strict=True):
        changed["tokens"][b, place] = 9
    hidden = [np.array(bb.encode(params["backbone"], batch).hidden) for batch in (out, changed)]
    for b, places in segments(rows):
        np.testing.assert_array_equal(hidden[0][b, places[:-1]], hidden[1][b, places[:-1]])
        assert abs(hidden[0][b, places[-1]] - hidden[1][b, places[-1]]).max() > 1e-3


def test_hybrid(bb, vocab):
    objective = hybrid(bb, vocab, causal=0.25, rate=0.3)
    rows = pack([[d, d + 1] for d in range(0, 120, 2)], 40, 2)
    out = corrupt(objective, rows)
    mine, ordinary = out["hybrid"], ~np.isin(rows["tokens"], SPECIAL)
    kinds, hidden, could = [], 0, 0
    for b, places in segments(rows):
        weight, before, after = mine["weight"][b, places], rows["tokens"][b, places], out["tokens"][b, places]
        kinds.append(mine["causal"][b, places].mean())
        if kinds[-1]:
            assert out["reach"][b, places].tolist() == list(range(len(places)))
            assert weight.tolist() == [1] * (len(places) - 1) + [0]
            np.testing.assert_array_equal(after, before)
        else:
            assert (out["reach"][b, places] >= len(places)).all()
            assert weight[-1] == 0  # what follows is of another segment
            chosen = np.r_[False, weight[:-1] > 0]
            assert not (chosen & ~ordinary[b, places]).any()
            np.testing.assert_array_equal(after[~chosen], before[~chosen])
            hidden, could = hidden + chosen.sum(), could + ordinary[b, places].sum()
    assert set(kinds) == {0, 1}
    assert abs(np.mean(kinds) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(kinds))
    assert abs(hidden / could - 0.3) < 0.02
    assert 0.7 < (out["tokens"] == 4).sum() / hidden < 0.9
    on = mine["weight"] > 0
    np.testing.assert_array_equal(mine["target"][on], np.roll(rows["tokens"], -1, 1)[on])


def test_the_hybrids_loss_by_a_loop(bb, vocab):
    """Each predicted token where the one before it stands, in causal and masked segments, and the two means weighed."""
    objective = hybrid(bb, vocab, causal=0.4, rate=0.3)
    rows = pack([[d, d + 1] for d in range(0, 20, 2)], 40, 2)
    params, out = params_of(bb, objective), corrupt(objective, rows)
    hidden = bb.encode(params["backbone"], out).hidden
    logits = mlm_head(bb.config).apply(params["hybrid"], hidden, params["backbone"]["embed"]["tokens"])
    logp = np.asarray(jax.nn.log_softmax(logits), np.float64)
    said = {False: [], True: []}
    for b, places in segments(rows):
        causal_here = bool(out["hybrid"]["causal"][b, places[0]])
        for before, place in itertools.pairwise(places):
            if causal_here or out["hybrid"]["weight"][b, before]:
                said[causal_here].append(-logp[b, before, rows["tokens"][b, place]])
    got = loss(objective, bb, params, out)
    np.testing.assert_allclose(got["hybrid_causal"], np.mean(said[True]), rtol=1e-5)
    np.testing.assert_allclose(got["hybrid_masked"], np.mean(said[False]), rtol=1e-5)
    np.testing.assert_allclose(got["loss"], 0.4 * np.mean(said[True]) + 0.6 * np.mean(said[False]), rtol=1e-5)


def test_a_hybrid_of_causal_segments_alone_is_causal(bb, vocab):
    rows = pack(LAYOUT, 48, 3)
    both, one = hybrid(bb, vocab, causal=1.0), causal(bb, vocab)
    params = params_of(bb, one)
    want = loss(one, bb, params, corrupt(one, rows))
    got = loss(both, bb, {"backbone": params["backbone"], "hybrid": params["causal"]}, corrupt(both, rows))
    assert got["loss"] == got["hybrid_causal"] == want["causal"]
    assert np.isnan(got["hybrid_masked"])
    convolved = backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=48, conv=3))
    for objective in (causal, hybrid):
        with pytest.raises(ValueError, match=r"convolution .conv=3. sees it: set backbone conv=0"):
            objective(convolved, vocab)
    with pytest.raises(ValueError, match=r"hybrid causal=1\.5 must be a share between 0 and 1"):
        hybrid(bb, vocab, causal=1.5)
    with pytest.raises(ValueError, match=r"hybrid rate=0 must be a share"):
        hybrid(bb, vocab, rate=0)
