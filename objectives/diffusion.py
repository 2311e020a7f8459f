"""Masked diffusion: hide any share of a text, from none to all, and fill it in; the encoder then generates."""

from functools import partial

import jax
import jax.numpy as jnp

from model import ops, random
from model.heads import mlm_head, score_words, words
from model.types import Backbone
from objectives.likelihood import pseudo
from objectives.masking import ordinary, rank
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab


def diffusion(
    backbone: Backbone,
    vocab: Vocab,
    *,
    least: float = 1e-3,
    weighted: bool = True,
    steps: int = 16,
    tied: bool = True,
    softcap: float | None = None,
    activation: str = "layers",
    name: str = "diffusion",
) -> Objective:
    """The bound on -log p(x) per token of a discrete diffusion whose noise is [MASK]: of a segment's n ordinary tokens
    each is hidden with the segment's probability t, uniform in (0, 1], and the loss is the sum over those hidden of
    -log p(x_i | what is seen) / (t n) (Sahoo et al. 2024, https://arxiv.org/abs/2406.07524, equation 10, with the
    linear schedule; Nie et al. 2025, https://arxiv.org/abs/2502.09992, equation 3). Special tokens have no probability,
    [MASK] among them: the data hold none (Sahoo et al., section 3.2.3). Every place reaches the vocabulary.

    Args:
      least: the smallest t; the weights 1 / t stay below its inverse.
      weighted: False leaves 1 / t away and takes the mean over the hidden tokens, which is no bound (as MaskGIT, Chang
        et al. 2022, https://arxiv.org/abs/2202.04200).
      steps: of `predict`.
      tied, softcap, activation: see `model.heads.mlm_head`.

    A corrupted row holds under `name` `target` int32 [L], `hidden` float32 [L], `weight` float32 [L], by which
    each loss is multiplied, and `counted` float32 [L], whose sum divides.
    `predict` fills in every [MASK] of a batch in `steps` passes, as many of a segment in each: `prediction` int32
    [B, L], the tokens with none hidden. With a key tokens are sampled, in random order; without one, the likeliest,
    the surest first.
    Raises ValueError where `least` is not in (0, 1] or `steps` below 1.
    """
    if not 0 < least <= 1:
        raise ValueError(f"diffusion least={least} is the smallest share that is hidden and must be in (0, 1]")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"diffusion steps={steps} must be a whole number, at least 1")
    absent_V = vocab.absent(backbone.config.V)
    absent_V[list(vocab.special)] = True  # nothing but ordinary tokens is ever hidden
    head = mlm_head(backbone.config, absent_V, tied=tied, softcap=softcap, activation=activation)
    logits = partial(words, head, name)

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        key = random.fold(key, name)
        tokens_L, segments_L = row["tokens"], row["segments"]
        t_S = least + (1 - least) * random.uniform(random.fold(key, "t"), random.segments(row))
        t_L = ops.take(t_S, jnp.maximum(segments_L - 1, 0))
        ordinary_L = ordinary(row, vocab)
        hidden_L = ordinary_L & (random.uniform(random.fold(key, "hide"), random.tokens(row)) < t_L)
        weight_L = jnp.where(hidden_L, 1 / t_L if weighted else 1.0, 0.0)
        counted_L = ordinary_L if weighted else hidden_L
        mine = dict(target=tokens_L, hidden=hidden_L, weight=weight_L, counted=counted_L)
        mine = {k: v if k == "target" else v.astype(jnp.float32) for k, v in mine.items()}
        return row | {"tokens": jnp.where(hidden_L, vocab.mask, tokens_L).astype(tokens_L.dtype), name: mine}

    def loss(params: dict, encode, batch, key, step) -> Sums:
        mine = batch[name]
        nll_BL, hit_BL = score_words(
            backbone.config, partial(logits, params), encode(batch, key).hidden, mine["target"]
        )
        terms = {name: Term((nll_BL * mine["weight"]).sum(), mine["counted"].sum())}
        return Sums(terms, {f"{name}_accuracy": Ratio((hit_BL * mine["hidden"]).sum(), mine["hidden"].sum())})

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        batch = dict(batch)
        ids_BL = random.tokens(batch)

        def fill(i: Array, tokens_BL: Array) -> Array:
            hidden_BL = (tokens_BL == vocab.mask) & (batch["segments"] > 0)
            said_BLV = logits(params, encode(batch | {"tokens": tokens_BL}).hidden, wide=True)
            if key is None:
                new_BL = said_BLV.argmax(-1)
                order_BL = -jax.nn.log_softmax(said_BLV).max(-1)
            else:
                site = random.fold(key, name, i)
                new_BL = (said_BLV + random.gumbel(site, ids_BL, said_BLV.shape[-1])).argmax(-1)
                order_BL = random.uniform(random.fold(key, name, "order"), ids_BL)
            # by place in the order: of those that are certain all have one probability, and one rank
            place_BL = jnp.argsort(jnp.argsort(order_BL, stable=True), stable=True).astype(jnp.float32)
            rank_BL = jax.vmap(rank)(batch["segments"], place_BL, hidden_BL)
            left_BL = jax.vmap(lambda s_L, h_L: ((s_L[:, None] == s_L[None]) & h_L[None]).sum(-1))(
                batch["segments"], hidden_BL
            )
            now_BL = hidden_BL & (rank_BL < jnp.ceil(left_BL / (steps - i)))
            return jnp.where(now_BL, new_BL.astype(tokens_BL.dtype), tokens_BL)

        return dict(prediction=jax.lax.fori_loop(0, steps, fill, batch["tokens"]))

    return Objective(
        name, loss, predict, head.init, head.axes, corrupt, likelihood=pseudo(partial(logits, wide=True), vocab),
        says="filled",
    )  # fmt: skip
