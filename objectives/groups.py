"""Groups of a row's segments, as `train.data.groups:text_groups` marks them by `group` int [B, S] (0: no segment)."""

import jax.numpy as jnp

from model.types import Array, Batch


def together(batch: Batch) -> Array:
    """bool [B, S, S]: whether two segments of a row are of one group."""
    group_BS = batch["group"]
    return (group_BS[:, :, None] == group_BS[:, None, :]) & (group_BS > 0)[:, :, None]


def leaders(batch: Batch) -> Array:
    """int32 [B, S]: where the first segment of each one's group lies; 0 for the empty places."""
    return together(batch).argmax(-1).astype(jnp.int32)
