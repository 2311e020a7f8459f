"""Floating-point operations, counted from the traced program: every matrix product, scanned bodies as often as run."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from model import random
from model.types import Backbone, Batch
from objectives.types import Objective

# dense peak of one device by its kind and the computation's dtype, FLOP/s, from the vendors' data sheets
PEAKS = {
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},  # v5p, by either name
    "TPU v6 lite": {"bfloat16": 918e12},
    "NVIDIA A100": {"bfloat16": 312e12, "float32": 19.5e12},
    "NVIDIA H100": {"bfloat16": 989e12, "float32": 67e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 67e12},
}


def peak(device_kind: str, dtype: str) -> float | None:
    """Peak FLOP/s of a device, None where it is not known."""
    return next((by[dtype] for kind, by in PEAKS.items() if device_kind.startswith(kind) and dtype in by), None)


def of(fn, *args: Any) -> int:
    """Operations in the matrix products of fn(*args), two for each multiply-add. Nothing is run."""
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    read, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # what nobody reads the compiler drops
    return _count(read)


def of_loss(backbone: Backbone, objective: Objective, params: Any, batch: Batch, view=lambda params: params) -> int:
    """Model FLOPs of a training step: three times those of the loss's forward pass, recomputation not counted.

    What no gradient passes, as a teacher, is counted three times all the same. Of branches the mean is counted: right
    for two objectives of a mixture that alternate evenly, too much for more.
    """

    def forward(params, batch):
        key, step = random.key(0), jnp.int32(0)
        batch = jax.vmap(lambda row: objective.corrupt(key, row, step))(batch)
        params = objective.view(view(params))
        out = objective.loss(params, partial(backbone.encode, params["backbone"]), batch, key, step)
        return out if objective.join is None else objective.join(params, out, batch)

    return 3 * of(forward, params, dict(batch))


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            left: Any = eqn.invars[0].aval
            inner = np.prod([left.shape[i] for i in contract], dtype=np.int64)
            out: Any = eqn.outvars[0].aval
            total += int(2 * inner * np.prod(out.shape, dtype=np.int64))
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        inner_counts = [_count(jaxpr) for jaxpr in _inner(eqn)]
        if eqn.primitive.name == "cond" and inner_counts:  # one of its branches is run, nobody knows which
            total += sum(inner_counts) // len(inner_counts)
        else:
            total += times * sum(inner_counts)
    return total


def _inner(eqn) -> list[core.Jaxpr]:
    found = []
    for value in eqn.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, core.ClosedJaxpr):
                found.append(x.jaxpr)
            elif isinstance(x, core.Jaxpr):
                found.append(x)
    return found
