"""Likelihoods of texts against loops that hide one token at a time, and against what predict says."""

from functools import partial

import jax
import numpy as np
import pytest
from toys import SPECIAL, V, pack, params_of

from model.backbone import backbone
from model.config import sized
from objectives.causal import causal
from objectives.diffusion import diffusion
from objectives.hybrid import hybrid
from objectives.mixture import mix
from objectives.mlm import mlm
from objectives.pairs import sop


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=64, dropout=0.0, attention_dropout=0.0))


def told(objective, bb, params, rows):
    return np.asarray(jax.jit(lambda p, r: objective.likelihood(p, partial(bb.encode, p["backbone"]), r))(params, rows))


@pytest.mark.parametrize("make", [mlm, diffusion, hybrid])
def test_each_token_is_hidden_in_turn(make, bb, vocab):
    objective = make(bb, vocab)
    params, rows = params_of(bb, objective), pack([[5, 0, 9], [1]], 48, 3)
    found = told(objective, bb, params, rows)
    before = int(make is hybrid)

    @jax.jit
    def probabilities(tokens):
        hidden = bb.encode(params["backbone"], rows | {"tokens": tokens}).hidden
        logits = objective_logits(objective, bb, params, hidden)
        if make is diffusion:  # of ordinary tokens alone
            logits = jax.numpy.where(np.isin(np.arange(V), SPECIAL), -np.inf, logits)
        return jax.nn.log_softmax(logits)

    expected = np.zeros_like(found)
    for b, i in np.argwhere((rows["segments"] > 0) & ~np.isin(rows["tokens"], SPECIAL)):
        tokens = rows["tokens"].copy()
        tokens[b, i] = vocab.mask
        expected[b, rows["segments"][b, i] - 1] += probabilities(tokens)[b, i - before, rows["tokens"][b, i]]
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert (found[1, 1:] == 0).all()
    assert (found[0] < -1).all()


def objective_logits(objective, bb, params, hidden):
    from model.heads import mlm_head

    return mlm_head(bb.config).apply(params[objective.name], hidden, params["backbone"]["embed"]["tokens"])


def test_from_left_to_right_it_is_the_sum_of_what_predict_says(bb, vocab):
    objective = causal(bb, vocab)
    params, rows = params_of(bb, objective), pack([[5, 0, 9], [1]], 48, 3)
    each = np.asarray(objective.predict(params, partial(bb.encode, params["backbone"]), rows)["log_likelihood"])
    expected = [[each[b][rows["segments"][b] == s].sum() for s in (1, 2, 3)] for b in (0, 1)]
    np.testing.assert_allclose(told(objective, bb, params, rows), expected, rtol=1e-5)


def test_of_a_hybrid_it_is_of_either_kind(bb, vocab):
    one, both = causal(bb, vocab), hybrid(bb, vocab, likelihood="causal")
    params, rows = params_of(bb, one), pack([[5, 0, 9], [1]], 48, 3)
    same = {"backbone": params["backbone"], "hybrid": params["causal"]}
    np.testing.assert_array_equal(told(both, bb, same, rows), told(one, bb, params, rows))
    with pytest.raises(ValueError, match="hybrid likelihood='both' must be one of masked, causal"):
        hybrid(bb, vocab, likelihood="both")


def test_a_mixture_has_that_of_the_first_that_has_one(bb, vocab):
    parts = ((1.0, sop(bb, vocab)), (1.0, causal(bb, vocab)), (1.0, mlm(bb, vocab)))
    objective = mix(*parts, backbone=bb)
    params, rows = params_of(bb, objective), pack([[5, 0, 9], [1]], 48, 3)
    np.testing.assert_array_equal(told(objective, bb, params, rows), told(parts[1][1], bb, params, rows))
    assert mix(parts[0], backbone=bb).likelihood is None
