"""Listed n-grams found in rows on the device: a trie as static tables, and the occurrences that cut a row to units."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model import ops


class Ngrams(NamedTuple):
    """A trie of token ids. State 0 is the root, and -1 none.

    begin:  int32 [V], the state of an n-gram's first token
    first:  int32 [states + 1], where a state's children begin in the next two
    token, child: int32 [edges], a child's token (sorted within its state) and its state
    whole:  bool [states], whether an n-gram ends here
    length, shortest: of the longest and the shortest n-gram
    mean:   length of the n-gram that a token is in, the mean over their tokens
    fan:    the most children of a state but the root
    """

    begin: np.ndarray
    first: np.ndarray
    token: np.ndarray
    child: np.ndarray
    whole: np.ndarray
    length: int
    shortest: int
    mean: float
    fan: int


def ngrams(listed: str | Sequence[Sequence[int]], size: int) -> Ngrams:
    """The trie of n-grams of token ids, or of a file that holds one a line, its ids parted by spaces; its path may
    hold variables ($NAME).

    `size` is the number of ids. Raises ValueError for a list without n-grams, one shorter than two tokens, or an id
    that is none.
    """
    if isinstance(listed, str):
        file = Path(os.path.expandvars(listed))
        if not file.is_file():
            raise ValueError(
                f"there is no file {file} of n-grams; expected one with ids parted by spaces, an n-gram a line"
            )
        listed = [
            _ids(line, f"line {i} of {file}") for i, line in enumerate(file.read_text().splitlines(), 1) if line.strip()
        ]
    children: list[dict[int, int]] = [{}]
    ends = set()
    for ngram in listed:
        if len(ngram) < 2 or not all(isinstance(t, int | np.integer) and 0 <= t < size for t in ngram):
            raise ValueError(f"the n-gram {tuple(ngram)} must have two tokens or more, ids from 0 to {size - 1}")
        state = 0
        for token in ngram:
            if token not in children[state]:
                children[state][token] = len(children)
                children.append({})
            state = children[state][token]
        ends.add(state)
    if not ends:
        raise ValueError("the list of n-grams is empty")
    begin = np.full(size, -1, np.int32)
    begin[list(children[0])] = list(children[0].values())
    children[0] = {}
    edges = [edge for of in children for edge in sorted(of.items())]
    token, child = np.array(edges, np.int32).T
    first = np.cumsum([0, *map(len, children)]).astype(np.int32)
    whole = np.isin(np.arange(len(children)), list(ends))
    lengths = np.array([len(ngram) for ngram in listed])
    mean = float((lengths**2).sum() / lengths.sum())
    return Ngrams(
        begin, first, token, child, whole, int(lengths.max()), int(lengths.min()), mean, max(map(len, children))
    )


def _ids(line: str, where: str) -> list[int]:
    try:
        return [int(word) for word in line.split()]
    except ValueError:
        raise ValueError(
            f"{where} of n-grams is {line.strip()!r}; expected token ids parted by spaces: encode the words first"
        ) from None


def cut(found: Ngrams, row: dict, ordinary_L: jax.Array, starts_L: jax.Array) -> jax.Array:
    """bool [L]: `starts_L`, where words (and special tokens) begin, without those inside an n-gram.

    From left to right the longest that begins with a word, ends with one and holds ordinary tokens alone; the next is
    looked for after it. A table look-up for each token of the longest n-gram, then one for each doubling of the row.
    """
    tokens_L = row["tokens"]
    L = tokens_L.size
    if found.shortest > L:
        raise ValueError(f"the shortest of the n-grams has {found.shortest} tokens, and a row has {L}")
    place_L = jnp.arange(L)
    starts_after_L = jnp.ones(L + 1, bool).at[:L].set(starts_L)[1:]  # whether a unit may end with this token
    state_L = jnp.where(starts_L & ordinary_L, ops.take(found.begin, tokens_L), -1)
    inside_L = ordinary_L & (row["positions"] > 0)  # no segment begins within
    next_L = place_L + 1
    for n in range(1, found.length):
        at_L = jnp.minimum(place_L + n, L - 1)
        there_L = (place_L + n < L) & ops.take(inside_L, at_L) & (state_L >= 0)
        state_L = jnp.where(there_L, _child(found, state_L, ops.take(tokens_L, at_L)), -1)
        ends_L = (state_L >= 0) & ops.take(found.whole, jnp.maximum(state_L, 0)) & ops.take(starts_after_L, at_L)
        next_L = jnp.where(ends_L, place_L + n + 1, next_L)
    # what is reached from the row's first place by steps of a unit, or of one token: twice as many steps a round
    reached_L, jump_L = place_L == 0, jnp.append(next_L, L)
    for _ in range(max(1, (L - 1).bit_length())):
        more_L = jnp.zeros(L + 1, bool).at[jump_L[:L]].max(reached_L)
        reached_L, jump_L = reached_L | more_L[:L], ops.take(jump_L, jump_L)
    return starts_L & reached_L


def _child(found: Ngrams, state_L: jax.Array, token_L: jax.Array) -> jax.Array:
    """The state after a token, -1 where there is none: by bisection among the state's children."""
    state_L = jnp.maximum(state_L, 0)
    low_L, end_L = ops.take(found.first, state_L), ops.take(found.first, state_L + 1)
    high_L, last = end_L, found.token.size - 1
    for _ in range(found.fan.bit_length()):
        middle_L = (low_L + high_L) // 2
        less_L = (ops.take(found.token, jnp.minimum(middle_L, last)) < token_L) & (middle_L < high_L)
        low_L, high_L = jnp.where(less_L, middle_L + 1, low_L), jnp.where(less_L, high_L, middle_L)
    low_at_L = jnp.minimum(low_L, last)
    hit_L = (low_L < end_L) & (ops.take(found.token, low_at_L) == token_L)
    return jnp.where(hit_L, ops.take(found.child, low_at_L), -1)
