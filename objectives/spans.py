"""Spans: of noise, exactly so many tokens of each segment in exactly so many runs; and spans out of order."""

import jax
import jax.numpy as jnp

from model import ops, random
from model.types import Array
from objectives.masking import ordinary, rank, unit_first
from objectives.vocab import Vocab


def spans(key: Array, row: dict, free_L: Array, *, rate: float, span: float) -> Array:
    """bool [L]: of a segment's m free tokens n = rate * m, rounded at random, in round(n / span) runs that do not touch
    (Raffel et al. 2019, https://arxiv.org/abs/1910.10683, section 3.3.4). All ways to do so are as likely.

    At least one is chosen, where there is any, and one is left, where there are two. A segment's free tokens follow
    each other.
    """
    segments_L = row["segments"]
    member_SL = (segments_L[None] == jnp.arange(1, row["example"].shape[0] + 1)[:, None]) & free_L[None]

    def count(x_L: Array) -> Array:  # of its segment's free tokens, up to each
        return (jnp.cumsum(member_SL & x_L[None], 1) * member_SL).sum(0)

    def by_token(x_S: Array) -> Array:
        return ops.take(x_S, jnp.maximum(segments_L - 1, 0))

    m_S = member_SL.sum(-1)
    luck_S = random.uniform(random.fold(key, "round"), random.segments(row))
    n_S = jnp.floor(rate * m_S.astype(jnp.float32) + luck_S).astype(jnp.int32)
    n_S = jnp.minimum(jnp.clip(n_S, 1, jnp.maximum(m_S - 1, 1)), m_S)
    k_S = jnp.round(n_S.astype(jnp.float32) / span).astype(jnp.int32)
    k_S = jnp.clip(k_S, jnp.minimum(n_S, 1), jnp.minimum(n_S, m_S - n_S + 1))
    m_L, n_L, k_L, order_L = by_token(m_S), by_token(n_S), by_token(k_S), count(free_L) - 1
    ids_L = random.tokens(row)

    def drawn(site: str, from_L: Array, k_L: Array) -> Array:
        luck_L = random.uniform(random.fold(key, site), ids_L)
        return from_L & (rank(segments_L, luck_L, from_L) < k_L)

    # n tokens are cut at k - 1 of the n - 1 places between them; the runs go to k of the places beside the m - n others
    cut_L = drawn("lengths", free_L & (order_L >= 1) & (order_L < n_L), k_L - 1)
    here_L = drawn("places", free_L & (order_L <= m_L - n_L), k_L)
    run_L, before_L = count(cut_L), count(here_L)  # the run of the i-th noise token; runs before the i-th other
    same_LL = (segments_L[:, None] == segments_L[None]) & free_L[:, None] & free_L[None]
    earlier_LL = same_LL & (order_L < n_L)[None] & (run_L[None] < before_L[:, None])
    place_L = order_L + earlier_LL.sum(-1)
    other_L = free_L & (order_L < m_L - n_L)
    stays_L = (same_LL & other_L[:, None] & (place_L[:, None] == order_L[None])).any(0)
    return free_L & ~stays_L


def permuted(key: Array, row: dict, vocab: Vocab, share: float, span: float) -> Array:
    """int32 [L]: which place each place's token comes from. In a share of the segments, runs of words with mean length
    `span` are put in a random order between special tokens. Raises ValueError for a `span` as long as the row.
    """
    if span >= (length := row["tokens"].size):
        raise ValueError(f"spans of {span:g} tokens that change places do not fit rows of {length} tokens")
    ordinary_L = ordinary(row, vocab)
    luck_L = random.uniform(random.fold(key, "choose"), random.tokens(row))
    luck_L = luck_L[unit_first(key, row, ordinary_L, vocab, "span", span)]
    drawn_S = random.uniform(random.fold(key, "segment"), random.segments(row)) < share
    drawn_L = ops.take(drawn_S, jnp.maximum(row["segments"] - 1, 0))
    return ordered(stretch(row, ordinary_L), jnp.where(drawn_L, luck_L, 0.0))


def ordered(group_L: Array, luck_L: Array) -> Array:
    """Places sorted by luck within groups that lie one after another."""
    place_L = jnp.arange(group_L.size, dtype=jnp.int32)
    return jax.lax.sort((group_L, luck_L, place_L), num_keys=3)[2]


def stretch(row: dict, ordinary_L: Array) -> Array:
    """Where the ordinary tokens that a token is among begin; another token is by itself."""
    alone_L = ~ordinary_L | ~jnp.roll(ordinary_L, 1).at[0].set(False) | (row["positions"] == 0)
    return jax.lax.cummax(jnp.where(alone_L, jnp.arange(ordinary_L.size), 0))
