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


def test_a_grade_below_0_is_none():
    scores, grades = np.array([[0.3, 0.2, 0.1]]), np.array([[-1, 2, 1]])
    assert ranking.rank("ndcg", scores, grades) == ranking.rank("ndcg", scores, np.maximum(grades, 0)) < 1


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


def groups(rng, Q: int, D: int) -> tuple[list[dict], np.ndarray]:
    """Batches of rows of one group: a query and three documents out of nine, one of them relevant; and embeddings by
    the text, which is one token.
    """
    table = rng.standard_normal((Q + 9, D)).astype(np.float32)
    batches = []
    for q in range(Q):
        texts = np.array([q, *(Q + rng.choice(9, 3, replace=False))])
        if q == 1:
            texts[3] = 1  # the query's own text, which is no candidate of its own
        batches.append(
            dict(
                example=np.array([[[0, 4 * q + i] for i in range(4)]], np.uint32),
                segments=np.array([[1, 2, 3, 4]]), group=np.ones((1, 4), int), tokens=texts[None],
                labels=np.array([[0, 0, 1 + q % 2, 0]], np.float32), embedding=table[texts][None],
                prediction=np.zeros((1, 4)), scored=np.array([[False, True, True, True]]),
            )
        )  # fmt: skip
    return [*batches, batches[0]], table


def test_a_query_in_two_groups_is_one_query():
    """With the right documents of both."""
    table = np.array([[1, 0], [0.9, 0.1], [0.8, 0.1], [0.1, 0.9], [0.2, 0.7]], np.float32)  # a query, four documents
    batch = dict(
        example=np.arange(6, dtype=np.uint32).reshape(2, 3, 1).repeat(2, 2), segments=np.array([[1, 2, 3]] * 2),
        group=np.ones((2, 3), int), tokens=np.array([[0, 1, 3], [0, 2, 4]]),
        labels=np.array([[0, 1, 0]] * 2, np.float32), prediction=np.zeros((2, 3)),
        scored=np.array([[False, True, True]] * 2),
    )  # fmt: skip
    batch["embedding"] = table[batch["tokens"]]
    keep = ("prediction", "scored", "embedding")
    run = lambda _, batch: (Sums({"x": Term(np.float32(1), np.float32(1))}), {k: batch[k] for k in keep})
    objective = Objective("x", run, run, scores=("corpus_mrr", "corpus_recall@1", "corpus_recall@2", "corpus_ndcg"))
    found = evaluate.evaluate(run, None, [batch], objective)
    assert [found[name] for name in objective.scores] == pytest.approx([1, 0.5, 1, 1])


@pytest.mark.parametrize("name", ["recall@2", "mrr", "mrr@3", "ndcg@4"])
def test_over_the_whole_data_set(name, monkeypatch):
    """Held against a loop over queries that sorts the documents, in blocks of two queries."""
    monkeypatch.setattr(ranking, "_BLOCK", 2)
    Q = 5
    batches, table = groups(np.random.default_rng(0), Q, 4)
    documents = sorted({int(t) for batch in batches for t in batch["tokens"][0, 1:]})
    assert 1 in documents
    want = []
    for q in range(Q):
        right, grade = int(batches[q]["tokens"][0, 2]), batches[q]["labels"][0, 2]
        order = sorted((d for d in documents if d != q), key=lambda d: -float(table[q] @ table[d]))
        place = order.index(right) + 1
        kind, k = name.partition("@")[0], int(name.partition("@")[2] or 99)
        best = {"recall": 1.0, "mrr": 1 / place, "ndcg": 1 / np.log2(1 + place)}[kind]
        want.append(best if place <= k else 0.0)
        assert grade > 0
    keep = ("prediction", "scored", "embedding")
    run = lambda _, batch: (Sums({"x": Term(np.float32(1), np.float32(1))}), {k: batch[k] for k in keep})
    objective = Objective("x", run, run, scores=("mrr", f"corpus_{name}"))
    assert evaluate.evaluate(run, None, batches, objective)[f"corpus_{name}"] == pytest.approx(np.mean(want))
