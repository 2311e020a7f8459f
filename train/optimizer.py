"""Optimizers from optax, made for our trees: decay by path, rates by path, stacked layers each on their own.

Every factory takes `axes` (logical names, the tree of the learned params) and the schedule, and gives a
`optax.GradientTransformation`. What they share:

    clip:      the gradient's global norm is cut to this; None for no clipping
    no_decay:  patterns of paths that weight decay leaves alone (see `train.tree`)
    rates:     rules that multiply the learning rate, by path; a value may be one number a layer
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from train import tree

Transform: TypeAlias = optax.GradientTransformation
NO_DECAY = (".*/bias", ".*/scale")
# axes along which a leaf holds several matrices, each an object of its own to LAMB and Muon
_UNITS = ("layers", "parts")


def adamw(
    axes: Any, schedule: Callable, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
    weight_decay: float = 0.01, clip: float | None = 1.0, no_decay: Sequence[str] = NO_DECAY, rates: tree.Rules = (),
) -> Transform:  # fmt: skip
    """Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101."""
    decay = _decay(weight_decay, no_decay)
    return _chain(clip, optax.scale_by_adam(b1, b2, eps), decay, schedule, rates)


def lamb(
    axes: Any, schedule: Callable, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6,
    weight_decay: float = 0.01, clip: float | None = 1.0, no_decay: Sequence[str] = NO_DECAY, rates: tree.Rules = (),
) -> Transform:  # fmt: skip
    """You et al. 2019, https://arxiv.org/abs/1904.00962, algorithm 2; one trust ratio for each layer's matrix."""
    inner = optax.chain(optax.scale_by_adam(b1, b2, eps), _decay(weight_decay, no_decay), _trust_ratio(axes))
    return _chain(clip, inner, optax.identity(), schedule, rates)


def lion(
    axes: Any, schedule: Callable, *, b1: float = 0.9, b2: float = 0.99,
    weight_decay: float = 0.1, clip: float | None = 1.0, no_decay: Sequence[str] = NO_DECAY, rates: tree.Rules = (),
) -> Transform:  # fmt: skip
    """Chen et al. 2023, https://arxiv.org/abs/2302.06675."""
    return _chain(clip, optax.scale_by_lion(b1, b2), _decay(weight_decay, no_decay), schedule, rates)


def adafactor(
    axes: Any, schedule: Callable, *, decay_rate: float = 0.8, factor_from: int = 128,
    weight_decay: float = 0.0, clip: float | None = None, no_decay: Sequence[str] = NO_DECAY, rates: tree.Rules = (),
) -> Transform:  # fmt: skip
    """Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, algorithm 4, for each layer's matrix by itself; second
    moments are factored where rows and columns are `factor_from` and more.
    """
    inner = optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=factor_from),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    return _chain(clip, _by_matrix(inner, axes), _decay(weight_decay, no_decay), schedule, rates)


def muon(
    axes: Any, schedule: Callable, *, momentum: float = 0.95, steps: int = 5, b1: float = 0.9, b2: float = 0.999,
    eps: float = 1e-8, rms: float = 0.2, weight_decay: float = 0.1, clip: float | None = 1.0,
    no_decay: Sequence[str] = NO_DECAY, rates: tree.Rules = (),
) -> Transform:  # fmt: skip
    """Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, for the kernels of the layers; AdamW elsewhere.

    Updates are scaled by `rms` * sqrt(max(rows, columns)), so that both share one learning rate (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, section 2.2).
    """
    numbers = tree_of_matrices(axes)
    labels = jax.tree.map(lambda n: "adam" if n is None else "muon", numbers, is_leaf=_is_numbers)
    # as optax's partition shows Muon the tree: without the leaves that are Adam's
    numbers = jax.tree.map(lambda n: optax.MaskedNode() if n is None else n, numbers, is_leaf=_is_numbers)
    matrices = optax.chain(
        optax.contrib.scale_by_muon(ns_steps=steps, beta=momentum, weight_dimension_numbers=numbers),
        _by_shape(numbers, rms),
    )
    inner = optax.partition({"muon": matrices, "adam": optax.scale_by_adam(b1, b2, eps)}, labels)
    return _chain(clip, inner, _decay(weight_decay, no_decay), schedule, rates)


def _is_numbers(x: Any) -> bool:
    return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)


def tree_of_matrices(axes: Any) -> Any:
    """For each leaf the axes a matrix reads from and writes to, None where the leaf is no stack of layers' matrices."""

    return jax.tree.map(_matrix, axes, is_leaf=tree.is_axes)


