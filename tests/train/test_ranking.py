"""Scores of rankings against rankings written out, and scikit-learn's nDCG."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from objectives.types import Objective, Sums, Term
from train import evaluate, ranking

SCORES = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4], [5.0, 1.0, 0.0, 0.0], [1.0, 2.0, 3.0, 9.0]])
GRADES = np.array([[0, 0, 2, 1], [3, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
THERE = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
# the relevant ones lie at 3 and 4; at 1 and 4; nowhere; at 2 of the 3 that are there


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("mrr", (1 / 3 + 1 + 1 / 2) / 3),
        ("mrr@2", (0 + 1 + 1 / 2) / 3),
        ("recall@1", (0 + 1 / 2 + 0) / 3),
        ("recall@3", (1 / 2 + 1 / 2 + 1) / 3),
        ("ndcg@3", (ndcg_score(GRADES[:2], SCORES[:2], k=3) * 2 + 1 / np.log2(3)) / 3),
        ("ndcg", (ndcg_score(GRADES[:2], SCORES[:2]) * 2 + 1 / np.log2(3)) / 3),
    ],
)
def test_scores(name, want):
    assert ranking.rank(name, SCORES, GRADES, THERE) == pytest.approx(want)
    flat = [(q, SCORES[q, n], GRADES[q, n]) for n in range(4) for q in range(4) if THERE[q, n]]
    queries, found, labels = (np.array(x) for x in zip(*flat, strict=True))
    assert evaluate.score(name, labels, found, queries=np.stack([queries * 0, queries], -1)) == pytest.approx(want)


def test_a_constant_score_gains_nothing():
    """Of equal scores the relevant are behind."""
    assert ranking.rank("recall@1", np.zeros((1, 3)), np.array([[1, 0, 0]])) == 0
    assert ranking.rank("mrr", np.zeros((1, 3)), np.array([[1, 0, 0]])) == pytest.approx(1 / 3)


def test_a_single_candidate_and_none_relevant():
    assert ranking.rank("ndcg", np.zeros((1, 1)), np.ones((1, 1))) == 1
    assert np.isnan(ranking.rank("mrr", np.zeros((1, 2)), np.zeros((1, 2))))


@pytest.mark.parametrize("name", ["recall", "recall@", "mrr@0", "ndcg@x", "map"])
def test_unknown(name):
    with pytest.raises(ValueError, match="is unknown; there are recall@k"):
        ranking.rank(name, SCORES, GRADES)


def test_shapes_differ():
    with pytest.raises(ValueError, match=r"scores \(4, 4\), relevance \(4, 3\)"):
        ranking.rank("mrr", SCORES, GRADES[:, :3])


def test_an_evaluation_scores_what_is_told_by_query():
    """Two batches of groups: the first of each is the query, and one group comes twice."""
    one = dict(
        example=np.array([[[0, 0], [0, 1], [0, 2], [0, 0]], [[0, 3], [0, 4], [0, 5], [0, 6]]], np.uint32),
        segments=np.array([[1, 2, 3, 0], [1, 2, 3, 4]]),
        group=np.array([[1, 1, 1, 0], [1, 1, 2, 2]]),
        labels=np.array([[0, 1, 0, 9], [0, 1, 0, 1]], np.float32),
        prediction=np.array([[1.0, 0.2, 0.3, 9.0], [1.0, 0.5, 1.0, 0.4]]),
        scored=np.array([[False, True, True, False], [False, True, False, True]]),
    )
    batches = [one, {k: v[:1] for k, v in one.items()}]

    def run(_, batch):
        return Sums({"x": Term(np.float32(1), np.float32(1))}), {k: batch[k] for k in ("prediction", "scored")}

    found = evaluate.evaluate(run, None, batches, Objective("x", run, run, scores=("mrr", "pearson")))
    assert found["mrr"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 0, 1, 1], [0.2, 0.3, 0.5, 0.4])[0, 1])
