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
from objectives.vocab import LONGEST_WORD, Vocab

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
    if not span >= 1:
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
        now = first if steps is None else first + (last - first) * jnp.clip(step / steps, 0.0, 1.0)
        if choice == "independent":
            return ordinary_L & (luck_L < now), luck_L, units_L
        # so many units, rounded at random: each, long or short, is chosen at the rate
        begins_L = ordinary_L & (first_L == jnp.arange(length))
        budget_S = now * _count(segments_L, begins_L, row)
        lucky_S = random.uniform(random.fold(key, "round"), random.segments(row))
        budget_L = jnp.floor(budget_S + lucky_S)[jnp.maximum(segments_L - 1, 0)]
        return ordinary_L & (rank(segments_L, luck_L, begins_L) < budget_L), luck_L, units_L

    def replaced(key: Array, ids: Array, units: Array, tokens: Array) -> Array:
        how = random.uniform(random.fold(key, "how"), units)
        other = jnp.asarray(ordinary_ids)[random.integers(random.fold(key, "other"), ids, ordinary_ids.size)]
        return jnp.where(how < mask, vocab.mask, jnp.where(how < mask + replace, other, tokens)).astype(tokens.dtype)

    def room(length: int, segments: int) -> int:
        # tokens of a unit, weighed by tokens: a geometric length counts about twice its mean
        size = {"token": 1.0, "word": 2.0, "span": 3.0 * span, "ngram": trie.mean if trie else 0.0}[unit]
        most = max(first, last)
        # exact: one token a segment that is there or not, of deviation at most half; else binomial, by unit, and of so
        # many units less: about a row in a hundred has a surplus then
        if choice == "exact" and unit == "token":
            return min(length, math.floor(most * length) + math.ceil(min(segments, 2 * math.sqrt(segments))))
        deviations = 2 if choice == "exact" else 4
        usual = math.ceil(most * length + deviations * math.sqrt(length * most * (1 - most) * size))
        # a text without spaces is of words as long as they may be, of which one more than the rate's share may come
        longest = math.floor(most * length) + LONGEST_WORD if unit in ("word", "span") else 0
        return min(length, max(usual, longest))

    return Masking(choose, replaced, room)


def _line(name: str, rate: Rate) -> tuple[float, float, float | None]:
    """(first, last, steps), the last None for a rate that stays."""
    alone = isinstance(rate, Real)
    three = (rate, rate, 1) if alone else tuple(rate) if isinstance(rate, list | tuple) else ()
    if len(three) != 3 or not all(isinstance(x, Real) for x in three) or not three[2] >= 1:
        raise ValueError(f"{name} rate={rate!r} must be a share, or (first share, last share, steps between them)")
    first, last, steps = three
    for share in (first, last):
        if not 0 < share <= 1:
            raise ValueError(f"{name} rate={share} must be a share between 0 and 1")
    return first, last, None if alone else steps


def ordinary(row: dict, vocab: Vocab) -> Array:
    """bool, as the row's tokens: those that corruption may touch, neither special nor padding."""
    ordinary_V = ~np.isin(np.arange(vocab.size), vocab.special)  # on the host: to make one on a device is a program
    return jnp.asarray(ordinary_V)[row["tokens"]] & (row["segments"] > 0)


def unit_first(
    key: Array, row: dict, ordinary_L: Array, vocab: Vocab, unit: str, span: float, ngrams: Ngrams | None = None
) -> Array:
    """int32 [L]: the first token of each token's unit. Units never cross a special token or a segment's end. A word is
    cut after `LONGEST_WORD` tokens: without, a text that has no spaces would be one.
    """
    ids_L = random.tokens(row)
    if unit == "token":
        return jnp.arange(ids_L.size)
    place_L = jnp.arange(ids_L.size)
    previous_L = jnp.roll(ordinary_L, 1).at[0].set(False)
    always_L = ~ordinary_L | ~previous_L | (row["positions"] == 0)
    starts_L = jnp.asarray(vocab.word_starts)[row["tokens"]] | always_L
    starts_L |= (place_L - jax.lax.cummax(jnp.where(starts_L, place_L, 0))) % LONGEST_WORD == 0
    if unit == "span":  # a word goes on with the last one's span with probability 1 - 1/span
        starts_L &= (random.uniform(random.fold(key, "span"), ids_L) < 1 / span) | always_L
    if ngrams is not None:
        starts_L = cut(ngrams, row, ordinary_L, starts_L)
    return jax.lax.cummax(jnp.where(starts_L, place_L, 0))


def rank(segments_L: Array, luck_L: Array, rivals_L: Array) -> Array:
    """How many of the rivals (bool) of its segment have less luck than a token, or as much, less one: its own place
    among them, from 0, of a token that is a rival or has a rival's luck.

    By comparing all pairs, which is one fused loop; a sort is many.
    """
    rivals_L = jnp.where(rivals_L, segments_L, -1)
    before_LL = (luck_L[None] <= luck_L[:, None]) & (rivals_L[None] == segments_L[:, None])
    return before_LL.sum(-1, dtype=jnp.float32) - 1  # of floats, which is the faster sum on CPUs


def _count(segments_L: Array, counted_L: Array, row: dict) -> Array:
    """How many are counted of each packed segment, [S]."""
    S = row["example"].shape[0]
    counted_SL = counted_L[None] & (segments_L[None] == jnp.arange(1, S + 1)[:, None])
    return counted_SL.sum(-1, dtype=jnp.float32)
