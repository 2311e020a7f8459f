"""Language modelling from left to right, and after a prefix that is seen whole."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from model import ops, random
from model.heads import mlm_head, score_words, words
from model.types import Backbone
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab


def causal(
    backbone: Backbone,
    vocab: Vocab,
    *,
    prefix: bool = False,
    tied: bool = True,
    softcap: float | None = None,
    activation: str = "layers",
    name: str = "causal",
) -> Objective:
    """Each token from those before it in its segment: the mean of -log p(x_i | x_0 .. x_{i-1}) (Bengio et al. 2003,
    https://www.jmlr.org/papers/v3/bengio03a.html, section 2; Radford et al. 2018 on a Transformer).

    Every place reaches the vocabulary: about 1 / rate times the head's cost in `objectives.mlm`, and the largest array
    of a step unless the backbone's `remat` cuts it (`model.heads.score_words`).

    The backbone is the one of every other objective; what a query sees is the row's `reach`.

    Args:
      prefix: a part of each segment, its length uniform from 1 to one less than all, is seen whole, and only what
        follows is predicted (Raffel et al. 2019, https://arxiv.org/abs/1910.10683, section 3.2.1).
      tied, softcap, activation: see `model.heads.mlm_head`.

    A corrupted row holds `reach` int32 [L], and under `name` `target` int32 [L] and `weight` float32 [L]: what follows
    each token, and whether it is predicted.
    `predict` gives `log_likelihood` float32 [B, L] of each token after those before it (0 of a segment's first), and
    `prediction` int32 [B, L], the likeliest to follow each.
    Raises ValueError for a backbone with a convolution.
    """
    check_reach(name, backbone)
    absent_V = vocab.absent(backbone.config.V)
    head = mlm_head(backbone.config, absent_V, tied=tied, softcap=softcap, activation=activation)
    logits = partial(words, head, name)

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        target_L, follows_L = following(row)
        if not prefix:
            return row | {"reach": row["positions"], name: dict(target=target_L, weight=_as_weight(follows_L))}
        ids_S = random.segments(row)
        n_S = (row["segments"][None] == jnp.arange(1, len(ids_S) + 1)[:, None]).sum(-1)
        luck_S = random.uniform(random.fold(key, name), ids_S)
        prefix_S = 1 + jnp.floor(luck_S * jnp.maximum(n_S - 1, 0)).astype(jnp.int32)
        prefix_L = ops.take(prefix_S, jnp.maximum(row["segments"] - 1, 0))
        predicted_L = follows_L & (row["positions"] + 1 >= prefix_L)
        reach_L = jnp.maximum(row["positions"], prefix_L - 1)
        return row | {"reach": reach_L, name: dict(target=target_L, weight=_as_weight(predicted_L))}

    def loss(params: dict, encode, batch, key, step) -> Sums:
        target_BL, weight_BL = batch[name]["target"], batch[name]["weight"]
        nll_BL, hit_BL = score_words(backbone.config, partial(logits, params), encode(batch, key).hidden, target_BL)
        count = weight_BL.sum()
        terms = {name: Term((nll_BL * weight_BL).sum(), count)}
        return Sums(terms, {f"{name}_accuracy": Ratio((hit_BL * weight_BL).sum(), count)})

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        likelihood_BL, logits_BLV = ahead(logits, params, encode, batch, key)
        return dict(log_likelihood=likelihood_BL, prediction=logits_BLV.argmax(-1).astype(jnp.int32))

    return Objective(
        name, loss, predict, head.init, head.axes, corrupt, likelihood=partial(left_to_right, logits), says="pieces"
    )  # fmt: skip


def ahead(logits: Callable[..., Array], params: dict, encode, batch, key: Array | None = None) -> tuple[Array, Array]:
    """(log p of each token, given those before it in its segment, [B, L], 0 of the first; the logits [B, L, V] of the
    token after each). `logits` is a function (params, hidden, wide) -> [B, L, V].
    """
    target_BL, follows_BL = following(batch)
    logits_BLV = logits(params, encode(dict(batch) | {"reach": batch["positions"]}, key).hidden, wide=True)
    nll_BL, _ = ops.cross_entropy(logits_BLV, target_BL)
    before_BL = jnp.where(follows_BL, -nll_BL, 0.0)  # of the token that follows
    return jnp.pad(before_BL, ((0, 0), (1, 0)))[:, :-1], logits_BLV


def left_to_right(logits: Callable[..., Array], params: dict, encode, batch) -> Array:
    """float32 [B, S]: the log-likelihood of each packed segment, of all its tokens after the first."""
    return per_segment(ahead(logits, params, encode, batch)[0], batch)


def per_segment(x_BL: Array, batch) -> Array:
    """Sums over each packed segment, [B, S]."""
    of_BSL = batch["segments"][:, None] == jnp.arange(1, batch["example"].shape[1] + 1)[None, :, None]
    return (x_BL[:, None] * of_BSL).sum(-1)


def check_reach(name: str, backbone: Backbone) -> None:
    """Raises ValueError for a backbone of which states see what comes after them, whatever attention does."""
    if backbone.config.conv:
        raise ValueError(
            f"{name} predicts what comes next, and the backbone's convolution (conv={backbone.config.conv}) sees it: "
            "set backbone conv=0"
        )


def following(row) -> tuple[Array, Array]:
    """(the token after each, int32 [..., L]; whether it is of the same segment)."""
    tokens, segments = row["tokens"], row["segments"]
    next_segment = jnp.zeros_like(segments).at[..., :-1].set(segments[..., 1:])
    return jnp.roll(tokens, -1, -1), (segments > 0) & (segments == next_segment)


def _as_weight(x: Array) -> Array:
    return x.astype(jnp.float32)
