"""The teacher's targets and losses by numpy, its moving average in closed form, and that no gradient reaches it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import V, params_of

from model import random
from model.backbone import backbone
from model.config import sized
from objectives.data2vec import data2vec
from objectives.reconstruct import reconstruct
from objectives.types import loss as total
from train import build, tree
from train import step as training
from train.state import TrainState


@pytest.fixture(scope="module")
def bb():
    still = dict(dropout=0.0, attention_dropout=0.0)
    return backbone(sized("tiny", V=V, D=16, heads=4, F=32, layers=3, max_length=64, **still))


def sums_of(objective, bb, params, rows):
    batch = jax.device_get(training.corrupted(rows, random.key(9), jnp.int32(0), objective))
    loss = jax.jit(lambda p: objective.loss(p, partial(bb.encode, p["backbone"]), batch, None, 0))
    return jax.device_get(loss(params)), batch


def standard(x, axis):
    x = x - x.mean(axis, keepdims=True)
    return x / np.sqrt((x * x).mean(axis, keepdims=True) + 1e-5)


def spread(targets, rows, mine):
    """Of hidden tokens the squares of what their targets are away from their text's mean, a channel."""
    out = 0.0
    for b, p in zip(*np.nonzero(mine["weight"]), strict=True):
        i = mine["index"][b, p]
        own = rows["segments"][b] == rows["segments"][b, i]
        out += ((targets[b, i] - targets[b, own].mean(0)) ** 2).mean()
    return out


@pytest.mark.parametrize("norm, beta", [("layer", 0.5), ("instance", None)])
def test_loss_against_a_loop(bb, vocab, packed, norm, beta):
    objective = data2vec(bb, vocab, top=2, norm=norm, beta=beta, rate=0.3)
    params = params_of(bb, objective)
    sums, batch = sums_of(objective, bb, params, packed)
    teacher = {"embed": params["backbone"]["embed"]} | params["data2vec"]["teacher"]
    layers = np.asarray(bb.encode(teacher, packed, capture=("mlp",)).captured["mlp"], np.float64)
    student = np.asarray(bb.encode(params["backbone"], batch).hidden, np.float64)
    head, mine, want = params["data2vec"]["head"], batch["data2vec"], 0.0
    student = np.asarray(
        jax.nn.gelu(student @ head["transform"]["kernel"] + head["transform"]["bias"], approximate=False)
    )
    for b, p in zip(*np.nonzero(mine["weight"]), strict=True):
        i = mine["index"][b, p]
        if norm == "layer":
            target = (standard(layers[1, b, i], -1) + standard(layers[2, b, i], -1)) / 2
        else:
            own = packed["segments"][b] == packed["segments"][b, i]
            at = own[:i].sum()
            target = (standard(layers[1, b, own], 0)[at] + standard(layers[2, b, own], 0)[at]) / 2
        away = np.abs(student[b, i] @ head["out"]["kernel"] + head["out"]["bias"] - target)
        each = away**2 if beta is None else np.where(away <= beta, away**2 / (2 * beta), away - beta / 2)
        want += each.mean()
    np.testing.assert_allclose(sums.terms["data2vec"].sum, want, rtol=1e-5)
    if norm == "layer":
        apart = spread((standard(layers[1], -1) + standard(layers[2], -1)) / 2, packed, mine)
        np.testing.assert_allclose(sums.metrics["data2vec_spread"].numerator, apart, rtol=1e-5)
    assert sums.terms["data2vec"].weight == mine["weight"].sum() > 20


