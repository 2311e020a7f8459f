"""Scores against scikit-learn's and SciPy's on arrays put together by hand, padding and repeats left out."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from toys import V, params_of

from model.backbone import backbone
from model.config import sized
from objectives.classify import classify
from objectives.mixture import mix
from objectives.mlm import mlm
from objectives.tag import tag
from train import checks, evaluate


def gathered():
    """Five examples over two batches of packed rows: one comes twice, and two places are empty."""
    first = dict(
        example=np.array([[[0, 4], [0, 1]], [[0, 0], [0, 0]]], np.uint32),
        segments=np.array([[1, 1, 2, 0], [1, 1, 1, 0]]),
        labels=np.array([[1, 0], [1, 9]]),
        prediction=np.array([[1, 1], [1, 7]]),
    )
    second = dict(
        example=np.array([[[0, 3], [0, 2]], [[0, 4], [0, 0]], [[0, 0], [0, 0]]], np.uint32),
        segments=np.array([[1, 2, 2, 0], [1, 0, 0, 0], [0, 0, 0, 0]]),
        labels=np.array([[0, 1], [1, 9], [9, 9]]),
        prediction=np.array([[0, 0], [1, 7], [7, 7]]),
    )
    return [first, second]


LABELS, FOUND = [1, 0, 1, 0, 1], [1, 1, 0, 0, 1]


def test_examples_come_once_and_in_order():
    labels, found = evaluate.examples(gathered(), "labels", "prediction")
    assert labels.tolist() == LABELS
    assert found.tolist() == FOUND


@pytest.mark.parametrize(
    "name, want",
    [
        ("accuracy", metrics.accuracy_score(LABELS, FOUND)),
        ("f1", metrics.f1_score(LABELS, FOUND)),
        ("matthews", metrics.matthews_corrcoef(LABELS, FOUND)),
        ("pearson", stats.pearsonr(LABELS, FOUND)[0]),
        ("spearman", stats.spearmanr(LABELS, FOUND)[0]),
    ],
)
def test_scores(name, want):
    assert evaluate.score(name, np.array(LABELS), np.array(FOUND)) == pytest.approx(want)


def test_f1_of_many_classes_is_macro():
    labels, found = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])
    assert evaluate.score("f1", labels, found) == pytest.approx(metrics.f1_score(labels, found, average="macro"))


def test_a_constant_prediction_has_no_correlation():
    assert np.isnan(evaluate.score("pearson", np.array([1.0, 2.0]), np.array([3.0, 3.0])))


def test_unknown_score():
    with pytest.raises(ValueError, match="'bleu' is unknown"):
        evaluate.score("bleu", np.array([1]), np.array([1]))


def test_scores_of_a_mixture_are_those_of_its_parts(alone, vocab):
    """One of segments, one of tokens, one with none: each as of the part by itself."""
    bb = backbone(sized("tiny", V=V, D=16, heads=2, F=32, layers=1, max_length=16, scan=True))
    parts = [classify(bb, vocab, classes=3), tag(bb, vocab, classes=("O", "B-a", "I-a")), mlm(bb, vocab)]
    mixed = mix(*((1.0, part) for part in parts), backbone=bb)
    params = params_of(bb, mixed)
    of = lambda objective: evaluate.evaluate(evaluate.evaluator(bb, objective), params, [alone], objective)
    found = of(mixed)
    classes, tags = of(parts[0]), of(parts[1])
    for name in ("accuracy", "f1", "matthews"):
        assert found[f"classify/{name}"] == classes[name]
    assert found["tag/entity_f1"] == tags["entity_f1"] > 0
    assert not any("mlm/" in name for name in found)
    with pytest.raises(ValueError, match=r"dev: classify reads labels, and these rows hold tokens. `labels` are of"):
        checks.needs(mixed, {"tokens": 0}, "dev", scored=True)
