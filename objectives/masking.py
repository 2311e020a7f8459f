"""Which positions are hidden: tokens, words, spans or n-grams; exactly so many of a segment, or each by itself."""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model import random
from model.types import Array
from objectives.ngrams import Ngrams, cut
from objectives.ngrams import ngrams as listed
from objectives.vocab import Vocab

Rate = float | Sequence[float]
CHOICES = ("exact", "independent")
UNITS = ("token", "word", "span", "ngram")


class Masking(NamedTuple):
    """How tokens are chosen and what they become.

    choose:   (key, row, step) -> (chosen bool [L], luck [L], units [L]): the ordinary tokens of a row that are hidden,
              the draws that chose them, and the ids, as `model.random.tokens` has them, by which `replaced` draws
    replaced: (key, ids, units, tokens) -> tokens, of any one shape: what chosen tokens become, [MASK], a random
              ordinary token, or themselves
    room:     (length, segments) -> a number of positions a row that `choose` rarely exceeds
    """

    choose: Callable[[Array, dict, Array], tuple[Array, Array, Array]]
    replaced: Callable[[Array, Array, Array, Array], Array]
    room: Callable[[int, int], int]


def masking(
    name: str,
    vocab: Vocab,
    *,
    rate: Rate,
    mask: float = 1.0,
    replace: float = 0.0,
    choice: str = "exact",
    unit: str = "token",
    span: float = 3.0,
    ngrams: str | Sequence[Sequence[int]] | None = None,
) -> Masking:
    """See `objectives.mlm.mlm` for the hyperparameters.

    Raises ValueError, naming the hyperparameter of the objective `name`, for what cannot be: at once, and while tracing
    for spans as long as whole rows.
    """
    trie = None if ngrams is None else listed(ngrams, vocab.size)
    first, last, steps = _line(name, rate)
    for what, share in dict(mask=mask, replace=replace, mask_and_replace=mask + replace).items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} {what}={share} must be a share between 0 and 1")
    if choice not in CHOICES:
        raise ValueError(f'{name} choice={choice!r} must be "exact" or "independent"')
    if unit not in UNITS:
        raise ValueError(f"{name} unit={unit!r} must be one of {', '.join(UNITS)}")
    if (unit == "ngram") != (trie is not None):
        raise ValueError(f'{name} unit={unit!r}: unit="ngram" and a list of ngrams belong together')
    if mask + replace == 0:
        raise ValueError(
            f"{name} mask=0, replace=0 leaves each chosen token as it is, to be read where it is predicted"
        )
    if span < 1:
        raise ValueError(f"{name} span={span} is a mean length in words and must be at least 1")
    ordinary_ids = np.setdiff1d(np.arange(vocab.size), vocab.special).astype(np.int32)  # on the host

    def choose(key: Array, row: dict, step: Array) -> tuple[Array, Array, Array]:
        segments_L, ids_L, length = row["segments"], random.tokens(row), row["tokens"].size
        if unit == "span" and span >= length:
            raise ValueError(
                f"{name} span={span} words do not fit rows of {length} tokens: a span would be all there is to read"
            )
        ordinary_L = ordinary(row, vocab)
        first_L = unit_first(key, row, ordinary_L, vocab, unit, span, trie)
        luck_L, units_L = random.uniform(random.fold(key, "choose"), ids_L), ids_L
        if unit != "token":
            luck_L = luck_L[first_L]
        if unit == "span":
            units_L = ids_L[first_L]
        now = first if steps is None else first + (last - first) * jnp.minimum(step / steps, 1.0)
        if choice == "independent":
            return ordinary_L & (luck_L < now), luck_L, units_L
        # the unit that crosses the budget is taken with the share of it that is within: the mean is the budget, exactly
        budget_S = now * _count(segments_L, ordinary_L, row)
        lucky_S = random.uniform(random.fold(key, "round"), random.segments(row))
        budget_L, lucky_L = (x_S[jnp.maximum(segments_L - 1, 0)] for x_S in (budget_S, lucky_S))
        upto_L = rank(segments_L, luck_L, ordinary_L) + 1
        before_L = upto_L - 1 if unit == "token" else rank(segments_L, luck_L, ordinary_L, jnp.less) + 1
        return ordinary_L & (budget_L - before_L >= (1 - lucky_L) * (upto_L - before_L)), luck_L, units_L

    def replaced(key: Array, ids: Array, units: Array, tokens: Array) -> Array:
        how = random.uniform(random.fold(key, "how"), units)
        other = jnp.asarray(ordinary_ids)[random.integers(random.fold(key, "other"), ids, ordinary_ids.size)]
        return jnp.where(how < mask, vocab.mask, jnp.where(how < mask + replace, other, tokens)).astype(tokens.dtype)

    def room(length: int, segments: int) -> int:
        # tokens of a unit, weighed by tokens: a geometric length counts about twice its mean
        size = {"token": 1.0, "word": 2.0, "span": 3.0 * span, "ngram": trie.length if trie else 0.0}[unit]
        most = max(first, last)
        # exact: one unit a segment that is there or not, of deviation at most half of its size; else binomial, by unit
        if choice == "exact":
            slack = min(segments, 2 * math.sqrt(segments)) if unit == "token" else size * (1 + math.sqrt(segments) / 2)
            return min(length, math.floor(most * length) + math.ceil(slack))
        return min(length, math.ceil(most * length + 4 * math.sqrt(length * most * (1 - most) * size)))

    return Masking(choose, replaced, room)


