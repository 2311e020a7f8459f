"""Scoring words a part of the places at a time: the same numbers and gradients, and less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ops
from model.config import sized
from model.heads import mlm_head, score_words


def smoothed(logits, labels):
    return *ops.cross_entropy(logits, labels), logits.mean(-1)


@pytest.mark.parametrize("of", [ops.cross_entropy, smoothed])
@pytest.mark.parametrize("places", [40, 64, 75, 160])  # one part, whole parts, a part that is not full
def test_words_scored_in_parts(places, of):
    plain = sized("tiny", V=512, D=16, F=32)
    head = mlm_head(plain)
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((4, places, 16), np.float32)
    table = 0.1 * rng.standard_normal((512, 16), np.float32)
    labels = rng.integers(0, 512, (4, places))
    weight = rng.standard_normal((4, places), np.float32)
    params = head.init(jax.random.key(0))

    def loss(cfg, params, hidden, table):
        nll, hit, *more = score_words(cfg, lambda x: head.apply(params, x, table), hidden, labels, of)
        return (nll * weight).sum() + sum((x * weight).sum() for x in more), (nll, hit)

    def graded(remat):
        grad = jax.value_and_grad(loss, argnums=(1, 2, 3), has_aux=True)
        cfg = dataclasses.replace(plain, remat=remat)
        return jax.jit(lambda *given: grad(cfg, *given)).lower(params, hidden, jnp.asarray(table)).compile()

    whole, parts = graded("none"), graded("full")
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, *(run(params, hidden, table) for run in (whole, parts)))
    if places > 100:  # half of it and less
        assert 2 * parts.memory_analysis().temp_size_in_bytes < whole.memory_analysis().temp_size_in_bytes


def test_wide_logits_are_not_rounded():
    cfg = sized("tiny", V=512, D=128, heads=2, F=32, dtype="bfloat16")
    head = mlm_head(cfg, activation=None)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((2, 8, 128)), jnp.bfloat16)
    table = jnp.asarray(rng.standard_normal((512, 128)), jnp.bfloat16)
    params = {"bias": rng.standard_normal(512).astype(np.float32)}
    exact = np.float64(hidden) @ np.float64(table).T + params["bias"]
    wide, narrow = (head.apply(params, hidden, table, w) for w in (True, False))
    assert (wide.dtype, narrow.dtype) == (jnp.float32, jnp.bfloat16)
    assert abs(wide - exact).max() < 1e-4 < 0.05 < abs(np.float64(narrow) - exact).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_labels_that_score_alike_share_a_hit(dtype):
    logits = jnp.zeros((3, 4), dtype).at[2, 3].set(1)
    nll, hit = ops.cross_entropy(logits, jnp.array([0, 3, 3]))
    np.testing.assert_allclose(hit, [0.25, 0.25, 1])
    np.testing.assert_allclose(nll[:2], np.log(4), rtol=1e-6)
