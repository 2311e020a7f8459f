"""Groups of a row's segments, as `train.data.groups:text_groups` marks them by `group` int [B, S] (0: no segment)."""

from collections.abc import Sequence

import jax.numpy as jnp

from model.types import Array, Batch


def together(batch: Batch) -> Array:
    """bool [B, S, S]: whether two segments of a row are of one group."""
    group_BS = batch["group"]
    return (group_BS[:, :, None] == group_BS[:, None, :]) & (group_BS > 0)[:, :, None]


def leaders(batch: Batch) -> Array:
    """int32 [B, S]: where the first segment of each one's group lies; 0 for the empty places."""
    return together(batch).argmax(-1).astype(jnp.int32)


CORPUS = "corpus_"  # before a score of rankings of the whole data set
RANKINGS, _CORRELATIONS = ("recall", "ndcg", "mrr"), ("pearson", "spearman")


def check_scores(name: str, scores: Sequence[str]) -> None:
    """Raises ValueError for scores that are neither of rankings nor correlations: numbers have no others."""
    if isinstance(scores, str):
        raise ValueError(f"{name} scores={scores!r}: expected a tuple of names, as ({scores!r},)")
    for score in scores:
        kind = score.removeprefix(CORPUS).partition("@")[0]
        if kind not in RANKINGS and score not in _CORRELATIONS:
            raise ValueError(
                f"{name} scores={tuple(scores)}: {score!r} is none that a number for each candidate has; there are "
                f"{', '.join((*_CORRELATIONS, *RANKINGS))}, as in ndcg@10"
            )
