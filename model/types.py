"""What the model takes and gives: the batch, the encoder's output, and the backbone as a tuple of pure functions.

A batch is a plain dict of arrays (B rows, L tokens, S packed segments):

    tokens     int32  [B, L]
    segments   int32  [B, L]     0 is padding, 1..S the packed sequence a token belongs to
    positions  int32  [B, L]     restart at 0 in every segment
    example    uint32 [B, S, 2]  who the s-th segment is: (source, index); every random draw hangs on it
    types      int32  [B, L]     optional: which text of a pair a token belongs to
    reach      int32  [B, L]     optional: the last position a query may see; absent means the whole segment
    tags       int32  [B, L]     optional: 1 + the class of each token that has one, 0 for none
    labels     [B, S, ...]       optional: what the task needs
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

if TYPE_CHECKING:
    from model.config import BackboneConfig

Array = jax.Array
Batch = Mapping[str, Any]  # arrays by name; an objective may nest a dict of its own under its name
Params = dict[str, Any]


class Encoded(NamedTuple):
    """`hidden` [B, L, D]; `captured` arrays asked for by name; `cache` is there for decoders."""

    hidden: Array
    captured: dict[str, Array] = {}  # noqa: RUF012  (a NamedTuple default, never mutated)
    cache: Any = None


class Backbone(NamedTuple):
    """A Transformer as pure functions, made by `model.backbone.backbone(config)`.

    init:    key -> params, a plain dict of arrays
    encode:  (params, batch, key=None, *, inputs=None, capture=(), at=None) -> Encoded; `key=None` turns dropout off,
             and of places `at` int32 [B, P] `hidden` is [B, P, D]
    axes:    logical axis names, the same tree as params with a tuple of names for each leaf
    config:  the frozen, validated config
    constrain: places an activation by its logical axis names, as `model.backbone.backbone` was given it: for what an
             objective builds beside, a decoder or a generator
    """

    init: Callable[..., Params]
    encode: Callable[..., Encoded]
    axes: Any
    config: "BackboneConfig"
    constrain: Callable[[Array, tuple[str, ...]], Array]
