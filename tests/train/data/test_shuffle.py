"""The order of an epoch is a permutation, every permutation is as likely, and it never changes between versions."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from train.data.shuffle import order


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 10**9))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    rows = order(np.arange(epoch * size, (epoch + 1) * size), size, seed)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(size))


@given(st.integers(1, 10**12), st.lists(st.integers(0, 10**15), min_size=1, max_size=20), st.integers(0, 2**32))
def test_a_place_is_computed_alone(size, places, seed):
    together = order(np.array(places), size, seed)
    assert together.tolist() == [order(np.array([place]), size, seed).item() for place in places]
    assert ((together >= 0) & (together < size)).all()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("vary", ["seed", "epoch"])
def test_all_permutations_are_equally_likely(size, vary):
    trials = 3000
    if vary == "seed":
        rows = [order(np.arange(size), size, seed) for seed in range(trials)]
    else:
        rows = order(np.arange(size * trials), size, 0).reshape(trials, size)
    counts = Counter(map(tuple, np.asarray(rows).tolist()))
    assert stats.chisquare([counts[p] for p in itertools.permutations(range(size))]).pvalue > 1e-3


def test_neighbours_and_epochs_are_uncorrelated():
    rows = order(np.arange(200 * 1000), 1000, 7).reshape(200, 1000)
    bound = 4 / np.sqrt(rows.size)  # four standard deviations of a correlation of independent numbers
    assert abs(np.corrcoef(rows[:, :-1].ravel(), rows[:, 1:].ravel())[0, 1]) < bound
    assert abs(np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1]) < bound
    other = order(np.arange(200 * 1000), 1000, 8).reshape(200, 1000)
    assert abs(np.corrcoef(rows.ravel(), other.ravel())[0, 1]) < bound


def test_the_order_is_the_same_in_every_version():
    assert order(np.arange(12), 10, 3).tolist() == GOLDEN, "a resumed run would read other rows"


GOLDEN = [0]
