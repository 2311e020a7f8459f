"""Occurrences of n-grams against a walk over the row, and the lists that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from objectives.ngrams import cut, ngrams

V, L = 12, 48


def walk(listed, tokens, positions, ordinary, starts) -> list[bool]:
    """Where units begin: at each word the longest listed n-gram of whole words in its segment, else the word."""
    out, i = [False] * L, 0
    starts = [*starts, True]
    while i < L:
        out[i] = starts[i]
        fits = [
            len(g)
            for g in listed
            if starts[i] and i + len(g) <= L and tuple(tokens[i : i + len(g)]) == tuple(g) and starts[i + len(g)]
            and all(ordinary[i : i + len(g)]) and all(positions[i + 1 : i + len(g)] > 0)
        ]  # fmt: skip
        i += max(fits, default=1)
    return out


@pytest.mark.parametrize("seed", range(6))
def test_cut_against_a_walk(seed):
    rng = np.random.default_rng(seed)
    listed = [tuple(rng.integers(1, 6, rng.integers(2, 6))) for _ in range(60)] + [(1, 1), (1, 1, 1), (2, 1, 1, 2)]
    found, joined = ngrams(listed, V), 0
    for _ in range(20):
        tokens = rng.integers(0, 6, L)
        edges = np.sort(rng.choice(np.arange(1, L), 3, replace=False))
        segments = np.searchsorted(edges, np.arange(L), "right")
        positions = np.arange(L) - np.r_[0, edges][segments]
        ordinary = (tokens > 0) & (segments < 3)
        before = np.r_[False, ordinary[:-1]]
        starts = (rng.random(L) < 0.8) | ~ordinary | ~before | (positions == 0)
        row = dict(tokens=jnp.asarray(tokens), positions=jnp.asarray(positions))
        got = np.asarray(jax.jit(lambda r, o, s: cut(found, r, o, s))(row, jnp.asarray(ordinary), jnp.asarray(starts)))
        np.testing.assert_array_equal(got, walk(listed, tokens, positions, ordinary, starts))
        joined += (starts & ~got).sum()
    assert joined > 50


def test_a_file_is_the_list(tmp_path, monkeypatch):
    file = tmp_path / "ngrams.txt"
    file.write_text("3 4 5\n\n3 4\n 7 1\n")
    for a, b in zip(ngrams(str(file), V), ngrams([(7, 1), (3, 4), (3, 4, 5)], V), strict=True):
        assert np.size(a) == np.size(b)
    assert ngrams(str(file), V).length == 3
    monkeypatch.setenv("LISTS", str(tmp_path))
    assert ngrams("$LISTS/ngrams.txt", V).length == 3
    file.write_text("3 4 5\nof the\n")
    with pytest.raises(ValueError, match=r"line 2 of .*ngrams.txt of n-grams is 'of the'; expected token ids"):
        ngrams(str(file), V)
    with pytest.raises(ValueError, match=r"there is no file .*none.txt of n-grams"):
        ngrams("$LISTS/none.txt", V)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ([(3,)], r"the n-gram \(3,\) must have two tokens or more, ids from 0 to 11"),
        ([(3, 12)], r"the n-gram \(3, 12\) must have"),
        ([], "the list of n-grams is empty"),
    ],
)
def test_refusals(wrong, says):
    with pytest.raises(ValueError, match=says):
        ngrams(wrong, V)
