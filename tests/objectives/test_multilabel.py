"""Several classes a text: the loss against numpy's, scores against scikit-learn's, labels parsed, and the errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numbers_as_text import Numbers, records, some
from sklearn import metrics
from toys import params_of

from model.backbone import backbone
from model.config import sized
from objectives import types
from objectives.classify import classify, multilabel
from train import evaluate
from train.data.rows import label_examples

CLASSES = ("a", "b", "c")
LABELS = ["a|c", "", "b", "c|b|a", "c"]
HELD = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]])


def rows(segments=1, length=12):
    given = records([some(n, 5 + n) for n in (3, 6, 2, 7, 4)], labels=LABELS)
    return label_examples(given, Numbers(), length, CLASSES, segments=segments, separator="|").arrays


@pytest.fixture(scope="module")
def model(vocab):
    bb = backbone(sized("tiny", V=64, D=16, heads=2, F=32, layers=1, max_length=32, scan=True))
    objective = multilabel(bb, vocab, classes=3)
    return bb, objective, params_of(bb, objective)


def test_labels_are_parsed():
    assert rows()["labels"][:, 0].tolist() == HELD.tolist()
    assert rows()["labels"].dtype == np.int32
    packed = rows(segments=5, length=40)
    there = np.arange(5) < packed["segments"].max(1)[:, None]
    assert packed["labels"].shape == (len(there), 5, 3)
    order = packed["example"][there][:, 1]
    np.testing.assert_array_equal(packed["labels"][there], HELD[order])


def test_loss_and_scores(model):
    bb, objective, params = model
    batch = rows()
    p = np.asarray(objective.predict(params, partial(bb.encode, params["backbone"]), batch)["probabilities"])[:, 0]
    want = -np.where(HELD, np.log(p), np.log1p(-p)).mean()
    found = evaluate.evaluate(jax.jit(evaluate.evaluator(bb, objective)), params, [batch], objective)
    np.testing.assert_allclose(found["loss"], want, rtol=1e-5)
    assert found["exact_match"] == pytest.approx(((p >= 0.5) == HELD).all(1).mean())
    for average in ("micro", "macro"):
        score = metrics.f1_score(HELD, p >= 0.5, average=average, zero_division=0.0)
        assert found[f"f1_{average}"] == pytest.approx(score)


def test_a_wild_logit_has_a_finite_loss(model):
    bb, objective, params = model
    wild = params | {"classify": params["classify"] | {"out": params["classify"]["out"] | {"bias": jnp.full(3, 1e4)}}}
    sums = objective.loss(wild, partial(bb.encode, wild["backbone"]), rows(), None, jnp.int32(0))
    np.testing.assert_allclose(types.loss(sums), 1e4 * (1 - HELD).mean(), rtol=1e-3)


def test_a_classifier_of_one_label_has_the_same_params(model, vocab):
    bb, _, params = model
    other = params_of(bb, classify(bb, vocab, classes=3))
    assert jax.tree.map(jnp.shape, other) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(
    "options, message",
    [(dict(classes=0), "at least 1 class"), (dict(classes=2, threshold=1.0), "threshold=1.0 is a probability")],
)
def test_errors(model, vocab, options, message):
    with pytest.raises(ValueError, match=message):
        multilabel(model[0], vocab, **options)


def test_errors_of_labels():
    given = records(["5", "6"], labels=["a|x", "b"])
    with pytest.raises(ValueError, match="f:1: label 'x' is not among classes"):
        label_examples(given, Numbers(), 8, CLASSES, separator="|")
    with pytest.raises(ValueError, match="expected text that stands between classes"):
        label_examples(given, Numbers(), 8, None, separator="|")
    with pytest.raises(ValueError, match="expected text that stands between classes"):
        label_examples(given, Numbers(), 8, CLASSES, separator="")
