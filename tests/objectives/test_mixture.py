"""A mixture against its parts: gradients that add up, passes that are shared, one objective a step, and a config."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from model import random
from model.backbone import backbone
from model.config import sized
from objectives import types
from objectives.causal import causal
from objectives.classify import classify
from objectives.contrastive import contrastive
from objectives.hybrid import hybrid
from objectives.mixture import mix
from objectives.mlm import mlm
from objectives.pairs import nsp, sop
from objectives.rtd import rtd
from train import build, flops, loop, tree
from train import step as training


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", V=toys.V, D=16, heads=4, F=32, max_length=64))


def stepped(bb, objective, microbatches=1):
    """(params, rows, step) -> (report, gradient by path) of a step with dropout; of the params, the objective's."""

    @jax.jit
    def run(params, rows, step):
        key = random.fold(random.key(1), step)
        batch = training.corrupted(rows, key, step, objective)
        gradient, sums = training.gradients(
            params, batch, key, step, backbone=bb, objective=objective, learned=jax.tree.map(lambda _: True, params),
            microbatches=microbatches,
        )  # fmt: skip
        return gradient, types.report(sums)

    def of(params, rows, step=0):
        like = jax.eval_shape(partial(training.init, backbone=bb, objective=objective), random.generator(0))
        gradient, report = jax.device_get(run({k: params[k] for k in like}, rows, jnp.int32(step)))
        return report, tree.leaves(gradient)

    return of


def passes(bb, objective, rows) -> int:
    """How often the backbone is run through for the loss."""
    calls = []

    def encode(batch, key=None, **how):
        calls.append(how)
        return bb.encode(params["backbone"], batch, key, **how)

    params, key = toys.params_of(bb, objective), random.key(0)

    def loss(rows):
        batch = training.corrupted(rows, key, jnp.int32(0), objective)
        return objective.loss(params, encode, batch, key, jnp.int32(0))

    jax.eval_shape(loss, rows)
    return len(calls)


def test_losses_and_gradients_add_up(bb, vocab, packed):
    parts = [(1.0, mlm(bb, vocab)), (0.5, causal(bb, vocab)), (2.0, classify(bb, vocab, classes=3))]
    objective = mix(*parts, backbone=bb)
    params = toys.params_of(bb, objective)
    report, found = stepped(bb, objective, 2)(params, packed)
    expected = dict.fromkeys(found, 0.0)
    loss = 0.0
    for weight, part in parts:
        alone, gradient = stepped(bb, part)(params, packed)
        loss += weight * alone["loss"]
        assert report[part.name] == pytest.approx(alone["loss"], rel=1e-5)
        for path, g in gradient.items():
            expected[path] = expected[path] + weight * g
    assert report["loss"] == pytest.approx(loss, rel=1e-5)
    for path, g in expected.items():
        np.testing.assert_allclose(found[path], g, atol=2e-6, err_msg=path)


def test_what_reads_a_table_that_is_a_sum_trains_the_part_that_it_may(bb, vocab, packed):
    """Of gradient-disentangled embeddings the delta, by masked language modelling's gradient of the whole table too."""
    parts = [(1.0, rtd(bb, vocab, sharing="gdes")), (0.5, mlm(bb, vocab))]
    objective = mix(*parts, backbone=bb)
    assert objective.frozen == ("backbone/embed/tokens",)
    params = objective.after(toys.params_of(bb, objective), jnp.int32(0))
    _, found = stepped(bb, objective, 2)(params, packed)
    (_, of_rtd), (_, of_mlm) = (stepped(bb, part)(params, packed) for _, part in parts)
    table, delta, kept = "backbone/embed/tokens", "rtd/delta", "rtd/generator/embed/tokens"
    assert abs(of_mlm[table]).max() > 1e-3 < abs(of_rtd[delta]).max()
    np.testing.assert_allclose(found[delta], of_rtd[delta] + 0.5 * of_mlm[table], atol=2e-6)
    np.testing.assert_allclose(found[kept], of_rtd[kept], atol=2e-6)
    assert abs(found[table]).max() == 0
    own = params["rtd"] | {"delta": params["rtd"]["delta"] + 1}
    moved = objective.after(params | {"rtd": own}, jnp.int32(0))["backbone"]["embed"]["tokens"]
    np.testing.assert_allclose(moved, params["backbone"]["embed"]["tokens"] + 1, atol=1e-5)


def test_heads_of_two_objectives_drop_other_units(bb, vocab, packed):
    a, b = (classify(bb, vocab, classes=3, dropout=0.5, name=name) for name in "ab")
    objective = mix((1.0, a), (1.0, b), backbone=bb)
    params = toys.params_of(bb, objective)
    report, _ = stepped(bb, objective)(params | {"b": params["a"]}, packed)
    assert abs(report["a"] - report["b"]) > 1e-3 * report["a"]


def test_one_pass_is_that_of_corruptions_done_in_turn(bb, vocab, packed):
    first, second = sop(bb, vocab), mlm(bb, vocab)
    chained = sop(bb, vocab)._replace(
        corrupt=lambda key, row, step: second.corrupt(key, first.corrupt(key, row, step), step)
    )
    hidden = second._replace(corrupt=chained.corrupt)
    objective = mix((1.0, second), (3.0, first), backbone=bb)  # named first, done last
    params = toys.params_of(bb, objective)
    report, found = stepped(bb, objective)(params, packed)
    for part in (chained, hidden):
        alone, gradient = stepped(bb, part)(params, packed)
        assert report[part.name] == pytest.approx(alone["loss"], rel=1e-5)
    for path in (path for path in gradient if path.startswith("mlm/")):
        np.testing.assert_allclose(found[path], gradient[path], atol=2e-6, err_msg=path)


