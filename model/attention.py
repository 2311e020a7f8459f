"""Attention that honours packed segments, `reach` and windows: one function, global or in blocks.

A view says what each query may see. It is made once for all the layers of a kind. A local layer whose rows are longer
than its window attends block by block: a block of queries against its own and the two neighbouring blocks of keys,
so that cost is linear in length. Both forms give the same numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import ops, random

Array = jax.Array
_HIDDEN = -1e9  # finite, so that a padding row, which sees nothing, has a softmax and no nan


class Apart(NamedTuple):
    """bucket int32 [G, Q, K], the one of the distance from query to key, and the buckets' embedding [R, D]."""

    bucket: Array
    embedded: Array


class View(NamedTuple):
    """What queries see, in G = B groups of all queries and keys, or G = B * blocks.

    bias:           [G, 1 or N, Q, K], added to the scores: 0 or -1e9, and what a relative bias makes of it
    distance:       int32 [G, Q, K], the query's position less the key's
    query_ids:      uint32 [G, Q], and
    key_positions:  int32 [G, K], which dropout draws by
    rope:           cos and sin [B, L, 1, H], or None, and
    query_rope:     the queries'
    block:          a block's queries, None where attention is dense
    apart:          what disentangled attention reads, or None
    """

    bias: Array
    distance: Array
    query_ids: Array
    key_positions: Array
    rope: tuple[Array, Array] | None
    query_rope: tuple[Array, Array] | None
    block: int | None
    apart: Apart | None = None


def view(
    batch: dict,
    ids_BL: Array,
    *,
    window: int | None,
    theta: float | None,
    H: int,
    dense: bool = False,
    at: Array | None = None,
) -> View:
    """What queries see: keys of their own segment, up to `reach`, at most window // 2 away where a window is given.

    at: [B, P], the places of the queries; None for all. Where attention goes by blocks, all.
    """
    positions, segments = batch["positions"], batch["segments"]
    side = None if window is None else window // 2
    length = segments.shape[1]
    block = side if side and not dense and length > 2 * side else None
    keys = {"segments": segments, "positions": positions}
    queries = {"reach": batch["reach"]} | keys if "reach" in batch else keys
    if block is None:
        queries, ids_GQ = jax.tree.map(lambda x: ops.pick(x, at), (queries, ids_BL))
    else:
        queries = {name: _queries(x, block) for name, x in queries.items()}
        ids_GQ, keys = _queries(ids_BL, block), {name: _keys(x, block) for name, x in keys.items()}
    sees = _same(queries["segments"], keys["segments"])
    distance = queries["positions"][:, :, None] - keys["positions"][:, None, :]
    if side is not None:
        sees &= abs(distance) <= side
    if "reach" in queries:
        sees &= keys["positions"][:, None, :] <= queries["reach"][:, :, None]
    rope = query_rope = None if theta is None else _angles(positions, theta, H)
    if rope is not None and block is None:
        query_rope = ops.pick(rope[0], at), ops.pick(rope[1], at)
    return View(jnp.where(sees, 0.0, _HIDDEN)[:, None], distance, ids_GQ, keys["positions"], rope, query_rope, block)


def across(queries: dict, ids_BQ: Array, keys: dict) -> View:
    """What the tokens of one batch see of another: those of the segment of their own number, near and far alike."""
    distance = queries["positions"][:, :, None] - keys["positions"][:, None, :]
    bias = jnp.where(_same(queries["segments"], keys["segments"]), 0.0, _HIDDEN)[:, None]
    return View(bias, distance, ids_BQ, keys["positions"], None, None, None)


def _same(queries_GQ: Array, keys_GK: Array) -> Array:
    return (queries_GQ[:, :, None] == keys_GK[:, None, :]) & (keys_GK[:, None, :] > 0)


