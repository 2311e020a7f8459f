"""Random numbers as a hash of who and what they are for: (seed, step, example, position in its segment, site).

A draw never depends on a place in the batch, so a mask or a dropped unit is the same on any mesh, under any number
of microbatches and however the same segments are packed. A key is a uint32 scalar, deliberately not one of
`jax.random`'s: those draw by place. The mixing function is the 32-bit finaliser "lowbias32" found by C. Wellons'
search (https://nullprogram.com/blog/2018/07/31/), a handful of integer operations that fuse into their consumer.

    key = random.fold(random.key(0), step)
    ids_L = random.tokens(row)                                 # who: each token
    u_L = random.uniform(random.fold(key, "mask"), ids_L)      # what for: the site is named
"""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

Array = jax.Array
# constants are numpy's: what is known while tracing is computed on the host, and is no program on a device
_GOLDEN = np.uint32(0x9E3779B9)  # 2**32 / golden ratio: successive multiples spread evenly
_START = np.uint32(0x243F6A88)


def _mix(x: Any) -> Any:
    return _mix_traced(x) if isinstance(x, Array) else _mix_known(x)


def _mix_known(x: Any) -> Any:
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


_mix_traced = jax.jit(_mix_known, inline=True)  # traced once for each shape


def key(seed: int) -> Array:
    """The key of a run. Raises ValueError for a seed that is not of 32 bits, of which another would have the draws."""
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: expected a whole number from 0 to 2**32 - 1")
    return fold(_START, seed)


def fold(key: Any, *data: Array | int | str) -> Array:
    """A new key from a key and what it is for: names of sites, a step, a layer, ids. Arrays broadcast."""
    with np.errstate(over="ignore"):  # modulo 2**32
        for d in data:
            word: Any = zlib.crc32(d.encode()) if isinstance(d, str) else d
            word = np.uint32(word & 0xFFFFFFFF) if isinstance(word, int) else word.astype(jnp.uint32)
            key = _mix(key + _mix(word * _GOLDEN + np.uint32(1)))
    return key


def view(key: Array | None, number: int) -> Array | None:
    """The key of a dropout view of a text by its number: 0 is the key itself, whose pass objectives of a mixture share;
    each other is a pass with other units dropped. None, as in evaluation, drops nothing, and all views are alike.
    """
    return key if key is None or number == 0 else fold(key, "view", number)


def segments(row: dict) -> Array:
    """uint32 [..., S]: the identity of each packed segment, from `example` [..., S, 2]."""
    return fold(np.uint32(0), row["example"][..., 0], row["example"][..., 1])


def tokens(row: dict) -> Array:
    """uint32 [..., L]: the identity of each token, from its segment's example and its position there."""
    index = jnp.maximum(row["segments"] - 1, 0)
    return fold(jnp.take_along_axis(segments(row), index, axis=-1), row["positions"])


def _draw(key: Array, ids: Array) -> Array:
    """uint32, one for each id: what both hash to already needs no more than one mixing."""
    return _mix(key + ids)


def uniform(key: Array, ids: Array) -> Array:
    """float32 in [0, 1), one for each id."""
    return (_draw(key, ids) >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def integers(key: Array, ids: Array, bound: int) -> Array:
    """int32 in [0, bound), one for each id; off uniform by at most bound / 2**32."""
    return (_draw(key, ids) % np.uint32(bound)).astype(jnp.int32)


def gumbel(key: Array, ids: Array, n: int) -> Array:
    """float32 [*ids, n]: draws g such that argmax(logits + g) is a sample of softmax(logits) (Gumbel's maximum)."""
    channel = jax.lax.broadcasted_iota(jnp.uint32, (1,) * ids.ndim + (n,), ids.ndim) * _GOLDEN
    draw = _draw(_draw(key, ids)[..., None], channel)
    inside = ((draw >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2**-23)  # neither 0 nor 1
    return -jnp.log(-jnp.log(inside))


def keep(key: Array, ids: Array, n: int, rate: float) -> Array:
    """bool [*ids, n]: which of a token's n channels dropout at `rate` keeps."""
    channel = jax.lax.broadcasted_iota(jnp.uint32, (1,) * ids.ndim + (n,), ids.ndim) * _GOLDEN
    return _draw(_draw(key, ids)[..., None], channel) < np.uint32(int((1 - rate) * 2**32))


def keep_pairs(key: Array, query_ids: Array, key_positions: Array, heads: int, rate: float) -> Array:
    """bool [B, heads, Q, K]: which attention probabilities dropout at `rate` keeps.

    query_ids uint32 [B, Q]; key_positions int32 [B, K], positions in the segment that query and key share.
    """
    head = fold(key, jax.lax.iota(jnp.uint32, heads))[None, :, None]
    channel = key_positions[:, None, None, :].astype(jnp.uint32) * _GOLDEN
    return _draw(_draw(head, query_ids[:, None, :])[..., None], channel) < np.uint32(int((1 - rate) * 2**32))


def dropout(x: Array, rate: float, key: Array | None, ids: Array) -> Array:
    """Zeroes channels of x [*ids, n] at `rate` and scales the rest; `key=None` leaves x as it is."""
    if key is None or rate == 0:
        return x
    return jnp.where(
        keep(key, ids, x.shape[-1], rate), x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype)
    )


def generator(seed: int) -> Array:
    """A key for `jax.random`'s functions (initializers) that draws by the same hash: small, quick to compile."""
    return jax.random.wrap_key_data(key(seed)[None], impl=_IMPL)


def _bits(key_1: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    n = math.prod(shape)
    counter = jax.lax.iota(jnp.uint32, n).reshape(shape) * _GOLDEN

    def words(site: str) -> Array:
        # mixed twice, by two words of the key: after one mixing all streams are parts of one cycle of 2**32 numbers,
        # and of a large model's leaves some would share theirs
        return _mix(_mix(fold(key_1[0], site) + counter) + fold(key_1[0], site, "again"))

    low = words("bits")
    if bit_width == 64:
        return low.astype(jnp.uint64) << 32 | words("high bits").astype(jnp.uint64)
    return low if bit_width == 32 else low.astype(jnp.dtype(f"uint{bit_width}"))


_IMPL = define_prng_impl(
    key_shape=(1,),
    seed=lambda seed: fold(_START, seed)[None],
    split=lambda key, shape: fold(key[0], "split", jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape))[
        ..., None
    ],
    random_bits=_bits,
    fold_in=lambda key, data: fold(key[0], data)[None],
    name="rootstock_hash",
    tag="hash",
)
