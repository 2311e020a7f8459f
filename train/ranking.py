"""Scores of rankings: are the relevant ones among the first, and how far up."""

import numpy as np

from objectives.groups import RANKINGS

_BLOCK = 256  # queries whose scores are in memory at once


def check(name: str) -> None:
    """Raises ValueError for a name that `rank` does not know."""
    kind, _, k = name.partition("@")
    if kind not in RANKINGS or (k and not (k.isdecimal() and int(k))) or (kind == "recall" and not k):
        raise ValueError(f"the ranking score {name!r} is unknown; there are recall@k, ndcg, ndcg@k, mrr and mrr@k")


def rank(name: str, scores_QN: np.ndarray, relevance_QN: np.ndarray, there_QN: np.ndarray | None = None) -> float:
    """A score of Q rankings of up to N candidates, averaged over the queries that have a relevant one; nan if none has.

    name: "recall@k", the share of the relevant ones that are among the first k; "ndcg" or "ndcg@k", the discounted
    gain over that of the best order (Jarvelin & Kekalainen 2002, doi.org/10.1145/582415.582418; linear gains, as
    scikit-learn has them); "mrr" or "mrr@k", one over the place of the first relevant one, 0 if not among the first k.

    Candidates with a relevance above 0 are relevant; only nDCG tells grades apart. Of embeddings the scores are
    `queries_QD @ documents_ND.T`. `there_QN` tells which candidates a query has, by default all. Among equal scores
    relevant ones count as behind, so that a constant score gains nothing; nDCG averages over their orders.
    Raises ValueError for another name, or shapes that differ.
    """
    return _mean(_each(name, scores_QN, relevance_QN, there_QN))


def retrieve(
    name: str, queries_QD: np.ndarray, documents_ND: np.ndarray, relevant: np.ndarray, grades: np.ndarray,
    same: tuple[np.ndarray, np.ndarray],
) -> float:  # fmt: skip
    """`rank` where every query's candidates are all N documents, by the product of the embeddings.

    `relevant` [R, 2] are pairs of a query and a document, `grades` [R] their relevance; all other documents have 0.
    `same` are numbers [Q] and [N] that are equal where a document is the query's own text, which is no candidate.
    """
    found: list[float] = []
    for start in range(0, len(queries_QD), _BLOCK):
        here = slice(start, start + _BLOCK)
        scores_QN = queries_QD[here] @ documents_ND.T
        relevance_QN = np.zeros(scores_QN.shape, np.float32)
        mine = (relevant[:, 0] >= start) & (relevant[:, 0] < start + _BLOCK)
        np.maximum.at(relevance_QN, (relevant[mine, 0] - start, relevant[mine, 1]), grades[mine])
        found += _each(name, scores_QN, relevance_QN, same[0][here][:, None] != same[1])
    return _mean(found)


def _mean(found: list[float]) -> float:
    return float(np.mean(found)) if found else float("nan")


def _each(
    name: str, scores_QN: np.ndarray, relevance_QN: np.ndarray, there_QN: np.ndarray | None = None
) -> list[float]:
    """Of each query that has a relevant candidate."""
    check(name)
    kind, _, k = name.partition("@")
    there_QN = np.ones(scores_QN.shape, bool) if there_QN is None else there_QN
    if not scores_QN.shape == relevance_QN.shape == there_QN.shape:
        raise ValueError(f"scores {scores_QN.shape}, relevance {relevance_QN.shape} and there {there_QN.shape} differ")
    return [
        _one(kind, int(k) if k else None, scores[there], relevance[there])
        for scores, relevance, there in zip(scores_QN, relevance_QN, there_QN, strict=True)
        if (relevance[there] > 0).any()
    ]


def _one(kind: str, k: int | None, scores_N: np.ndarray, relevance_N: np.ndarray) -> float:
    if kind == "ndcg":
        from sklearn.metrics import ndcg_score  # imported here: training need not wait for it

        # of a single candidate there is one order, which scikit-learn refuses to score
        return 1.0 if len(scores_N) == 1 else float(ndcg_score(np.maximum(relevance_N, 0)[None], scores_N[None], k=k))
    relevant_N = relevance_N > 0
    places = np.flatnonzero(relevant_N[np.lexsort((relevant_N, -scores_N))]) + 1
    if k is not None:
        places = places[places <= k]
    if kind == "recall":
        return len(places) / int(relevant_N.sum())
    return 1 / int(places[0]) if len(places) else 0.0


def table(queries: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """(there, *values) as [Q, N] each: of flat arrays [n], a row for each query and a place for each candidate."""
    _, query = np.unique(queries, axis=0, return_inverse=True)
    query = query.reshape(-1)
    order = np.argsort(query, kind="stable")
    counts = np.bincount(query)
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    out = []
    for x in (np.ones(len(query), bool), *values):
        laid = np.zeros((len(counts), counts.max(initial=0)), x.dtype)
        laid[query[order], place] = x[order]
        out.append(laid)
    return tuple(out)