def attend(
    q_BQNH: Array,
    k_BLNH: Array,
    v_BLNH: Array,
    view: View,
    *,
    scale: float | None = None,
    more: Array | None = None,
    rate: float = 0.0,
    key: Array | None = None,
) -> tuple[Array, Array]:
    """softmax(scale (q k + more) + bias) v, dropout at `rate` on the probabilities -> [B, Q, N, H] and probabilities.

    scale: None for 1 / sqrt(H)
    more:  [G, N, Q, K] or None, such as of `disentangled`
    """
    B, Q, N, H = q_BQNH.shape
    scale = H**-0.5 if scale is None else scale
    if view.rope is not None and view.query_rope is not None:
        q_BQNH, k_BLNH = _rotate(q_BQNH, *view.query_rope), _rotate(k_BLNH, *view.rope)
    q = q_BQNH * jnp.asarray(scale, q_BQNH.dtype)
    if view.block:
        q, k, v = _queries(q, view.block), _keys(k_BLNH, view.block), _keys(v_BLNH, view.block)
    else:
        k, v = k_BLNH, v_BLNH
    scores = ops.wide(jnp.einsum("GQNH,GKNH->GNQK", q, k))
    if more is not None:
        scores = scores + ops.wide(more) * scale
    scores = scores + view.bias.astype(scores.dtype)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    probs = (weights / weights.sum(-1, keepdims=True)).astype(v.dtype)
    used = probs
    if key is not None and rate:
        kept = random.keep_pairs(key, view.query_ids, view.key_positions, N, rate)
        used = jnp.where(kept, probs * jnp.asarray(1 / (1 - rate), probs.dtype), jnp.zeros((), probs.dtype))
    out = jnp.einsum("GNQK,GKNH->GQNH", used, v)
    return out.reshape(B, -1, N, H)[:, :Q], probs


def disentangled(q_BQNH: Array, k_BKNH: Array, q_RNH: Array, k_RNH: Array, bucket_BQK: Array) -> Array:
    """Scores [B, N, Q, K] of contents with distances: q to what is embedded of a distance as a key, and k as a query.

    The second and third term of equation 4 of https://arxiv.org/abs/2006.03654.
    """
    by_query = jnp.einsum("BQNH,RNH->BNQR", q_BQNH, k_RNH)
    by_key = jnp.einsum("BKNH,RNH->BNKR", k_BKNH, q_RNH)
    by_query = jnp.take_along_axis(by_query, bucket_BQK[:, None], -1)
    by_key = jnp.take_along_axis(by_key, bucket_BQK.swapaxes(1, 2)[:, None], -1)
    return by_query + by_key.swapaxes(2, 3)


def _queries(x: Array, block: int) -> Array:
    """[B, L, ...] -> [B * blocks, block, ...], the last block filled with zeros (segment 0 sees nothing)."""
    B, L = x.shape[:2]
    n = -(-L // block)
    x = jnp.pad(x, [(0, 0), (0, n * block - L)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(B * n, block, *x.shape[2:])


def _keys(x: Array, block: int) -> Array:
    """[B, L, ...] -> [B * blocks, 3 * block, ...]: the blocks before, at and after each block of queries."""
    B, L = x.shape[:2]
    n = -(-L // block)
    x = jnp.pad(x, [(0, 0), (block, (n + 1) * block - L)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(B, n + 2, block, *x.shape[2:])
    x = jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)
    return x.reshape(B * n, 3 * block, *x.shape[3:])


def _angles(positions_BL: Array, theta: float, H: int) -> tuple[Array, Array]:
    frequency = theta ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    angle = positions_BL[..., None].astype(jnp.float32) * frequency[None, None]
    angle_BL1H = jnp.concatenate([angle, angle], -1)[:, :, None, :]
    return jnp.cos(angle_BL1H), jnp.sin(angle_BL1H)


def _rotate(x_BLNH: Array, cos: Array, sin: Array) -> Array:
    first, second = jnp.split(ops.wide(x_BLNH), 2, -1)
    turned = jnp.concatenate([-second, first], -1)
    return (ops.wide(x_BLNH) * cos + turned * sin).astype(x_BLNH.dtype)
