"""Beam search against all the texts that there are, and greedy search against a loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.beam import search

V, STEPS, START, END, PAD = 6, 3, 2, 3, 5
BANNED = np.isin(np.arange(V), [PAD, 2])  # 0 is a word
ALL = np.ones((2, 2), bool)
rng = np.random.default_rng(0)
LOGITS = 2 * rng.standard_normal((2, 2, STEPS, V, V)).astype(np.float32)  # of a text, at a place, after a token
SAID = np.array(jax.nn.log_softmax(LOGITS))


def found(beams: int, penalty: float, wanted=ALL):
    def step(tokens_BQ, cache):
        at, written_BQT = cache
        written_BQT = written_BQT.at[:, :, at].set(tokens_BQ)
        said = jnp.asarray(LOGITS)[
            np.arange(2)[:, None], np.repeat(np.arange(2), beams)[None], at, written_BQT[..., at]
        ]
        return said, (at + 1, written_BQT)

    def take(cache, index):
        return cache[0], jnp.take_along_axis(cache[1], index[..., None], 1)

    cache = jnp.int32(0), jnp.zeros((2, 2 * beams, STEPS), jnp.int32)
    how = dict(start=START, end=END, pad=PAD, banned_V=BANNED, beams=beams, steps=STEPS, penalty=penalty)
    return jax.device_get(jax.jit(lambda: search(step, take, cache, wanted, **how))())


def texts():
    """All that can be written."""
    words = [t for t in range(V) if not BANNED[t] and t != END]
    for n in range(STEPS + 1):
        for text in itertools.product(words, repeat=n):
            if n == STEPS:
                yield text
            else:
                yield (*text, END)


def score(b, s, text, penalty):
    said = sum(SAID[b, s, i, last, token] for i, (last, token) in enumerate(zip((START, *text), text, strict=False)))
    return said / ((5 + len(text)) / 6) ** penalty


@pytest.mark.parametrize("penalty", [0.0, 1.0, 4.0])
def test_enough_beams_find_the_best_of_all(penalty):
    tokens, scores = found(27, penalty)
    for b, s in np.ndindex(2, 2):
        best = max(texts(), key=lambda text: score(b, s, text, penalty))
        assert tokens[b, s].tolist() == [*best] + [PAD] * (STEPS - len(best))
        np.testing.assert_allclose(scores[b, s], score(b, s, best, penalty), rtol=1e-5)


def test_one_beam_is_greedy():
    tokens, scores = found(1, 0.0)
    for b, s in np.ndindex(2, 2):
        text, last = [], START
        while len(text) < STEPS and last != END:
            last = int(np.where(BANNED, -np.inf, SAID[b, s, len(text), last]).argmax())
            text.append(last)
        assert tokens[b, s].tolist() == text + [PAD] * (STEPS - len(text))
        np.testing.assert_allclose(scores[b, s], score(b, s, text, 0), rtol=1e-5)


def test_what_is_found_is_scored_as_it_is_and_nothing_else_is_wanted():
    wanted = np.array([[True, False], [True, True]])
    tokens, scores = found(2, 1.0, wanted)
    assert (tokens[0, 1] == PAD).all() and scores[0, 1] == 0
    for b, s in zip(*np.nonzero(wanted), strict=True):
        text = tuple(tokens[b, s][tokens[b, s] != PAD].tolist())
        assert text in set(texts())
        np.testing.assert_allclose(scores[b, s], score(b, s, text, 1.0), rtol=1e-5)