@pytest.mark.parametrize(
    ("makers", "expected"),
    [
        ((mlm, sop), 1),
        ((mlm, causal), 2),
        ((nsp, mlm, causal), 2),
        ((nsp, sop), 2),
        ((causal, nsp), 2),  # where [CLS] sees itself alone no pair can be told
        ((hybrid, sop), 2),
        ((mlm, partial(classify, classes=3)), 2),
        ((partial(classify, classes=3), partial(classify, classes=2, name="other", pooling="mean")), 1),
        ((contrastive, partial(classify, classes=3)), 2),
    ],
)
def test_what_can_share_a_pass_does(makers, expected, bb, vocab, packed):
    objective = mix(*((1.0, make(bb, vocab)) for make in makers), backbone=bb)
    assert passes(bb, objective, packed) == expected


def test_what_nobody_reads_is_not_computed(bb, vocab, packed):
    both = mix((1.0, mlm(bb, vocab)), (1.0, sop(bb, vocab)), backbone=bb)
    count = lambda objective: flops.of_loss(bb, objective, toys.params_of(bb, objective), packed)
    pairs = count(sop(bb, vocab))
    assert count(mlm(bb, vocab)) < count(both) < count(mlm(bb, vocab)) + pairs / 2


def test_one_objective_a_step(bb, vocab, packed):
    parts = [(3.0, mlm(bb, vocab)), (1.0, causal(bb, vocab)), (1.0, contrastive(bb, vocab))]
    objective = mix(*parts, backbone=bb, alternate=True)
    params = toys.params_of(bb, objective)
    mixed, single = stepped(bb, objective, 2), {part.name: stepped(bb, part) for _, part in parts}
    chosen = []
    for step in range(10):
        report, found = mixed(params, packed, step)
        (mine,) = (part for _, part in parts if np.isfinite(report[part.name]))
        chosen.append(mine.name)
        alone, expected = single[mine.name](params, packed, step)
        assert report["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        for path, g in found.items():
            np.testing.assert_allclose(g, expected.get(path, np.zeros(())) + 0 * g, atol=2e-6, err_msg=path)
    counts = [chosen.count(part.name) for _, part in parts]
    assert all(abs(n - share) <= 1 for n, share in zip(counts, (6, 2, 2), strict=True)), chosen


def test_what_cannot_be_is_an_error(bb, vocab):
    one = mlm(bb, vocab)
    with pytest.raises(ValueError, match=r"above 0, found mlm=0\.0"):
        mix((0.0, one), backbone=bb)
    with pytest.raises(ValueError, match="above 0, found causal=-1"):
        mix((1.0, one), (-1, causal(bb, vocab)), backbone=bb)
    with pytest.raises(ValueError, match="above 0, found causal=nan"):
        mix((1.0, one), (float("nan"), causal(bb, vocab)), backbone=bb)
    apart = rtd(bb, vocab, sharing="gdes")
    with pytest.raises(ValueError, match="rtd freezes backbone/embed/tokens, which the other objectives"):
        mix((1.0, one), (1.0, apart._replace(view=types.Objective._field_defaults["view"])), backbone=bb)
    with pytest.raises(ValueError, match="rtd and again each make a leaf of the backbone"):
        mix((1.0, apart), (1.0, apart._replace(name="again")), backbone=bb)
    with pytest.raises(ValueError, match="found no objective"):
        mix(backbone=bb)
    with pytest.raises(ValueError, match=r"names of their own.*found mlm, mlm"):
        mix((1.0, one), (1.0, mlm(bb, vocab, rate=0.3)), backbone=bb)
    with pytest.raises(ValueError, match="without blanks and slashes; found 'my mlm'"):
        mix((1.0, mlm(bb, vocab, name="my mlm")), (1.0, one), backbone=bb)
    with pytest.raises(ValueError, match="inner is a mixture itself"):
        mix((1.0, one), (1.0, mix((1.0, causal(bb, vocab)), backbone=bb, name="inner")), backbone=bb)
    with pytest.raises(ValueError, match="none of them mlm or backbone"):
        mix((1.0, one), backbone=bb, name="mlm")


def test_a_mixture_in_a_config_trains_resumes_and_carries(tmp_path):
    toys.write_reviews(tmp_path / "reviews.tsv")
    parts = dict(
        mlm=dict(factory="objectives.mlm:mlm", rate=0.3, weight=1.0),
        forwards=dict(factory="objectives.causal:causal", weight=0.5),
    )
    config = toys.config_of(tmp_path, objective=dict(mixture=parts), mesh="data=-1")
    config["stages"] = ("pretrain", "again")
    config["again"] = config["pretrain"] | dict(
        objective=parts["mlm"] | dict(),
        carry=dict(stage="pretrain", rules=((r"((?:backbone|mlm)/.*)", r"\1"),)),
        steps=2,
    )
    del config["again"]["objective"]["weight"], config["finetune"]
    half = config | {"pretrain": config["pretrain"] | {"steps": 4}}
    workdir = tmp_path / "run"
    loop.fit(build.stage(half, "pretrain", workdir), workdir)
    state = loop.fit(build.stage(config, "pretrain", workdir), workdir)
    whole = loop.fit(build.stage(config, "pretrain", tmp_path / "whole"), tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
    assert state.params.keys() == {"backbone", "mlm", "forwards"}
    loop.fit(build.stage(config, "again", workdir), workdir)

    del parts["mlm"]["weight"]
    with pytest.raises(ValueError, match=r"pretrain\.objective\.mixture\.mlm lacks a weight"):
        build.stage(config, "pretrain", workdir)
    parts["mlm"] |= dict(weight=1.0, rat=0.3)
    with pytest.raises(ValueError, match="no key 'rat'; did you mean 'rate'"):
        build.stage(config, "pretrain", workdir)
