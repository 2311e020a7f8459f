"""Masked language modelling: hide some tokens, predict them from the rest (Devlin et al. 2018)."""

import math

import jax
import jax.numpy as jnp

from model import ops, random
from model.heads import mlm_head
from model.types import Backbone
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
      tied, softcap: see `model.heads.mlm_head`.

    A corrupted row holds under `name`: index int32 [P], target int32 [P], weight float32 [P].
    Raises ValueError for shares outside [0, 1] or an unknown choice or unit.
    """
    for what, share in dict(rate=rate, mask=mask, replace=replace, mask_and_replace=mask + replace).items():
        if not 0 <= share <= 1 or (what == "rate" and share == 0):
            raise ValueError(f"mlm {what}={share} must be a share between 0 and 1")
    if choice not in ("exact", "independent"):
        raise ValueError(f'mlm choice={choice!r} must be "exact" or "independent"')
    if unit not in ("token", "word", "span"):
        raise ValueError(f'mlm unit={unit!r} must be "token", "word" or "span"')
    if span < 1:
        raise ValueError(f"mlm span={span} is a mean length in words and must be at least 1")
    head = mlm_head(backbone.config, tied=tied, softcap=softcap)
    ordinary_V = jnp.ones(vocab.size, bool).at[jnp.array(vocab.special)].set(False)
    ordinary_ids = jnp.nonzero(ordinary_V, size=vocab.size - len(vocab.special))[0]
    word_starts_V = jnp.asarray(vocab.word_starts)

    def room(length: int, segments: int) -> int:
        """Static number of positions of a row that reach the vocabulary."""
        if capacity is not None:
            return min(length, math.ceil(capacity * length))
        # exact: one rounding a segment, each of deviation at most 1/2; else binomial, by unit
        if choice == "exact":
            slack = min(segments, 2 * math.sqrt(segments))
            return min(length, math.floor(rate * length) + math.ceil(slack))
        # tokens of a unit, weighed by tokens: a geometric length counts about twice its mean
        size = {"token": 1.0, "word": 2.0, "span": 3.0 * span}[unit]
        return min(length, math.ceil(rate * length + 4 * math.sqrt(length * rate * (1 - rate) * size)))

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        tokens_L, segments_L, ids_L = row["tokens"], row["segments"], random.tokens(row)
        key = random.fold(key, name)
        ordinary_L = ordinary_V[tokens_L] & (segments_L > 0)
        luck_L = _unit_luck(key, row, ids_L, ordinary_L)
        if choice == "independent":
            chosen_L = ordinary_L & (luck_L < rate)
        else:
            budget_S = rate * _count(segments_L, ordinary_L, row)
            budget_S = jnp.floor(budget_S + random.uniform(random.fold(key, "round"), random.segments(row)))
            chosen_L = ordinary_L & (_rank(segments_L, luck_L, ordinary_L) < budget_S[jnp.maximum(segments_L - 1, 0)])
        P = room(tokens_L.shape[0], row["example"].shape[0])
        # the luckiest first: a surplus drops at random, not at the row's end
        order_L = jnp.argsort(jnp.where(chosen_L, luck_L, 2.0))
        index_P = order_L[:P].astype(jnp.int32)
        weight_P = chosen_L[index_P].astype(jnp.float32)
        how_P = random.uniform(random.fold(key, "how"), ids_L[index_P])
        other_P = ordinary_ids[random.integers(random.fold(key, "other"), ids_L[index_P], ordinary_ids.size)]
        target_P = tokens_L[index_P]
        new_P = jnp.where(how_P < mask, vocab.mask, jnp.where(how_P < mask + replace, other_P, target_P))
        tokens_L = tokens_L.at[index_P].set(jnp.where(weight_P > 0, new_P, target_P).astype(tokens_L.dtype))
        hidden = dict(index=index_P, target=target_P, weight=weight_P, surplus=chosen_L.sum() - weight_P.sum())
        return row | {"tokens": tokens_L, name: hidden}

    def _unit_luck(key: Array, row: dict, ids_L: Array, ordinary_L: Array) -> Array:
        """One draw a unit, given to each of its tokens. Units never cross a special token or a segment's end."""
        luck_L = random.uniform(random.fold(key, "choose"), ids_L)
        if unit == "token":
            return luck_L
        starts_L = word_starts_V[row["tokens"]]
        if unit == "span":  # a word goes on with the last one's span with probability 1 - 1/span
            starts_L &= random.uniform(random.fold(key, "span"), ids_L) < 1 / span
        previous_L = jnp.roll(ordinary_L, 1).at[0].set(False)
        starts_L |= ~ordinary_L | ~previous_L | (row["positions"] == 0)
        first_L = jax.lax.cummax(jnp.where(starts_L, jnp.arange(starts_L.size), 0))
        return luck_L[first_L]

    def _rank(segments_L: Array, luck_L: Array, ordinary_L: Array) -> Array:
        """How many ordinary tokens of its segment precede a token's unit in luck, the unit's own counted but one."""
        L = luck_L.size
        luck_L = jnp.where(ordinary_L, luck_L, 2.0)
        order_L = jnp.lexsort((luck_L, segments_L))
        place_L = jnp.zeros(L, int).at[order_L].set(jnp.arange(L))
        begin_L = jnp.searchsorted(segments_L[order_L], segments_L[order_L], side="left")
        rank_L = place_L - jnp.zeros(L, int).at[order_L].set(begin_L)
        if unit == "token":
            return rank_L
        # a unit is chosen whole or not at all: all its tokens have the rank of its last
        sorted_luck, sorted_seg = luck_L[order_L], segments_L[order_L]
        last = jnp.append((sorted_luck[1:] != sorted_luck[:-1]) | (sorted_seg[1:] != sorted_seg[:-1]), True)
        end = jax.lax.cummin(jnp.where(last, jnp.arange(L), L), reverse=True)
        return jnp.zeros(L, int).at[order_L].set(end - begin_L)

    def logits(params: dict, hidden: Array) -> Array:
        return head.apply(params[name], hidden, params["backbone"]["embed"]["tokens"])

    def loss(params: dict, encode, batch, key, step) -> Sums:
        mine = batch[name]
        hidden_BLD = encode(batch, key).hidden
        hidden_BPD = jnp.take_along_axis(hidden_BLD, mine["index"][..., None], 1)
        nll_BP, hit_BP = ops.cross_entropy(logits(params, hidden_BPD), mine["target"])
        weight_BP = mine["weight"]
        count = weight_BP.sum()
        return Sums(
            {name: Term((nll_BP * weight_BP).sum(), count)},
            {
                f"{name}_accuracy": Ratio((hit_BP * weight_BP).sum(), count),
                f"{name}_surplus": Ratio(mine["surplus"].sum(), count),
            },
        )

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        """The likeliest token at every position, int32 [B, L], and its probability [B, L]."""
        p_BLV = jax.nn.softmax(ops.wide(logits(params, encode(batch, key).hidden)))
        return dict(prediction=p_BLV.argmax(-1).astype(jnp.int32), probability=p_BLV.max(-1))

    return Objective(name, loss, predict, head.init, head.axes, corrupt)


def _count(segments_L: Array, ordinary_L: Array, row: dict) -> Array:
    """Ordinary tokens of each packed segment, [S]."""
    S = row["example"].shape[0]
    return (ordinary_L[None] & (segments_L[None] == jnp.arange(1, S + 1)[:, None])).sum(-1)
