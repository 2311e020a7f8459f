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


class View(NamedTuple):
    """bias [G, 1, Q, K] (0 or -1e9), query_ids uint32 [G, Q], key_positions int32 [G, K] for dropout, cos and sin
    [B, L, 1, H] of RoPE or None, and the block's length, None where attention is dense (G is then B, else B * blocks).
    """

    bias: Array
    query_ids: Array
    key_positions: Array
    rope: tuple[Array, Array] | None
    block: int | None


def view(batch: dict, ids_BL: Array, *, window: int | None, theta: float | None, H: int, dense: bool = False) -> View:
    """What queries see: keys of their own segment, up to `reach`, at most window // 2 away where a window is given."""
    positions, segments = batch["positions"], batch["segments"]
    side = None if window is None else window // 2
    length = segments.shape[1]
    block = side if side and not dense and length > 2 * side else None
    keys = {"segments": segments, "positions": positions}
    queries = {"reach": batch["reach"]} | keys if "reach" in batch else keys
    ids_GQ = ids_BL
    if block:
        queries = {name: _queries(x, block) for name, x in queries.items()}
        ids_GQ, keys = _queries(ids_BL, block), {name: _keys(x, block) for name, x in keys.items()}
    sees = queries["segments"][:, :, None] == keys["segments"][:, None, :]
    sees &= keys["segments"][:, None, :] > 0
    distance = queries["positions"][:, :, None] - keys["positions"][:, None, :]
    if side is not None:
        sees &= abs(distance) <= side
    if "reach" in queries:
        sees &= keys["positions"][:, None, :] <= queries["reach"][:, :, None]
    rope = None if theta is None else _angles(positions, theta, H)
    return View(jnp.where(sees, 0.0, _HIDDEN)[:, None], ids_GQ, keys["positions"], rope, block)


def attend(
    q_BLNH: Array, k_BLNH: Array, v_BLNH: Array, view: View, *, rate: float = 0.0, key: Array | None = None
) -> tuple[Array, Array]:
    """softmax(q k / sqrt(H) + bias) v, dropout at `rate` on the probabilities -> [B, L, N, H] and probabilities."""
    B, L, N, H = q_BLNH.shape
    if view.rope is not None:
        q_BLNH, k_BLNH = (_rotate(x, *view.rope) for x in (q_BLNH, k_BLNH))
    q = q_BLNH * jnp.asarray(H**-0.5, q_BLNH.dtype)
    if view.block:
        q, k, v = _queries(q, view.block), _keys(k_BLNH, view.block), _keys(v_BLNH, view.block)
    else:
        k, v = k_BLNH, v_BLNH
    scores = ops.wide(jnp.einsum("GQNH,GKNH->GNQK", q, k))
    scores = scores + view.bias.astype(scores.dtype)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    probs = (weights / weights.sum(-1, keepdims=True)).astype(v.dtype)
    used = probs
    if key is not None and rate:
        kept = random.keep_pairs(key, view.query_ids, view.key_positions, N, rate)
        used = jnp.where(kept, probs * jnp.asarray(1 / (1 - rate), probs.dtype), jnp.zeros((), probs.dtype))
    out = jnp.einsum("GNQK,GKNH->GQNH", used, v)
    return out.reshape(B, -1, N, H)[:, :L], probs


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
