"""Masked language modelling: hide some tokens, predict them from the rest (Devlin et al. 2018)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import ops, random
from model.heads import bag_head, mlm_head
from model.types import Backbone
from objectives.likelihood import pseudo
from objectives.masking import check, choose, replaced, room
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab


def mlm(
    backbone: Backbone,
    vocab: Vocab,
    *,
    rate: float = 0.15,
    mask: float = 0.8,
    replace: float = 0.1,
    choice: str = "exact",
    unit: str = "token",
    span: float = 3.0,
    capacity: float | None = None,
    tied: bool = True,
    softcap: float | None = None,
    activation: str = "layers",
    bag: float = 0.0,
    final_rate: float | None = None,
    rate_steps: int | None = None,
    name: str = "mlm",
) -> Objective:
    """BERT's objective (https://arxiv.org/abs/1810.04805, section 3.1), on the chosen positions alone.

    Args:
      rate: share of the ordinary tokens that is chosen.
      mask, replace: shares of the chosen that become [MASK], or a random ordinary token; the rest stay as they are.
      choice: "exact" chooses round(rate * n) of a segment's n ordinary tokens (rounded at random, so that the rate
        holds on average; whole units never exceed it); "independent" draws each unit with probability `rate`.
      unit: what is chosen together: "token", "word" (pieces of a word; Cui et al. 2019,
        https://arxiv.org/abs/1906.08101) or "span" (runs of whole words, geometric in length with mean `span` words,
        as in SpanBERT, https://arxiv.org/abs/1907.10529).
      capacity: positions a row that reach the vocabulary, as a share of the row; None is room enough that a surplus
        is rare (four deviations). A surplus stays unmasked and is counted in the metric `surplus`.
      tied, softcap, activation: see `model.heads.mlm_head`.
      bag: coefficient of a second term, `{name}_bag`, in which the segment as a whole predicts what was hidden in it:
        cross-entropy of the same targets under one distribution a segment, made from the mean state of its tokens
        that were not chosen (bag-of-words prediction; Ma et al. 2024, https://arxiv.org/abs/2401.11248, section 3.2,
        here of the hidden tokens alone). It teaches what a text is about, which the term by position learns last.
      final_rate, rate_steps: the rate goes from `rate` to `final_rate` in a straight line over the first `rate_steps`
        steps (Ankner et al. 2024, https://arxiv.org/abs/2305.15096, section 2); evaluation keeps `rate`.

    A corrupted row holds under `name`: index int32 [P], target int32 [P], weight float32 [P], and `seen` int32 [L],
    the segments without the chosen tokens.
    Raises ValueError for shares outside [0, 1] or an unknown choice or unit.
    """
    how_chosen: dict[str, Any] = dict(rate=rate, choice=choice, unit=unit, span=span)
    check("mlm", mask=mask, replace=replace, **how_chosen)
    if bag < 0:
        raise ValueError(f"mlm bag={bag} is the coefficient of a loss term and must not be negative")
    if (final_rate is None) != (rate_steps is None) or (rate_steps is not None and rate_steps < 1):
        raise ValueError(f"mlm final_rate={final_rate} and rate_steps={rate_steps} belong together, the latter above 0")
    last_rate = rate if final_rate is None else final_rate
    if not 0 < last_rate <= 1:
        raise ValueError(f"mlm final_rate={final_rate} must be a share between 0 and 1")
    head = mlm_head(backbone.config, tied=tied, softcap=softcap, activation=activation)
    whole = bag_head(backbone.config)
    ordinary_V = ~np.isin(np.arange(vocab.size), vocab.special)  # on the host: to make one on a device is a program

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        tokens_L, segments_L, ids_L = row["tokens"], row["segments"], random.tokens(row)
        key = random.fold(key, name)
        ordinary_L = jnp.asarray(ordinary_V)[tokens_L] & (segments_L > 0)
        now = how_chosen
        if rate_steps is not None:
            now = how_chosen | dict(rate=rate + (last_rate - rate) * jnp.minimum(step / rate_steps, 1.0))
        chosen_L, luck_L = choose(key, row, ordinary_L, jnp.asarray(vocab.word_starts), **now)
        if capacity is None:
            most = how_chosen | dict(rate=max(rate, last_rate))
            P = room(tokens_L.shape[0], row["example"].shape[0], **most)
        else:
            P = min(tokens_L.shape[0], math.ceil(capacity * tokens_L.shape[0]))
        # the luckiest first: a surplus drops at random, not at the row's end
        order_L = jnp.where(chosen_L, luck_L, 2.0)
        carried = (jnp.arange(tokens_L.size, dtype=jnp.int32), chosen_L, ids_L, tokens_L)
        _, index_P, taken_P, ids_P, target_P = (x[:P] for x in jax.lax.sort((order_L, *carried), num_keys=1))
        weight_P = taken_P.astype(jnp.float32)
        new_P = replaced(key, ids_P, target_P, vocab, mask=mask, replace=replace)
        tokens_L = tokens_L.at[index_P].set(jnp.where(weight_P > 0, new_P, target_P))
        hidden = dict(
            index=index_P, target=target_P, weight=weight_P, surplus=chosen_L.sum() - weight_P.sum(),
            seen=jnp.where(chosen_L, 0, segments_L),
        )  # fmt: skip
        return row | {"tokens": tokens_L, name: hidden}

    def logits(params: dict, hidden: Array) -> Array:
        return head.apply(params[name], hidden, params["backbone"]["embed"]["tokens"])

    def loss(params: dict, encode, batch, key, step) -> Sums:
        mine = batch[name]
        # all places are read where the whole segment predicts, else the chosen alone
        hidden = encode(batch, key, at=None if bag else mine["index"]).hidden
        hidden_BPD = ops.pick(hidden, mine["index"]) if bag else hidden
        nll_BP, hit_BP = ops.cross_entropy(logits(params, hidden_BPD), mine["target"])
        weight_BP = mine["weight"]
        count = weight_BP.sum()
        terms = {name: Term((nll_BP * weight_BP).sum(), count)}
        if bag:
            logp_BSV = whole.apply(params[name]["bag"], hidden, batch | {"segments": mine["seen"]})
            segment_BP = ops.pick(batch["segments"], mine["index"])
            row_B1 = jnp.arange(len(segment_BP))[:, None]
            logp_BP = ops.take(logp_BSV, row_B1, jnp.maximum(segment_BP - 1, 0), mine["target"])
            terms[f"{name}_bag"] = Term(-(logp_BP * weight_BP).sum(), count, bag)
        accuracy, surplus = (hit_BP * weight_BP).sum(), mine["surplus"].sum()
        return Sums(terms, {f"{name}_accuracy": Ratio(accuracy, count), f"{name}_surplus": Ratio(surplus, count)})

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        """The likeliest token at every position, int32 [B, L], and its probability [B, L]."""
        p_BLV = jax.nn.softmax(ops.wide(logits(params, encode(batch, key).hidden)))
        return dict(prediction=p_BLV.argmax(-1).astype(jnp.int32), probability=p_BLV.max(-1))

    def init(key: Array) -> dict:
        return head.init(key) | ({"bag": whole.init(key)} if bag else {})  # the bag's are zeros

    axes = head.axes | ({"bag": whole.axes} if bag else {})
    return Objective(name, loss, predict, init, axes, corrupt, likelihood=pseudo(logits, vocab))