def _matrix(names: tuple) -> optax.contrib.MuonDimensionNumbers | None:
    if "layers" not in names:
        return None
    inner = [i for i, n in enumerate(names) if n not in _UNITS]
    wide = [i for i in inner if names[i] == "embed"]
    if len(inner) < 2 or not wide:
        return None
    other = [i for i in inner if i not in wide]
    # the kernel's first axis is what it reads: embed for qkv and wi, heads or mlp for the maps back
    reads, writes = (wide, other) if inner[0] == wide[0] else (other, wide)
    return optax.contrib.MuonDimensionNumbers(tuple(reads), tuple(writes))


def _by_matrix(inner: Transform, axes: Any) -> Transform:
    """`inner` of each leaf by itself, and of a stack of layers' for each of them, matrices as such."""
    structure: Any = jax.tree.structure(axes, is_leaf=tree.is_axes)
    names = jax.tree.leaves(axes, is_leaf=tree.is_axes)

    def matrices(of: tuple, x: jax.Array) -> jax.Array:  # [units..., rows, columns]
        units, matrix = [i for i, n in enumerate(of) if n in _UNITS], _matrix(of)
        rest = [i for i in range(x.ndim) if i not in units]
        if matrix is None:
            return x.transpose(*units, *rest)
        reads, writes = matrix
        sizes = [math.prod(x.shape[i] for i in side) for side in (reads, writes)]
        return x.transpose(*units, *reads, *writes).reshape(*(x.shape[i] for i in units), *sizes)

    def each(f: Callable, of: tuple) -> Callable:
        for _ in [n for n in of if n in _UNITS]:
            f = jax.vmap(f)
        return f

    def flat(x: Any) -> list:
        return structure.flatten_up_to(x)

    def init(params: Any) -> Any:
        return structure.unflatten(
            [each(inner.init, of)(matrices(of, x)) for of, x in zip(names, flat(params), strict=True)]
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new, states = [], []
        for of, u, s, p in zip(names, flat(updates), flat(state), flat(params), strict=True):
            back = jax.linear_transpose(partial(matrices, of), u)
            made, kept = each(inner.update, of)(matrices(of, u), s, matrices(of, p))
            new.append(back(made)[0])
            states.append(kept)
        return structure.unflatten(new), structure.unflatten(states)

    return Transform(init, update)


def _by_shape(numbers: Any, rms: float) -> Transform:
    """Times rms * sqrt(max(rows, columns)) of each matrix: an orthogonal update then has entries of that size."""

    def scale(n, update):
        rows, columns = (math.prod(update.shape[i] for i in axes) for axes in (n.reduction_axis, n.output_axis))
        return update * (rms * math.sqrt(max(rows, columns)))

    return optax.stateless(lambda updates, params: jax.tree.map(scale, numbers, updates, is_leaf=_is_numbers))


def _chain(clip: float | None, inner: Transform, decay: Transform, schedule: Callable, rates: tree.Rules) -> Transform:
    if clip is not None and clip <= 0:
        raise ValueError(f"clip={clip} must be positive, or None for no clipping")
    first = [] if clip is None else [_clip(clip)]
    last = [_rates(rates)] if rates else []
    return optax.chain(*first, inner, decay, optax.scale_by_learning_rate(schedule), *last)


def _clip(limit: float) -> Transform:
    """The gradient times min(1, limit / its global norm). By one factor, unlike optax's: a product costs no pass."""

    def update(updates, params=None):
        factor = limit / jnp.maximum(optax.tree.norm(updates), limit)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)

    return optax.stateless(update)


def _decay(rate: float, no_decay: Sequence[str]) -> Transform:
    def mask(params):
        # of the usual patterns one may match nothing, as in a model without biases; of others it is misspelt
        patterns = [p for p in no_decay if p not in NO_DECAY or tree.matches(p, params)]
        return tree.resolve([(p, False) for p in patterns], params, True)

    return optax.add_decayed_weights(rate, mask) if rate else optax.identity()


def _rates(rules: tree.Rules) -> Transform:
    def scale(update, rate):
        rate = jnp.asarray(rate, update.dtype)
        return update * rate.reshape(rate.shape + (1,) * (update.ndim - rate.ndim))

    def update(updates, params=None):
        return jax.tree.map(scale, updates, tree.resolve(rules, updates, 1.0))

    return optax.stateless(update)


def _trust_ratio(axes: Any) -> Transform:
    """LAMB's ||param|| / ||update||, for each matrix of a stack by itself; 1 where either is zero."""

    def ratio(names, update, param):
        if update is None:
            return None
        own = tuple(i for i, n in enumerate(names) if n not in _UNITS)
        size = jnp.sqrt((param.astype(jnp.float32) ** 2).sum(own, keepdims=True))
        change = jnp.sqrt((update.astype(jnp.float32) ** 2).sum(own, keepdims=True))
        trust = jnp.where((size > 0) & (change > 0), size / jnp.where(change > 0, change, 1), 1.0)
        return update * trust.astype(update.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(ratio, axes, updates, params, is_leaf=tree.is_axes))
