"""The step beyond invariance: what it does not compute, what frozen leaves cost, and against plain differentiation."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import V, pack, params_of

from model import random
from model.backbone import backbone
from model.config import sized
from objectives import types
from objectives.classify import classify
from objectives.contrastive import contrastive
from objectives.mlm import mlm
from train import flops, tree
from train import step as training
from train.state import TrainState

TOY = dict(V=V, D=16, heads=4, F=32, layers=4, max_length=64, scan=True)


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", **TOY))


def everything(params):
    return jax.tree.map(lambda _: True, params)


def gradients(bb, objective, learned, microbatches=1):
    def one(params, rows):
        key, step = random.key(3), jnp.int32(0)
        batch = training.corrupted(rows, key, step, objective)
        return training.gradients(
            params, batch, key, step, backbone=bb, objective=objective, learned=learned, microbatches=microbatches
        )

    return one


def dots(compiled) -> int:
    return len(re.findall(r" = \S+ dot\(", compiled.as_text()))


@pytest.mark.parametrize("microbatches", [1, 4])
def test_weights_are_totalled_without_a_matrix_product(bb, vocab, alone, microbatches):
    """The first pass costs no product: as many as differentiating one microbatch alone."""
    objective = mlm(bb, vocab)
    params = params_of(bb, objective)
    exact = jax.jit(gradients(bb, objective, everything(params), microbatches)).lower(params, alone).compile()

    def plain(params, rows):
        batch = training.corrupted(rows, random.key(3), jnp.int32(0), objective)

        def loss(params):
            return types.loss(objective.loss(params, partial(bb.encode, params["backbone"]), batch, random.key(3), 0))

        return jax.grad(loss)(params)

    some = {k: v[: len(v) // microbatches] for k, v in alone.items()}
    assert dots(exact) == dots(jax.jit(plain).lower(params, some).compile()) > 30


def test_gradient_is_that_of_the_mean_over_the_batch(bb, vocab, packed):
    """Against jax.grad of the loss written as a mean, in float64: sums and weights by hand."""
    with jax.enable_x64(True):
        bb = backbone(sized("tiny", **TOY, dtype="float64", param_dtype="float64"))
        objective = classify(bb, vocab, classes=3)
        params = params_of(bb, objective)
        key = random.key(3)

        def mean(params):
            head = partial(objective.predict, params, partial(bb.encode, params["backbone"]))
            p = head(packed, None)["probabilities"]
            there = np.arange(1, 4)[None] <= packed["segments"].max(1)[:, None]
            return -jnp.log(jnp.take_along_axis(p, packed["labels"][..., None], -1)[..., 0])[there].mean()

        want = jax.jit(jax.grad(mean))(params)
        quiet = backbone(
            sized("tiny", **TOY, dtype="float64", param_dtype="float64", dropout=0.0, attention_dropout=0.0)
        )
        still = classify(quiet, vocab, classes=3, dropout=0.0)

        def one(params):
            return training.gradients(
                params, packed, key, jnp.int32(0), backbone=quiet, objective=still, learned=everything(params),
                microbatches=4,
            )  # fmt: skip

        got, _ = jax.jit(one)(params)
        norm = optax.tree.norm(want)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12 * float(norm)), got, want)


def test_counts_of_whole_numbers_are_counts(bb, vocab, alone):
    """An objective may count truths, and double a term by 2: the gradient is that of floats, doubled."""
    objective = classify(bb, vocab, classes=3)
    params = params_of(bb, objective)

    def whole(*args):
        sums = objective.loss(*args)
        terms = {k: types.Term(t.sum, t.weight.astype(jnp.int32), 2) for k, t in sums.terms.items()}
        return types.Sums(terms, {"some": types.Ratio(jnp.bool_(True), jnp.int32(4))})

    want, _ = jax.jit(gradients(bb, objective, everything(params)))(params, alone)
    counted = gradients(bb, objective._replace(loss=whole), everything(params), microbatches=2)
    got, sums = jax.jit(counted)(params, alone)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, 2 * a, rtol=1e-4, atol=1e-5)
    assert types.report(sums)["some"] == 0.25


def test_contrastive_microbatches_are_gradient_caching(bb, vocab, alone):
    """`join` against jax.grad of the whole batch at once, where it reads params too."""
    plain = contrastive(bb, vocab, pooling="attention", temperature=0.5)
    sharpened = lambda params, outputs, batch: plain.join(params, outputs * params[plain.name]["query"][0], batch)
    objective = plain._replace(join=sharpened)
    params = params_of(bb, objective)

    def whole(params):
        out = objective.loss(params, partial(bb.encode, params["backbone"]), alone, random.key(3), 0)
        return types.loss(objective.join(params, out, alone))

    want = jax.jit(jax.grad(whole))(params)
    got, sums = jax.jit(gradients(bb, objective, everything(params), 4))(params, alone)
    norm = float(optax.tree.norm(want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * norm), got, want)
    assert abs(float(types.loss(sums)) - float(jax.jit(whole)(params))) < 1e-4


def step_of(bb, objective, learned, optimizer):
    return partial(training.step, backbone=bb, objective=objective, optimizer=optimizer, learned=learned)


def test_frozen_leaves_cost_no_backward_pass(bb, vocab, alone):
    """With a frozen backbone the step's products are those of one forward pass and the head's."""
    objective = classify(bb, vocab, classes=3)
    params = params_of(bb, objective)
    optimizer = optax.adam(1e-3)

    def cost(rules):
        learned = tree.resolve(rules, params, True)
        state = TrainState(jnp.int32(0), params, optimizer.init(tree.split(params, learned)[0]))
        return flops.of(step_of(bb, objective, learned, optimizer), state, alone, random.key(0)), state

    forward = flops.of_loss(bb, objective, params, alone) // 3
    full, _ = cost([])
    frozen, state = cost([("backbone/.*", False)])
    assert 2.9 * forward < full < 3.3 * forward
    assert forward < frozen < 1.1 * forward
    assert {k.split("/")[0] for k in tree.leaves(state.opt_state[0].mu)} == {"classify"}


def test_frozen_layers(bb, vocab, alone):
    """The lower half of the stacked layers stays as it is, bit for bit; the upper half and the head move."""
    objective = classify(bb, vocab, classes=3)
    params = params_of(bb, objective)
    rules = [("backbone/layers/.*", (False, False, True, True)), ("backbone/embed/.*", False)]
    learned = tree.resolve(rules, params, True)
    optimizer = optax.adam(1e-2)
    state = TrainState(jnp.int32(0), params, optimizer.init(tree.split(params, learned)[0]))
    after, _ = jax.jit(step_of(bb, objective, learned, optimizer))(state, alone, random.key(0))
    for name, old in tree.leaves(params).items():
        new = tree.leaves(after.params)[name]
        if name.startswith("backbone/layers"):
            np.testing.assert_array_equal(new[:2], old[:2])
            assert name.endswith("qkv/bias") or (new[2:] != old[2:]).any(), name
        elif name.startswith("backbone"):
            np.testing.assert_array_equal(new, old)


def test_view_is_what_encode_sees(bb, vocab, alone):
    """A low-rank addition under a key of its own: the merged tree gives the loss, only the addition learns."""
    objective = classify(bb, vocab, classes=3)
    params = params_of(bb, objective)
    params["lora"] = {"down": jnp.zeros((V, 2)), "up": jnp.ones((2, 16))}

    def view(params):
        backbone_params = dict(params["backbone"])
        tokens = backbone_params["embed"]["tokens"] + params["lora"]["down"] @ params["lora"]["up"]
        return params | {"backbone": backbone_params | {"embed": backbone_params["embed"] | {"tokens": tokens}}}

    learned = tree.resolve([("lora/.*", True)], params, False)
    grads, _ = jax.jit(
        lambda p, b: training.gradients(
            p, b, random.key(0), jnp.int32(0), backbone=bb, objective=objective, learned=learned, view=view
        )
    )(params, alone)
    assert set(tree.leaves(grads)) == {"lora/down", "lora/up"}
    assert float(optax.tree.norm(grads)) > 0


def test_it_overfits_thirty_two_rows(vocab):
    """A model that can, does: 32 rows of random labels by heart."""
    bb = backbone(sized("tiny", **TOY | dict(D=32), dropout=0.0, attention_dropout=0.0))
    objective = classify(bb, vocab, classes=3, dropout=0.0)
    rows = pack([[d] for d in range(32)], 16, 1)
    params = params_of(bb, objective)
    optimizer = optax.adam(3e-3)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    step = step_of(bb, objective, everything(params), optimizer)

    @jax.jit
    def many(state):
        return jax.lax.scan(lambda s, _: step(s, rows, random.key(0)), state, None, length=120)

    _, sums = many(state)
    report = types.report(jax.tree.map(lambda x: x[-1], sums))
    assert float(report["classify_accuracy"]) == 1.0
    assert float(report["loss"]) < 0.05


def test_microbatches_of_bfloat16_params_are_added_in_float32(vocab, alone):
    """Of a row each they are as near to one of all rows as rounding each gradient leaves them."""
    bb = backbone(sized("tiny", **TOY | dict(param_dtype="bfloat16", dropout=0.0, attention_dropout=0.0)))
    objective = mlm(bb, vocab, rate=0.3)
    params = params_of(bb, objective)
    rows = {k: np.concatenate([v, v]) for k, v in alone.items()}
    rows["example"] = rows["example"] + np.arange(len(rows["example"]), dtype=np.uint32)[:, None, None]
    found = {}
    for microbatches in (1, len(rows["tokens"])):
        gradient, _ = jax.jit(gradients(bb, objective, everything(params), microbatches))(params, rows)
        assert {x.dtype.name for x in jax.tree.leaves(gradient)} == {"bfloat16"}
        found[microbatches] = np.concatenate([np.float32(x).ravel() for x in jax.tree.leaves(gradient)])
    one, many = found.values()
    assert np.linalg.norm(many - one) < 3.5e-3 * np.linalg.norm(one)
