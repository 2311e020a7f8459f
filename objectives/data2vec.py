"""Predicting what a teacher, a moving average of the student, makes of hidden tokens where it sees the whole text."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from model import ops
from model.heads import pool, token_head
from model.types import Backbone
from objectives.hiding import hiding, original, spread, surplus_share
from objectives.masking import Rate
from objectives.types import Array, Objective, Sums, Term, Vocab

NORMS = ("layer", "instance")


def data2vec(
    backbone: Backbone,
    vocab: Vocab,
    *,
    top: int = 10,
    norm: str = "layer",
    beta: float | None = 4.0,
    decay: float = 0.999,
    final_decay: float = 0.9999,
    decay_steps: int = 100_000,
    rate: Rate = 0.15,
    mask: float = 0.8,
    replace: float = 0.1,
    choice: str = "exact",
    unit: str = "token",
    span: float = 3.0,
    ngrams: str | Sequence[Sequence[int]] | None = None,
    capacity: float | None = None,
    name: str = "data2vec",
) -> Objective:
    """At each hidden token two layers on the student's state against the mean of the teacher's top layers there
    (Baevski et al. 2022, https://arxiv.org/abs/2202.03555, sections 3.2 to 3.4). Of a layer it is what the feed-forward
    adds, before the sum with the stream: the best of the paper's target features, and what its authors' code has for
    text (fairseq, examples/data2vec). What leaves the layer holds the stream's embedding of the token as well.

    The teacher reads the text as it was, without dropout. It owns all leaves of a backbone but the embedding, which is
    the student's (section 3.2), under `{name}/teacher`: frozen leaves (`Objective.frozen`) that begin as the student,
    after what is carried, and after each update become tau * teacher + (1 - tau) * student, in float32 at least: where
    params are bfloat16, steps of a thousandth would be lost.

    Args:
      top: how many of the last layers are averaged.
      norm: of what each feed-forward adds, before these are averaged, without parameters: "layer" over a token's
        channels, or "instance" of each channel over the tokens of the segment (section 3.3).
      beta: of the smooth L1 loss, d**2 / (2 beta) for |d| <= beta and |d| - beta / 2 beyond; None for d**2. The loss
        of a token is the mean over channels.
      decay, final_decay, decay_steps: tau goes from `decay` to `final_decay` in a straight line over `decay_steps`.
      rate .. capacity: of what is hidden, see `objectives.mlm.mlm`.

    The metric `{name}_spread` is the targets' variance within a text, at most 1. Where it falls to 0 the teacher has
    collapsed, and the loss falls while nothing is learned; causes that the paper names are too large a learning rate,
    too short a warm-up and too low a `decay`.

    A corrupted row holds what `objectives.hiding.hiding` says. `predict` gives `prediction` float32 [B, L, D].
    Raises ValueError for more layers than there are, an unknown norm, decays outside [0, 1], and what hiding refuses.
    """
    cfg = backbone.config
    if not 1 <= top <= cfg.layers:
        raise ValueError(f"{name} top={top} must be from 1 to the backbone's {cfg.layers} layers")
    if norm not in NORMS:
        raise ValueError(f"{name} norm={norm!r} must be one of {', '.join(NORMS)}")
    if beta is not None and not beta > 0:
        raise ValueError(f"{name} beta={beta} must be positive, or None for the squared error")
    if not (0 <= decay <= 1 and 0 <= final_decay <= 1 and decay_steps >= 1):
        raise ValueError(
            f"{name} decay={decay} and final_decay={final_decay} must be between 0 and 1, and "
            f"decay_steps={decay_steps} above 0"
        )
    hide = hiding(name, vocab, rate=rate, mask=mask, replace=replace, choice=choice, unit=unit, span=span,
                  ngrams=ngrams, capacity=capacity)  # fmt: skip
    head = token_head(cfg, cfg.D, activation="gelu", dropout=0.0)

    def targets(params: dict, batch) -> Array:
        theirs = jax.lax.stop_gradient({"embed": params["backbone"]["embed"]} | params[name]["teacher"])
        whole = dict(batch) | {"tokens": original(batch, name)}
        layers_NBLD = backbone.encode(theirs, whole, capture=("mlp",)).captured["mlp"][-top:]
        return jnp.stack([_standard(ops.wide(x_BLD), whole, norm) for x_BLD in layers_NBLD]).mean(0)

    def loss(params: dict, encode, batch, key, step) -> Sums:
        mine = batch[name]
        found_BPD = head.apply(params[name]["head"], encode(batch, key, at=mine["index"]).hidden, batch)
        target_BLD = targets(params, batch)
        away_BPD = jnp.abs(found_BPD - ops.pick(target_BLD, mine["index"]))
        loss_BPD = away_BPD**2
        if beta is not None:
            loss_BPD = jnp.where(away_BPD <= beta, loss_BPD / (2 * beta), away_BPD - beta / 2)
        count = mine["weight"].sum()
        term = Term((loss_BPD.mean(-1) * mine["weight"]).sum(), count)
        surplus = surplus_share(mine)
        return Sums({name: term}, {f"{name}_surplus": surplus, f"{name}_spread": spread(target_BLD, batch, name)})

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        return dict(prediction=head.apply(params[name]["head"], encode(batch, key).hidden, batch))

    def init(key: Array) -> dict:
        a, b = jax.random.split(key)
        return {"teacher": _teacher(backbone.init(a)), "head": head.init(b)}

    def begin(params: dict) -> dict:
        return params | {name: params[name] | {"teacher": _teacher(params["backbone"])}}

    def after(params: dict, step: Array) -> dict:
        tau = decay + (final_decay - decay) * jnp.clip(step / decay_steps, 0.0, 1.0)

        def moved(t: Array, b: Array) -> Array:
            return (tau * t + (1 - tau) * b).astype(t.dtype)

        teacher = jax.tree.map(moved, params[name]["teacher"], _teacher(params["backbone"]))
        return params | {name: params[name] | {"teacher": teacher}}

    axes = {"teacher": {k: v for k, v in backbone.axes.items() if k != "embed"}, "head": head.axes}
    return Objective(
        name, loss, predict, init, axes, hide, begin=begin, after=after, frozen=(f"{name}/teacher/.*",)
    )  # fmt: skip


def _teacher(params: dict) -> dict:
    """Of a backbone's params all but the embedding, and no narrower than float32."""
    return jax.tree.map(ops.wide, {k: v for k, v in params.items() if k != "embed"})


def _standard(x_BLD: Array, batch: dict, norm: str) -> Array:
    """Mean 0 and variance 1, over a token's channels or of each channel over its segment."""

    def mean(x_BLD: Array) -> Array:
        if norm == "layer":
            return x_BLD.mean(-1, keepdims=True)
        return ops.pick(pool(x_BLD, batch, "mean"), jnp.maximum(batch["segments"] - 1, 0))

    x_BLD = x_BLD - mean(x_BLD)
    return x_BLD * jax.lax.rsqrt(mean(x_BLD**2) + 1e-5)
