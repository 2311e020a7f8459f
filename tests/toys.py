"""Objectives that no issue has asked for yet, to drive what they will need: `join`, `after`, frozen and viewed keys."""

import jax
import jax.numpy as jnp

from model import ops
from model.heads import pool, present
from model.types import Backbone
from objectives.types import Objective, Ratio, Sums, Term, Vocab


def contrast(backbone: Backbone, vocab: Vocab, *, temperature: float = 0.1, name: str = "contrast") -> Objective:
    """Two dropout views of every segment are each other's positives among all the batch's (SimCSE)."""

    def loss(params, encode, batch, key, step):
        views = [
            pool(encode(batch, None if key is None else key + jnp.uint32(v)).hidden, batch, "mean") for v in (1, 2)
        ]
        return jnp.stack(views, 2) * params[name]["gain"].reshape(1, 1, 1, -1)  # [B, S, 2, D]

    def join(params, outputs, batch):
        D = outputs.shape[-1]
        a, b = (outputs[:, :, v].reshape(-1, D) for v in (0, 1))
        there = present(batch).reshape(-1)
        scores = a @ b.T / temperature * jnp.exp(params[name]["sharpness"])
        scores = jnp.where(there[None] > 0, scores, -1e9)
        nll, hit = ops.cross_entropy(scores, jnp.arange(len(there)))
        return Sums(
            {name: Term((nll * there).sum(), there.sum())}, {"retrieved": Ratio((hit * there).sum(), there.sum())}
        )

    def init(key):
        return {"gain": jnp.ones(backbone.config.D, backbone.config.param_dtype), "sharpness": jnp.zeros(())}

    axes = {"gain": ("embed",), "sharpness": ()}
    return Objective(name, loss, lambda *a: {}, init, axes, join=join)


def teacher(backbone: Backbone, vocab: Vocab, *, decay: float = 0.9, name: str = "teacher") -> Objective:
    """Mean squared distance to an exponential moving average of the backbone, which is a frozen key of the tree."""

    def loss(params, encode, batch, key, step):
        target = jax.lax.stop_gradient(backbone.encode(params[name], batch).hidden)
        error = ((encode(batch, key).hidden - target) ** 2).mean(-1)
        weight = (batch["segments"] > 0).astype(error.dtype)
        return Sums(
            {
                name: Term((error * weight).sum(), weight.sum(), 2.0),
                "half": Term(0.25 * (error * weight).sum(), weight.sum()),
            }
        )

    def after(params, step):
        moved = jax.tree.map(lambda t, b: decay * t + (1 - decay) * b, params[name], params["backbone"])
        return params | {name: moved}

    return Objective(name, loss, lambda *a: {}, backbone.init, backbone.axes, after=after)
