"""The order of an epoch is a permutation, every permutation is as likely, and it never changes between versions."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from train.data.shuffle import _mix, order


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
    trials = 2000
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


def test_mix_is_splitmix64():
    # The first outputs for seed 1234567, as rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64 gives them.
    states = np.array([1234567], np.uint64) + np.arange(2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert _mix(states).tolist() == [6457827717110365317, 3203168211198807973]


def test_the_order_is_the_same_in_every_version():
    golden = [1, 0, 2, 5, 4, 9, 7, 6, 3, 8, 4, 1]  # what this code gave when it was written
    assert order(np.arange(12), 10, 3).tolist() == golden, "a resumed run would read other rows"