def test_the_teacher_begins_as_the_student_and_is_its_moving_average(bb, vocab, alone):
    """Three steps, in closed form from the students after each; none of its leaves are the optimizer's."""
    objective = data2vec(bb, vocab, top=2, decay=0.5, final_decay=0.9, decay_steps=2)
    params = objective.begin(params_of(bb, objective))
    first = params["backbone"]["layers"]["mlp"]["wi"]["kernel"]
    np.testing.assert_array_equal(params["data2vec"]["teacher"]["layers"]["mlp"]["wi"]["kernel"], first)
    assert "embed" not in params["data2vec"]["teacher"]
    section = dict(factory="train.optimizer:adamw", weight_decay=0.5)
    spec = build.Spec({}, {}, section, dict(factory="train.schedule:constant", peak=0.05), 16)
    _, optimizer, learned = build.optimization(spec, "pretrain", bb, objective, 3)
    own = tree.split(params, learned)[0]
    assert not any("teacher" in name for name in tree.leaves(own))
    state = TrainState(jnp.int32(0), params, optimizer.init(own))
    step = jax.jit(partial(training.step, backbone=bb, objective=objective, optimizer=optimizer, learned=learned))
    students = []
    for _ in range(3):
        state, _ = step(state, alone, random.key(0))
        students.append(np.asarray(state.params["backbone"]["layers"]["mlp"]["wi"]["kernel"]))
    # tau is 0.5, 0.7, 0.9
    want = 0.9 * (0.7 * (0.5 * first + 0.5 * students[0]) + 0.3 * students[1]) + 0.1 * students[2]
    got = state.params["data2vec"]["teacher"]["layers"]["mlp"]["wi"]["kernel"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert abs(students[2] - first).max() > 0.01


def test_the_teacher_moves_where_params_are_bfloat16(vocab):
    """Steps of a thousandth are below what bfloat16 tells apart."""
    bb = backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=64, param_dtype="bfloat16"))
    objective = data2vec(bb, vocab, top=2, decay=0.999, final_decay=0.999)
    params = objective.begin(params_of(bb, objective))
    before = tree.leaves(params["data2vec"]["teacher"])
    params |= {"backbone": jax.tree.map(lambda x: x + 1, params["backbone"])}
    for path, x in tree.leaves(objective.after(params, jnp.int32(0))["data2vec"]["teacher"]).items():
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x - before[path], 0.001, rtol=0.05)


@pytest.mark.parametrize("make", [partial(data2vec, top=2), reconstruct])
def test_no_gradient_reaches_the_target(bb, vocab, packed, make):
    """With nothing read by the student's own path, the gradient of the table and of the teacher are zeros."""
    objective = make(bb, vocab)
    params = params_of(bb, objective)
    batch = training.corrupted(packed, random.key(9), jnp.int32(0), objective)
    still = jax.lax.stop_gradient

    def loss(params):
        encode = lambda *a, **how: bb.encode(still(params["backbone"]), *a, **how)
        return total(objective.loss(params, encode, batch, None, 0))

    for name, g in tree.leaves(jax.jit(jax.grad(loss))(params)).items():
        assert (abs(g).max() > 0) == (name.split("/")[0] != "backbone" and "teacher" not in name), name


def test_reconstruct_against_a_loop(vocab, packed):
    bb = backbone(sized("tiny", V=V, D=16, heads=4, F=32, embed_width=8, max_length=64))
    objective = reconstruct(bb, vocab, rate=0.3)
    params = params_of(bb, objective)
    sums, batch = sums_of(objective, bb, params, packed)
    hidden = np.asarray(bb.encode(params["backbone"], batch).hidden, np.float64)
    found = hidden @ params["reconstruct"]["out"]["kernel"] + params["reconstruct"]["out"]["bias"]
    want, mine = 0.0, batch["reconstruct"]
    for b, p in zip(*np.nonzero(mine["weight"]), strict=True):
        i = mine["index"][b, p]
        want += ((found[b, i] - params["backbone"]["embed"]["tokens"][packed["tokens"][b, i]]) ** 2).mean()
    np.testing.assert_allclose(sums.terms["reconstruct"].sum, want, rtol=1e-5)
    true = np.asarray(params["backbone"]["embed"]["tokens"])[packed["tokens"]]
    np.testing.assert_allclose(sums.metrics["reconstruct_spread"].numerator, spread(true, packed, mine), rtol=1e-5)
    assert objective.predict(params, partial(bb.encode, params["backbone"]), packed)["prediction"].shape[-1] == 8


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(), "data2vec top=10 must be from 1 to the backbone's 3 layers"),
        (dict(top=2, norm="batch"), "data2vec norm='batch' must be one of layer, instance"),
        (dict(top=2, beta=0.0), "data2vec beta=0.0 must be positive"),
        (dict(top=2, decay=1.1), "decay=1.1 and final_decay=0.9999 must be between 0 and 1"),
        (dict(top=2, decay_steps=0), "decay_steps=0 above 0"),
        (dict(top=2, rate=0.0), "data2vec rate=0.0 must be a share"),
    ],
)
def test_refusals(bb, vocab, wrong, says):
    with pytest.raises(ValueError, match=says):
        data2vec(bb, vocab, **wrong)
