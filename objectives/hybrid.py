"""Masked and causal language modelling by one head, side by side in one batch (GPT-BERT)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from model import ops, random
from model.heads import mlm_head, score_words, words
from model.types import Backbone
from objectives.causal import check_reach, following, left_to_right
from objectives.likelihood import pseudo
from objectives.masking import Rate, masking
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab

LIKELIHOODS = ("masked", "causal")


def hybrid(
    backbone: Backbone,
    vocab: Vocab,
    *,
    causal: float = 0.5,
    rate: Rate = 0.15,
    mask: float = 0.8,
    replace: float = 0.1,
    choice: str = "exact",
    unit: str = "token",
    span: float = 3.0,
    ngrams: str | Sequence[Sequence[int]] | None = None,
    tied: bool = True,
    softcap: float | None = None,
    activation: str = "layers",
    likelihood: str = "masked",
    name: str = "hybrid",
) -> Objective:
    """Every state predicts the token after it: in causal segments from what came before, in masked ones from all that
    is not hidden (Charpentier & Samuel 2024, https://arxiv.org/abs/2410.24159, sections 2.1 and 2.2).

    Masked prediction is shifted by one, so that both are one task with the same weights: a hidden token is predicted
    where the token before it stands. A segment is causal by a draw of its own, and so every place reaches the
    vocabulary, as in `objectives.causal`, though of a masked segment few are predicted.

    Args:
      causal: share of the segments that are causal.
      rate, mask, replace, choice, unit, span, ngrams: of the masked ones, see `objectives.mlm.mlm`.
      tied, softcap, activation: see `model.heads.mlm_head`.
      likelihood: which of the two a text's likelihood is of: "masked", each token from all others, or "causal", from
        left to right (section 3 compares them).

    A corrupted row holds `reach` int32 [L], and under `name` `target` int32 [L], `weight` float32 [L] (whether the next
    token is predicted) and `causal` float32 [L].
    The loss is `causal` times the mean over the causal segments' tokens, `{name}_causal`, and 1 - `causal` times that
    over the hidden ones, `{name}_masked`: the causal segments, which predict every token, do not drown the others.
    `predict` gives `prediction` int32 [B, L], the likeliest token at every position seen from all others, and its
    `probability` [B, L]; of a segment's first token they say nothing.
    Raises ValueError for shares outside [0, 1] or an unknown choice or unit.
    """
    check_reach(name, backbone)
    if not 0 <= causal <= 1:
        raise ValueError(f"{name} causal={causal} must be a share between 0 and 1")
    hide = masking(
        name, vocab, rate=rate, mask=mask, replace=replace, choice=choice, unit=unit, span=span, ngrams=ngrams
    )
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"{name} likelihood={likelihood!r} must be one of {', '.join(LIKELIHOODS)}")
    absent_V = vocab.absent(backbone.config.V)
    head = mlm_head(backbone.config, absent_V, tied=tied, softcap=softcap, activation=activation)
    logits = partial(words, head, name)

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        tokens_L, segments_L = row["tokens"], row["segments"]
        key = random.fold(key, name)
        target_L, follows_L = following(row)
        causal_S = random.uniform(random.fold(key, "causal"), random.segments(row)) < causal
        causal_L = ops.take(causal_S, jnp.maximum(segments_L - 1, 0)) & (segments_L > 0)
        chosen_L, _, units_L = hide.choose(key, row, step)
        chosen_L &= ~causal_L & (row["positions"] > 0)  # a segment's first has no token before it
        new_L = hide.replaced(key, random.tokens(row), units_L, tokens_L)
        predicted_L = follows_L & (causal_L | jnp.roll(chosen_L, -1))
        reach_L = jnp.where(causal_L, row["positions"], segments_L.size)
        mine = dict(target=target_L, weight=predicted_L.astype(jnp.float32), causal=causal_L.astype(jnp.float32))
        return row | {"tokens": jnp.where(chosen_L, new_L, tokens_L), "reach": reach_L, name: mine}

    def loss(params: dict, encode, batch, key, step) -> Sums:
        mine = batch[name]
        nll_BL, hit_BL = score_words(
            backbone.config, partial(logits, params), encode(batch, key).hidden, mine["target"]
        )
        weight_BL = mine["weight"]
        ahead_BL, masked_BL = weight_BL * mine["causal"], weight_BL * (1 - mine["causal"])
        terms = {
            f"{name}_causal": Term((nll_BL * ahead_BL).sum(), ahead_BL.sum(), causal),
            f"{name}_masked": Term((nll_BL * masked_BL).sum(), masked_BL.sum(), 1 - causal),
        }
        metrics = {
            f"{name}_causal_accuracy": Ratio((hit_BL * ahead_BL).sum(), ahead_BL.sum()),
            f"{name}_masked_accuracy": Ratio((hit_BL * masked_BL).sum(), masked_BL.sum()),
        }
        return Sums(terms, metrics)

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        p_BLV = jax.nn.softmax(logits(params, encode(batch, key).hidden, wide=True))
        before = lambda x_BL: jnp.roll(x_BL, 1, -1)
        return dict(prediction=before(p_BLV.argmax(-1).astype(jnp.int32)), probability=before(p_BLV.max(-1)))

    of = (
        pseudo(partial(logits, wide=True), vocab, before=1)
        if likelihood == "masked"
        else partial(left_to_right, logits)
    )
    return Objective(name, loss, predict, head.init, head.axes, corrupt, likelihood=of, says="mask")
