"""Tagging: the loss against numpy's, the same however sentences lie, and scores against seqeval's on plain lists."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numbers_as_text import Numbers, records, some
from seqeval.metrics import f1_score
from toys import params_of

from model import random
from model.backbone import backbone
from model.config import sized
from objectives import types
from objectives.tag import tag
from train import evaluate
from train.data.layout import LAYOUTS, layout
from train.data.loader import evaluation_batches
from train.data.table import Memory
from train.data.words import tag_words

NAMES = ("O", "B-a", "I-a", "B-b", "I-b")
COUNTS = [3, 9, 1, 6, 12, 4, 2]


@pytest.fixture(scope="module")
def model(vocab):
    bb = backbone(sized("tiny", V=64, D=16, heads=2, F=32, layers=1, max_length=32, scan=True))
    objective = tag(bb, vocab, classes=NAMES)
    return bb, objective, params_of(bb, objective)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    labels = [" ".join(rng.choice(NAMES, n)) for n in COUNTS]
    return tag_words(records([some(n, 5 + n) for n in COUNTS], labels=labels), Numbers(), 16, NAMES).arrays, labels


def test_loss_and_accuracy_are_those_of_numpy(model):
    bb, objective, params = model
    batch = rows()[0]
    encode = partial(bb.encode, params["backbone"])
    found = types.report(objective.loss(params, encode, batch, None, jnp.int32(0)))
    p_BLC = np.asarray(objective.predict(params, encode, batch)["probabilities"], np.float64)
    losses, hits = [], []
    for b, n in enumerate(COUNTS):
        for i in range(1, n + 1):  # after [CLS], each word is one token
            p_C, want = p_BLC[b, i], batch["tags"][b, i] - 1
            losses.append(-np.log(p_C[want]))
            hits.append(p_C.argmax() == want)
    np.testing.assert_allclose(found["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(found["tag_accuracy"], np.mean(hits), rtol=1e-6)


def test_tokens_without_a_tag_count_for_nothing(model):
    bb, objective, params = model
    batch = rows()[0]
    none = dict(batch, tags=np.zeros_like(batch["tags"]))
    encode = partial(bb.encode, params["backbone"])
    assert types.loss(objective.loss(params, encode, none, None, jnp.int32(0))) == 0
    one = dict(none, tags=none["tags"].copy())
    one["tags"][2, 1] = 3
    p_C = objective.predict(params, encode, one)["probabilities"][2, 1]
    got = types.loss(objective.loss(params, encode, one, None, jnp.int32(0)))
    np.testing.assert_allclose(got, -np.log(p_C[2]), rtol=1e-5)


def test_every_layout_has_the_same_metrics_and_they_are_seqeval_s(model):
    bb, objective, params = model
    arrays, labels = rows()
    run = jax.jit(evaluate.evaluator(bb, objective))
    table = Memory(arrays)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    places = jax.NamedSharding(mesh, jax.P())
    found = {}
    for name in LAYOUTS:
        batches = evaluation_batches(table, 4, places, layout(name, table, 4))
        found[name] = evaluate.evaluate(run, params, batches, objective)
    guessed = objective.predict(params, partial(bb.encode, params["backbone"]), arrays)["prediction"]
    said = [[NAMES[c] for c in guessed[b, 1 : n + 1]] for b, n in enumerate(COUNTS)]
    want = f1_score([label.split() for label in labels], said)
    assert 0 < want < 1
    for metrics in found.values():
        assert metrics["entity_f1"] == pytest.approx(want)
        assert metrics == pytest.approx(found["padded"], rel=1e-5)


def test_entities_that_begin_with_no_b_count_as_conlleval_counts_them():
    true, found = [np.array([1, 2, 0, 3])], [np.array([2, 2, 0, 3])]  # I-a I-a for B-a I-a
    assert evaluate.score("entity_f1", true, found, NAMES) == 1.0
    assert evaluate.score("entity_f1", true, [np.array([1, 0, 0, 3])], NAMES) == 0.5


def test_entities_of_other_schemes(model, vocab):
    """IOBES's are those of the same words in IOB2; IOB1 begins one by B only where it follows its like."""
    names = ("O", "B-a", "I-a", "E-a", "S-a", "B-b", "I-b", "E-b", "S-b")
    assert tag(model[0], vocab, classes=names).scores == ("entity_f1",)
    rng = np.random.default_rng(0)
    true, found = [], []  # [(length, kind)], 0 between them
    for out in (true, found):
        for _ in range(200):
            spans = [
                (int(n), kind) for n, kind in zip(rng.integers(1, 3, 4), rng.choice(["a", "b", ""], 4), strict=True)
            ]
            out.append(spans)

    def tags(spans, scheme):
        words, before = [], ""
        for n, kind in spans:
            if not kind:
                words += ["O"] * n
            elif scheme == "IOBES":
                words += [f"S-{kind}"] if n == 1 else [f"B-{kind}", *[f"I-{kind}"] * (n - 2), f"E-{kind}"]
            else:
                first = "B" if scheme == "IOB2" or kind == before else "I"
                words += [f"{first}-{kind}", *[f"I-{kind}"] * (n - 1)]
            before = kind
        return np.array([names.index(word) for word in words])

    for spans, others in zip(true, found, strict=True):  # of as many words
        gap = sum(n for n, _ in spans) - sum(n for n, _ in others)
        (others if gap > 0 else spans).extend([(1, "")] * abs(gap))
    got = {
        scheme: evaluate.score("entity_f1", *[[tags(spans, scheme) for spans in of] for of in (true, found)], names)
        for scheme in ("IOB1", "IOB2", "IOBES")
    }
    assert 0 < got["IOB2"] < 1
    assert len(set(got.values())) == 1


def test_parts_of_speech_have_accuracy_alone(model, vocab):
    assert tag(model[0], vocab, classes=("NOUN", "VERB")).scores == ()


@pytest.mark.parametrize("classes", [("O",), ("O", "O"), "NOUN"])
def test_classes_that_are_none(model, vocab, classes):
    with pytest.raises(ValueError, match="at least two names, none twice"):
        tag(model[0], vocab, classes=classes)


def test_dropout_has_a_key(model):
    bb, objective, params = model
    batch = rows()[0]
    encode = partial(bb.encode, params["backbone"])
    losses = [types.loss(objective.loss(params, encode, batch, k, jnp.int32(0))) for k in (None, random.key(1))]
    assert losses[0] != losses[1]
