"""Numerical parts with gradients written for speed: bias, scale, norms' statistics, and cross-entropy.

XLA reduces over rows slowly on CPUs, so the gradient of a bias or a scale is a product with a vector of ones.
All of it is exact; reductions are in float32 at least.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def wide(x: Array) -> Array:
    """x in float32, or as it is where it is wider: what softmax, norms and losses compute in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def take(x: jax.typing.ArrayLike, *index: Array) -> Array:
    """x[index], for indices known to be from 0 to below the axis: no code for what else they might be."""
    return jnp.asarray(x).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def pick(x: Array, at: Array | None) -> Array:
    """x [B, L, ...] at the places `at` int [B, P] of each row: [B, P, ...]. None picks all."""
    return x if at is None else take(x, jnp.arange(len(x))[:, None], at)


def without(logits: Array, absent_V: np.ndarray) -> Array:
    """logits [..., V] with the least number there is for the ids that `absent_V` bool [V] tells: no probability."""
    if not absent_V.any():
        return logits
    absent = absent_V.reshape((1,) * (logits.ndim - 1) + absent_V.shape)
    return jnp.where(absent, jnp.finfo(logits.dtype).min, logits)


def gelu(x: Array) -> Array:
    """x Phi(x), Phi the normal distribution (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415), exact."""
    return x * (0.5 * (1 + jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype))))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": jax.nn.gelu,  # approximate
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def _column_sum(g: Array, like: Array) -> Array:
    """Sums g over all but the trailing axes, `like.ndim` of them."""
    rows = g.reshape(-1, like.size)
    # one row of ones would do, but on CPUs XLA compiles a kernel for each product with a vector, and none for two rows,
    # which are as fast but over a vocabulary
    ones = jnp.ones((2 if like.size < 8192 else 1, rows.shape[0]), rows.dtype)
    out = jax.lax.dot(ones, rows, precision="highest", preferred_element_type=wide(jnp.zeros((), g.dtype)).dtype)
    return out[0].reshape(like.shape).astype(like.dtype)


def _like(v: Array, x: Array) -> Array:
    """v with leading axes of length one, as many as x has axes."""
    return v.reshape((1,) * (x.ndim - v.ndim) + v.shape)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """x + bias, where bias spans the trailing axes of x."""
    return x + _like(bias, x)


add_bias.defvjp(lambda x, bias: (x + _like(bias, x), bias), lambda bias, g: (g, _column_sum(g, bias)))


@jax.custom_vjp
def scale(x: Array, gain: Array) -> Array:
    """x * gain, where gain spans the trailing axes of x."""
    return x * _like(gain, x)


scale.defvjp(
    lambda x, gain: (x * _like(gain, x), (x, gain)),
    lambda r, g: (g * _like(r[1], g), _column_sum(g * r[0], r[1])),
)


_FEW = 4096  # labels, fewer than of a vocabulary


@jax.custom_vjp
def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """logits [..., V], labels int [...] -> -log softmax(logits)[label], and 1.0 where the label scores highest.

    Both in float32. Of n labels that score highest alike, as they do at times in bfloat16, and all of a few of which a
    head has learned nothing, each has 1 / n. A label that there is not is nan. Keeps the logits and one number a row
    for the backward pass, never a second array of size V.
    """
    return _cross_entropy(logits, labels)[0]


def _cross_entropy(logits: Array, labels: Array):
    logits32 = wide(jnp.asarray(logits))
    top = logits32.max(-1)
    normalizer = top + jnp.log(jnp.exp(logits32 - top[..., None]).sum(-1))
    at = (*jnp.indices(labels.shape, sparse=True), labels)
    picked = logits32.at[at].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    hit = (picked >= top).astype(picked.dtype)
    # alike by chance, one in thirty of a vocabulary in bfloat16, or because all are: to count takes a pass
    if logits.dtype.itemsize < 4 or logits.shape[-1] <= _FEW:
        hit = hit / (logits32 == top[..., None]).sum(-1, dtype=hit.dtype)
    return (normalizer - picked, hit), (logits, normalizer, labels)


def _cross_entropy_grad(residual, cotangents):
    logits, normalizer, labels = residual
    p = jnp.exp(wide(logits) - normalizer[..., None])
    hit = jax.lax.broadcasted_iota(labels.dtype, p.shape, p.ndim - 1) == labels[..., None]
    return (jnp.where(hit, p - 1, p) * cotangents[0][..., None]).astype(logits.dtype), None


cross_entropy.defvjp(_cross_entropy, _cross_entropy_grad)