def _line(name: str, rate: Rate) -> tuple[float, float, float | None]:
    """(first, last, steps), the last None for a rate that stays."""
    three = rate if isinstance(rate, list | tuple) else (rate, rate, None)
    numbers = all(isinstance(x, Real) or x is None for x in three)
    if len(three) != 3 or not numbers or (three[2] is not None and three[2] < 1):
        raise ValueError(f"{name} rate={rate!r} must be a share, or (first share, last share, steps between them)")
    first, last, steps = three
    for share in (first, last):
        if not 0 < share <= 1:
            raise ValueError(f"{name} rate={share} must be a share between 0 and 1")
    return first, last, steps


def ordinary(row: dict, vocab: Vocab) -> Array:
    """bool, as the row's tokens: those that corruption may touch, neither special nor padding."""
    ordinary_V = ~np.isin(np.arange(vocab.size), vocab.special)  # on the host: to make one on a device is a program
    return jnp.asarray(ordinary_V)[row["tokens"]] & (row["segments"] > 0)


def unit_first(
    key: Array, row: dict, ordinary_L: Array, vocab: Vocab, unit: str, span: float, ngrams: Ngrams | None = None
) -> Array:
    """int32 [L]: the first token of each token's unit. Units never cross a special token or a segment's end."""
    ids_L = random.tokens(row)
    if unit == "token":
        return jnp.arange(ids_L.size)
    starts_L = jnp.asarray(vocab.word_starts)[row["tokens"]]
    if unit == "span":  # a word goes on with the last one's span with probability 1 - 1/span
        starts_L &= random.uniform(random.fold(key, "span"), ids_L) < 1 / span
    previous_L = jnp.roll(ordinary_L, 1).at[0].set(False)
    starts_L |= ~ordinary_L | ~previous_L | (row["positions"] == 0)
    if ngrams is not None:
        starts_L = cut(ngrams, row, ordinary_L, starts_L)
    return jax.lax.cummax(jnp.where(starts_L, jnp.arange(starts_L.size), 0))


def rank(
    segments_L: Array, luck_L: Array, ordinary_L: Array, compare: Callable[[Array, Array], Array] = jnp.less_equal
) -> Array:
    """How many ordinary tokens of its segment come before the last token of a token's unit, in order of luck; with
    `jnp.less`, before the unit's first, less one.

    By comparing all pairs, which is one fused loop; a sort is many.
    """
    rivals_L = jnp.where(ordinary_L, segments_L, -1)
    before_LL = compare(luck_L[None], luck_L[:, None]) & (rivals_L[None] == segments_L[:, None])
    return before_LL.sum(-1, dtype=jnp.float32) - 1  # of floats, which is the faster sum on CPUs


def _count(segments_L: Array, ordinary_L: Array, row: dict) -> Array:
    """Ordinary tokens of each packed segment, [S]."""
    S = row["example"].shape[0]
    counted_SL = ordinary_L[None] & (segments_L[None] == jnp.arange(1, S + 1)[:, None])
    return counted_SL.sum(-1, dtype=jnp.float32)
