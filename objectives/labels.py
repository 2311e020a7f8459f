"""Labels of segments, and whether they are of the kind that an objective reads."""

import jax.numpy as jnp

from model.types import Batch
from objectives.types import Array


def classes_of(batch: Batch, name: str, several: int | None = None) -> Array:
    """The batch's `labels`: int [B, S], a class each; or int [B, S, several], 0 or 1 for each class.

    Raises ValueError, while tracing, for labels of another kind.
    """
    labels = batch["labels"]
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{name} reads classes, and these labels are numbers ({labels.dtype}): give the data classes=(...), or "
            "take objectives.regress"
        )
    if labels.ndim != 2 + (several is not None):
        one, many = "a class each", "any number of classes (a separator is set)"
        found, wanted = (one, many) if labels.ndim == 2 else (many, one)
        raise ValueError(
            f"{name} reads {wanted}, and these labels are {found}: objectives.classify has classify and multilabel, "
            "and train.data.rows:label_examples a separator"
        )
    if several is not None and labels.shape[-1] != several:
        raise ValueError(f"{name} has classes={several}, and these labels are of {labels.shape[-1]}")
    return labels


def numbers_of(batch: Batch, name: str) -> Array:
    """The batch's `labels`, float [B, S]. Raises ValueError, while tracing, for labels of another kind."""
    labels = batch["labels"]
    if not jnp.issubdtype(labels.dtype, jnp.floating) or labels.ndim != 2:
        raise ValueError(
            f"{name} reads a number each, and these labels are classes ({labels.dtype}{list(labels.shape)}): leave out "
            f"the data's classes, or take objectives.classify"
        )
    return labels
