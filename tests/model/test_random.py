import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from model import random


def test_a_draw_depends_on_who_and_what_for_alone():
    ids = jnp.arange(100, dtype=jnp.uint32)
    key = random.fold(random.key(1), "site")
    shuffled = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(random.uniform(key, ids)[shuffled], random.uniform(key, ids[shuffled]))
    assert (random.uniform(key, ids) != random.uniform(random.fold(key, 1), ids)).all()


def test_uniform_is_uniform_and_neighbours_are_independent():
    u = np.asarray(random.uniform(random.key(0), jnp.arange(200_000, dtype=jnp.uint32)))
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(u[lag:], u[:-lag])[0, 1]) < 4 / np.sqrt(len(u))


def test_golden():
    """Any change here changes every run's masks: the numbers are those of the first version."""
    np.testing.assert_array_equal(random.fold(random.key(0), "mask", jnp.arange(3)), GOLDEN)


GOLDEN = [3473554553, 1529316918, 3528298044]


def test_dropout_keeps_its_rate_by_channel_and_by_token():
    ids = jnp.arange(2000, dtype=jnp.uint32)
    kept = np.asarray(random.keep(random.key(5), ids, 256, 0.1))
    n = kept.size
    assert abs(kept.mean() - 0.9) < 4 * np.sqrt(0.09 / n)
    assert abs(kept.mean(0) - 0.9).max() < 5 * np.sqrt(0.09 / 2000)
    assert abs(kept.mean(1) - 0.9).max() < 5 * np.sqrt(0.09 / 256)


def test_dropout_of_pairs_is_that_of_query_and_key():
    queries = jnp.arange(6, dtype=jnp.uint32).reshape(2, 3)
    keys = jnp.array([[0, 1, 2, 3], [4, 5, 0, 1]])
    kept = np.asarray(random.keep_pairs(random.key(0), queries, keys, 2, 0.5))
    turned = np.asarray(random.keep_pairs(random.key(0), queries, keys[:, ::-1], 2, 0.5))
    np.testing.assert_array_equal(kept[..., ::-1], turned)
    assert kept.shape == (2, 2, 3, 4)


def test_a_jax_key_is_no_key_of_ours():
    with pytest.raises((TypeError, ValueError)):
        jax.random.bernoulli(random.key(0), 0.5, (3,))


@pytest.mark.parametrize("draw, to", [(jax.random.normal, "norm"), (jax.random.uniform, "uniform")])
def test_generator(draw, to):
    x = np.asarray(draw(random.generator(3), (50_000,)))
    assert stats.kstest(x, to).pvalue > 1e-3
    a, b = jax.random.split(random.generator(3))
    assert abs(np.corrcoef(draw(a, (10_000,)), draw(b, (10_000,)))[0, 1]) < 0.04


def test_no_two_leaves_share_a_stretch_of_their_draws():
    """One cycle read from several places would give pairs of neighbours twice: here some 15 of them."""
    keys = jax.random.split(random.generator(0), 8000)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.bits(key, (1024,))))(keys))
    neighbours = draws[:, 1:].astype(np.uint64) << np.uint64(32) | draws[:, :-1]
    assert len(np.unique(neighbours)) == neighbours.size


def test_gumbels_maximum_is_a_sample():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    n = 40_000
    draws = random.gumbel(random.key(4), jnp.arange(n, dtype=jnp.uint32), 4)
    assert np.isfinite(draws).all()
    counts = np.bincount(np.argmax(np.log(p) + np.asarray(draws), -1), minlength=4)
    assert (abs(counts - n * p) < 4.5 * np.sqrt(n * p * (1 - p))).all()
