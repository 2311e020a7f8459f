"""Which positions are hidden: tokens, words, spans or n-grams; exactly so many of a segment, or each by itself."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from model import random
from model.types import Array
from objectives.ngrams import Ngrams, cut
from objectives.vocab import Vocab

CHOICES = ("exact", "independent")
UNITS = ("token", "word", "span", "ngram")


def check(
    name: str, *, rate: float, mask: float, replace: float, choice: str, unit: str, span: float,
    ngrams: Ngrams | None = None,
) -> None:  # fmt: skip
    """Raises ValueError, naming the hyperparameter of the objective `name`, for what cannot be."""
    for what, share in dict(rate=rate, mask=mask, replace=replace, mask_and_replace=mask + replace).items():
        if not 0 <= share <= 1 or (what == "rate" and share == 0):
            raise ValueError(f"{name} {what}={share} must be a share between 0 and 1")
    if choice not in CHOICES:
        raise ValueError(f'{name} choice={choice!r} must be "exact" or "independent"')
    if unit not in UNITS:
        raise ValueError(f"{name} unit={unit!r} must be one of {', '.join(UNITS)}")
    if (unit == "ngram") != (ngrams is not None):
        raise ValueError(f'{name} unit={unit!r}: unit="ngram" and a list of ngrams belong together')
    if span < 1:
        raise ValueError(f"{name} span={span} is a mean length in words and must be at least 1")


def check_length(name: str, length: int, unit: str, span: float) -> None:
    """Raises ValueError where spans are as long as whole rows."""
    if unit == "span" and span >= length:
        raise ValueError(
            f"{name} span={span} words do not fit rows of {length} tokens: a span would be all there is to read"
        )


def room(
    length: int, segments: int, *, rate: float, choice: str, unit: str, span: float, ngrams: Ngrams | None = None
) -> int:
    """A number of positions a row that `choose` rarely exceeds."""
    # tokens of a unit, weighed by tokens: a geometric length counts about twice its mean
    size = {"token": 1.0, "word": 2.0, "span": 3.0 * span, "ngram": ngrams.length if ngrams else 0.0}[unit]
    # exact: one unit a segment that is there or not, of deviation at most half of its size; else binomial, by unit
    if choice == "exact":
        slack = min(segments, 2 * math.sqrt(segments)) if unit == "token" else size * (1 + math.sqrt(segments) / 2)
        return min(length, math.floor(rate * length) + math.ceil(slack))
    return min(length, math.ceil(rate * length + 4 * math.sqrt(length * rate * (1 - rate) * size)))


def choose(
    key: Array, row: dict, ordinary_L: Array, word_starts_V: Array, *, rate: float, choice: str, unit: str, span: float,
    ngrams: Ngrams | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """(chosen bool [L], luck [L]): the ordinary tokens of a row that are hidden, and the draws that chose them.

    See `objectives.mlm.mlm` for the hyperparameters.
    """
    segments_L = row["segments"]
    luck_L = unit_luck(key, row, ordinary_L, word_starts_V, unit, span, ngrams)
    if choice == "independent":
        return ordinary_L & (luck_L < rate), luck_L
    # The unit that crosses the budget is taken with the share of it that is within: the mean is the budget, exactly.
    budget_S = rate * _count(segments_L, ordinary_L, row)
    lucky_S = random.uniform(random.fold(key, "round"), random.segments(row))
    budget_L, lucky_L = (x_S[jnp.maximum(segments_L - 1, 0)] for x_S in (budget_S, lucky_S))
    upto_L = rank(segments_L, luck_L, ordinary_L) + 1
    before_L = upto_L - 1 if unit == "token" else rank(segments_L, luck_L, ordinary_L, jnp.less) + 1
    return ordinary_L & (budget_L - before_L >= (1 - lucky_L) * (upto_L - before_L)), luck_L


def replaced(key: Array, ids: Array, tokens: Array, vocab: Vocab, *, mask: float, replace: float) -> Array:
    """What chosen tokens become, of their ids as `model.random.tokens` has them: [MASK], a random ordinary token, or
    themselves.
    """
    ordinary_ids = np.setdiff1d(np.arange(vocab.size), vocab.special).astype(np.int32)  # on the host
    how = random.uniform(random.fold(key, "how"), ids)
    other = jnp.asarray(ordinary_ids)[random.integers(random.fold(key, "other"), ids, ordinary_ids.size)]
    return jnp.where(how < mask, vocab.mask, jnp.where(how < mask + replace, other, tokens)).astype(tokens.dtype)


def unit_luck(
    key: Array, row: dict, ordinary_L: Array, word_starts_V: Array, unit: str, span: float, ngrams: Ngrams | None
) -> Array:
    """One draw a unit, given to each of its tokens. Units never cross a special token or a segment's end."""
    ids_L = random.tokens(row)
    luck_L = random.uniform(random.fold(key, "choose"), ids_L)
    if unit == "token":
        return luck_L
    starts_L = word_starts_V[row["tokens"]]
    if unit == "span":  # a word goes on with the last one's span with probability 1 - 1/span
        starts_L &= random.uniform(random.fold(key, "span"), ids_L) < 1 / span
    previous_L = jnp.roll(ordinary_L, 1).at[0].set(False)
    starts_L |= ~ordinary_L | ~previous_L | (row["positions"] == 0)
    if ngrams is not None:
        starts_L = cut(ngrams, row, ordinary_L, starts_L)
    first_L = jax.lax.cummax(jnp.where(starts_L, jnp.arange(starts_L.size), 0))
    return luck_L[first_L]


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
