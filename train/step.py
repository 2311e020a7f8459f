"""The one training step: corrupt, differentiate exactly whatever the number of microbatches, update."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from model import random
from model.types import Array, Backbone, Batch
from objectives import types
from objectives.types import Objective, Ratio, Sums
from train import tree
from train.state import TrainState


def identity(params: Any) -> Any:
    return params


def gradients(
    params: Any,
    batch: Batch,
    key: Array,
    step: Array,
    *,
    backbone: Backbone,
    objective: Objective,
    learned: Any,
    view: Callable[[Any], Any] = identity,
    microbatches: int = 1,
    constrain: Callable[[Array, tuple], Array] = lambda x, names: x,
) -> tuple[Any, Sums]:
    """Gradient of the whole batch's loss with respect to the learned leaves (None elsewhere), and its Sums.

    Exact under microbatching: a loss of sums s_i and weights W_i is `sum of c_i s_i / W_i` over the whole batch, so
    what each microbatch's outputs are worth is known before any is differentiated. The first pass computes those
    cotangents; where the objective has no `join` they depend on the weights alone, and the compiler drops the rest of
    the pass. The second pass pulls them back, one microbatch at a time. `join` makes the same two passes gradient
    caching.

    Args:
      batch: corrupted rows [B, ...]; microbatch m takes rows m, m + M, ..., so that no row changes device.
      view: a function of the tree, applied before it is used, and before the objective's own.
      constrain: places activations, see `model.backbone.backbone`.
    """
    M = microbatches
    learned_params, frozen_params = tree.split(params, learned)
    wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def seen(learned_params):
        return objective.view(view(tree.merge(learned_params, frozen_params, learned)))

    def rows_of(x):
        return constrain(x.reshape(-1, M, *x.shape[1:]).swapaxes(0, 1), (None, "batch"))

    def whole(x):
        return constrain(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), ("batch",))

    @partial(jax.jit, inline=True)  # traced once for the two passes
    def outputs(learned_params, rows):
        viewed = seen(learned_params)
        out = objective.loss(viewed, partial(backbone.encode, viewed["backbone"]), rows, key, step)
        return types.floats(out) if objective.join is None else out

    def total(learned_params, stacked):
        if objective.join is None:
            sums = types.add(stacked)
        else:
            sums = objective.join(seen(learned_params), jax.tree.map(whole, stacked), batch)
        return types.loss(sums), sums

    def forward(carry, rows):
        return carry, outputs(learned_params, rows)

    def backward(gradient, rows_and_cotangent):
        rows, cotangent = rows_and_cotangent
        out, pull = jax.vjp(lambda p: outputs(p, rows), learned_params)
        return jax.tree.map(jnp.add, gradient, pull(cotangent)[0]), out

    if M == 1:  # nothing is to be kept between passes, and one is enough
        alone = lambda p: total(p, jax.tree.map(lambda x: jnp.asarray(x)[None], outputs(p, dict(batch))))
        return jax.grad(alone, has_aux=True)(learned_params)
    microbatched = jax.tree.map(rows_of, dict(batch))
    _, first = jax.lax.scan(forward, None, microbatched)
    (direct, cotangents), _ = jax.grad(total, argnums=(0, 1), has_aux=True)(learned_params, first)
    # added in float32: in bfloat16 what one adds of many would be lost
    gradient, second = jax.lax.scan(backward, jax.tree.map(wide, direct), (microbatched, cotangents))
    gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, learned_params)
    return gradient, total(learned_params, second)[1]


def corrupted(batch: Batch, key: Array, step: Array, objective: Objective) -> Batch:
    """The whole batch as the objective makes it; `key` is the step's."""
    key = random.fold(key, "corrupt")
    return jax.vmap(lambda row: objective.corrupt(key, row, step))(dict(batch))


def step(
    state: TrainState,
    batch: Batch,
    key: Array,
    *,
    backbone: Backbone,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learned: Any,
    view: Callable[[Any], Any] = identity,
    microbatches: int = 1,
    constrain: Callable[[Array, tuple], Array] = lambda x, names: x,
) -> tuple[TrainState, Sums]:
    """One update. `key` is the run's (`model.random.key(seed)`); draws are by it and the step's number.

    The Sums' metrics gain `gradient_norm`, before clipping.
    """
    key = random.fold(key, state.step)
    gradient, sums = gradients(
        state.params, corrupted(batch, key, state.step, objective), key, state.step,
        backbone=backbone, objective=objective, learned=learned, view=view, microbatches=microbatches,
        constrain=constrain,
    )  # fmt: skip
    learned_params, frozen_params = tree.split(state.params, learned)
    updates, opt_state = optimizer.update(gradient, state.opt_state, learned_params)
    params = tree.merge(optax.apply_updates(learned_params, updates), frozen_params, learned)
    params = objective.after(params, state.step)
    norm = Ratio(optax.tree.norm(gradient), jnp.ones(()))
    return TrainState(state.step + 1, params, opt_state), sums._replace(metrics=sums.metrics | {"gradient_norm": norm})


def init(key: Array, *, backbone: Backbone, objective: Objective) -> Any:
    """A fresh params tree from one of `jax.random`'s keys."""
    own, backbone_key = jax.random.split(key)
    return {"backbone": backbone.init(backbone_key)} | _owned(objective, objective.init(own))


def axes(backbone: Backbone, objective: Objective) -> Any:
    """Logical axis names of that tree."""
    return {"backbone": backbone.axes} | _owned(objective, objective.axes)


def _owned(objective: Objective, made: Any) -> dict:
    """The keys of the tree that are the objective's; one without params has none."""
    return {k: v for k, v in (made if objective.parts else {objective.name: made}).items() if v}
