"""Extractive answers: the loss and the best span against loops, however windows lie, SQuAD's scores by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numbers_as_text import Numbers
from toys import pack, params_of

from model.backbone import backbone
from model.config import sized
from objectives import types
from objectives.answer import answer, best_span
from train import evaluate
from train.data.answers import answer_windows
from train.data.layout import LAYOUTS, layout
from train.data.loader import evaluation_batches
from train.data.source import Record
from train.data.table import Memory

CONTEXTS = [3, 9, 1, 30, 12, 4, 22]


@pytest.fixture(scope="module")
def model(vocab):
    bb = backbone(sized("tiny", V=200, D=16, heads=2, F=32, layers=1, max_length=32, scan=True))
    made = {none: answer(bb, vocab, longest=4, unanswerable=none) for none in (False, True)}
    return bb, made, params_of(bb, made[False], seed=1)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    records = []
    for n in CONTEXTS:
        ids = [str(100 + i) for i in range(n)]
        first = int(rng.integers(n))
        found = " ".join(ids[first : first + 3])
        label = f'{{"text": ["{found}"], "answer_start": [{4 * first}]}}'
        records.append(Record(" ".join(map(str, rng.integers(5, 99, 3))), " ".join(ids), label, "f:1"))
    return answer_windows(records, Numbers(), 20, stride=6, question=4).arrays


def by_loops(bb, params, batch, longest, none):
    """(losses, exact, overlap, spans, scores) by window, from the logits."""
    hidden = np.asarray(bb.encode(params["backbone"], batch).hidden, np.float64)
    out = params["answer"]["out"]
    logits_BL2 = hidden @ out["kernel"] + out["bias"]
    losses, exact, overlap, spans, scores = [], [], [], [], []
    for b, (want,) in enumerate(batch["answers"]):
        n = (batch["segments"][b] == 1).sum()
        x_L2 = logits_BL2[b, :n]
        p_L2 = np.exp(x_L2) / np.exp(x_L2).sum(0)
        losses.append(-np.log(p_L2[want, [0, 1]]).mean())
        begin = int((batch["types"][b, :n] == 0).sum())
        pairs = [(i, j) for i in range(begin, n - 1) for j in range(i, min(i + longest, n - 1))]
        best = max(pairs, key=lambda ij: x_L2[ij[0], 0] + x_L2[ij[1], 1])
        score = x_L2[best[0], 0] + x_L2[best[1], 1]
        spans.append(best)
        scores.append(score)
        if none and x_L2[0].sum() > score:
            best = (0, 0)
        if none or want[1]:
            said, true = set(range(best[0], best[1] + 1)), set(range(want[0], want[1] + 1))
            exact.append(said == true)
            overlap.append(2 * len(said & true) / (len(said) + len(true)))
    return np.mean(losses), np.mean(exact), np.mean(overlap), spans, scores


@pytest.mark.parametrize("none", [False, True])
def test_loss_metrics_and_spans_are_those_of_loops(model, rows, none):
    bb, made, params = model
    objective = made[none]
    # what is said is the label here and there, or the label without its last token
    encode = partial(bb.encode, params["backbone"])
    found = objective.predict(params, encode, rows)
    answers = rows["answers"].copy()
    answers[::3] = found["prediction"][::3]
    answers[1::3] = found["prediction"][1::3] + np.array([[[0, 1]]])
    batch = rows | {"answers": answers}
    report = types.report(objective.loss(params, encode, batch, None, jnp.int32(0)))
    loss, exact, overlap, spans, scores = by_loops(bb, params, batch, 4, none)
    assert 0 < exact < overlap < 1
    np.testing.assert_allclose(report["answer"], loss, rtol=1e-5)
    np.testing.assert_allclose([report["answer_exact"], report["answer_overlap"]], [exact, overlap], rtol=1e-5)
    assert [tuple(x) for x in found["prediction"][:, 0].tolist()] == spans
    np.testing.assert_allclose(found["score"][:, 0], scores, rtol=1e-4, atol=1e-4)
    assert ("null" in found) == none


@pytest.mark.parametrize("longest", [1, 3, 40])
def test_the_best_span_is_the_best_of_all_pairs(longest):
    rng = np.random.default_rng(longest)
    logits, legal = rng.standard_normal((5, 2, 24, 2)), np.zeros((5, 2, 24), bool)
    for b, s in np.ndindex(5, 2):
        a = int(rng.integers(20))
        legal[b, s, a : a + int(rng.integers(1, 12))] = True
    spans, scores = best_span(jnp.array(logits), jnp.array(legal), longest)
    for b, s in np.ndindex(5, 2):
        at = np.flatnonzero(legal[b, s])
        pairs = [(i, j) for i in at for j in at if i <= j < i + longest]
        total = [logits[b, s, i, 0] + logits[b, s, j, 1] for i, j in pairs]
        assert tuple(spans[b, s].tolist()) == pairs[int(np.argmax(total))]
        np.testing.assert_allclose(scores[b, s], max(total), rtol=1e-5)


def test_nothing_to_answer_from(model, vocab):
    """Of texts alone the answer is at [CLS], wherever they lie in a row."""
    bb, *_ = model
    rows = pack([[0, 1, 2]], 64, 3) | {"types": np.zeros((1, 64), np.int32)}
    objective = answer(bb, vocab, unanswerable=False)
    params = params_of(bb, objective)
    said = objective.predict(params, partial(bb.encode, params["backbone"]), rows)
    assert not np.asarray(said["prediction"]).any()


def test_every_layout_has_the_same_metrics(model, rows):
    bb, made, params = model
    run = jax.jit(evaluate.evaluator(bb, made[True]))
    table = Memory(rows)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    places = jax.NamedSharding(mesh, jax.P())
    found = {}
    for name in LAYOUTS:
        batches = evaluation_batches(table, 4, places, layout(name, table, 4))
        found[name] = evaluate.evaluate(run, params, batches, made[True])
    for metrics in found.values():
        assert metrics == pytest.approx(found["padded"], rel=1e-5)


@pytest.mark.parametrize(
    "said, answers, exact, f1",
    [
        ("The Norman conquest!", ["norman  Conquest"], 1, 1),
        ("conquest of 1066", ["the conquest", "1066 conquest"], 0, 4 / 5),
        ("in 1066", ["1067"], 0, 0),
        ("1066 1066", ["1066"], 0, 2 / 3),
        ("", [], 1, 1),
        ("1066", [], 0, 0),
        ("", ["1066"], 0, 0),
        ("the", ["a"], 1, 1),
    ],
)
def test_squad_s_scores_by_hand(said, answers, exact, f1):
    assert evaluate.answer_score(said, answers) == pytest.approx((exact, f1))


def test_an_answer_has_a_token(model, vocab):
    with pytest.raises(ValueError, match="longest=0"):
        answer(model[0], vocab, longest=0)
