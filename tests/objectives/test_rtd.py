"""Replaced-token detection against its parts: samples by their frequencies, the loss by numpy, gradients by path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import V, pack, params_of

from model import random
from model.backbone import backbone
from model.config import sized
from model.heads import mlm_head
from model.types import Encoded
from objectives import types
from objectives.rtd import rtd
from train import build, tree
from train import step as training
from train.state import TrainState


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=64, dropout=0.0, attention_dropout=0.0))


def run(objective, bb, params, batch, key=None):
    """(report, gradient by path, the tokens that the discriminator reads)."""
    read = []

    def loss(params):
        def encode(batch, key=None, **how):
            jax.debug.callback(lambda x: read.append(np.asarray(x)), batch["tokens"])
            return bb.encode(params["backbone"], batch, key, **how)

        sums = objective.loss(params, encode, batch, key, jnp.int32(0))
        return types.loss(sums), types.report(sums)

    (_, report), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    jax.effects_barrier()
    return jax.device_get(report), tree.leaves(jax.device_get(grads)), read[-1]


def test_the_loss_and_who_learns_from_it(bb, vocab):
    objective = rtd(bb, vocab, rate=0.3, coefficient=7.0, sharing="none")
    params, rows = params_of(bb, objective), pack([[5, 0, 9], [1], [12, 3], [2, 15]], 48, 3)
    batch = jax.device_get(training.corrupted(rows, random.key(9), jnp.int32(0), objective))
    mine = batch["rtd"]
    report, grads, seen = run(objective, bb, params, batch)
    real = rows["segments"] > 0
    replaced = seen != rows["tokens"]
    chosen = np.zeros_like(real)
    for b in range(len(chosen)):
        chosen[b, mine["index"][b][mine["weight"][b] > 0]] = True
    assert not (replaced & ~chosen).any() and 0 < replaced.sum() <= chosen.sum()
    masked = mine["tokens"]
    assert (masked[chosen] == vocab.mask).all() and (masked[~chosen] == rows["tokens"][~chosen]).all()
    np.testing.assert_array_equal(batch["tokens"], rows["tokens"])  # the backbone never reads a [MASK]
    # the generator by hand: its softmax at the hidden places
    own = params["rtd"]
    author = backbone(sized("tiny", V=V, D=4, heads=1, F=8, max_length=64))
    hidden = author.encode(own["generator"], batch | {"tokens": masked}).hidden
    logits = mlm_head(author.config).apply(own["words"], hidden, own["generator"]["embed"]["tokens"])
    logp = np.asarray(jax.nn.log_softmax(logits), np.float64)
    at = np.nonzero(chosen)
    np.testing.assert_allclose(report["rtd_mlm"], -logp[(*at, rows["tokens"][at])].mean(), rtol=1e-5)
    p = objective.predict(params, partial(bb.encode, params["backbone"]), rows | {"tokens": seen})["prediction"]
    p = np.asarray(p, np.float64)
    want = -np.where(replaced, np.log(p), np.log1p(-p))[real].mean()
    np.testing.assert_allclose(report["rtd"], want, rtol=1e-4)
    np.testing.assert_allclose(report["loss"], report["rtd_mlm"] + 7 * report["rtd"], rtol=1e-5)
    np.testing.assert_allclose(report["rtd_accuracy"], ((p > 0.5) == replaced)[real].mean(), rtol=1e-6)
    np.testing.assert_allclose(report["rtd_recall"], (p > 0.5)[replaced].mean(), rtol=1e-6)
    np.testing.assert_allclose(report["rtd_replaced"], replaced.sum() / real.sum(), rtol=1e-6)
    # the generator learns from its own loss alone, the backbone from the discriminator's alone
    _, other, _ = run(rtd(bb, vocab, rate=0.3, coefficient=0.0, sharing="none"), bb, params, batch)
    for path, g in grads.items():
        if "rtd/generator" in path or "rtd/words" in path:
            np.testing.assert_allclose(g, other[path], atol=1e-7)
        else:
            assert abs(other[path]).max() == 0
    assert (
        abs(grads["backbone/layers/mlp/wi/kernel"]).max() > 0 < abs(grads["rtd/generator/layers/mlp/wi/kernel"]).max()
    )


def test_a_tied_generator_trains_the_backbones_embeddings(bb, vocab):
    objective = rtd(bb, vocab, rate=0.3, coefficient=0.0)
    params, rows = params_of(bb, objective), pack([[5, 0, 9], [1]], 48, 3)
    assert set(params["backbone"]["embed"]) - set(params["rtd"]["generator"]["embed"]) == {
        "tokens",
        "positions",
        "types",
    }
    assert params["rtd"]["generator"]["widen"]["kernel"].shape == (16, 4)  # from the embeddings' width to a quarter
    batch = training.corrupted(rows, random.key(9), jnp.int32(0), objective)
    _, grads, _ = run(objective, bb, params, batch)
    for table in ("tokens", "positions", "types"):
        assert abs(grads[f"backbone/embed/{table}"]).max() > 1e-3
    other = rtd(bb, vocab, generator=dict(types=0, D=8, heads=2))  # what it has otherwise is its own
    assert set(params["backbone"]["embed"]) - set(other.axes["generator"]["embed"]) == {"tokens", "positions", "types"}
    other = rtd(bb, vocab, generator=dict(types=3, D=8, heads=2))
    assert other.axes["generator"]["embed"].keys() >= {"types"} and "positions" not in other.axes["generator"]["embed"]


def test_gdes_gradients_by_path(bb, vocab):
    """The table gets the generator's gradient alone and the delta the discriminator's alone, both as of the sum."""
    rows = pack([[5, 0, 9], [1]], 48, 3)
    found = {}
    for coefficient in (0.0, 7.0):
        objective = rtd(bb, vocab, rate=0.3, coefficient=coefficient, sharing="gdes")
        params = objective.after(params_of(bb, objective), jnp.int32(0))
        batch = training.corrupted(rows, random.key(9), jnp.int32(0), objective)

        def loss(p, o=objective, b=batch):
            p = o.view(p)
            return types.loss(o.loss(p, partial(bb.encode, p["backbone"]), b, None, 0))

        found[coefficient] = tree.leaves(jax.device_get(jax.jit(jax.grad(loss))(params)))
    table, delta = "rtd/generator/embed/tokens", "rtd/delta"
    assert abs(found[7.0][table]).max() > 1e-3 < abs(found[7.0][delta]).max()
    np.testing.assert_array_equal(found[0.0][table], found[7.0][table])
    assert abs(found[0.0][delta]).max() == abs(found[7.0]["backbone/embed/tokens"]).max() == 0
    # the same numbers with tables apart, whose discriminator's is the sum
    apart = rtd(bb, vocab, rate=0.3, coefficient=7.0, sharing="none",
                generator=dict(D=4, heads=1, F=8, embed_width=16))  # fmt: skip
    same = params | {"rtd": {k: v for k, v in params["rtd"].items() if k != "delta"}}
    loss = lambda p: types.loss(apart.loss(p, partial(bb.encode, p["backbone"]), batch, None, 0))
    want = tree.leaves(jax.device_get(jax.jit(jax.grad(loss))(same)))
    np.testing.assert_allclose(found[7.0][delta], want["backbone/embed/tokens"], atol=1e-6)
    for name, g in want.items():
        if name != "backbone/embed/tokens":
            np.testing.assert_allclose(found[7.0][name], g, atol=1e-6, err_msg=name)


def test_gdes_leaves_the_sum_in_the_backbone(bb, vocab):
    """From what is carried, over two steps with weight decay: the backbone holds E + delta, and each has moved."""
    objective = rtd(bb, vocab, rate=0.3, sharing="gdes")
    params = params_of(bb, objective)
    params["rtd"]["delta"] = jnp.zeros((V, 16))
    carried = params["backbone"]["embed"]["tokens"]
    params = objective.begin(params)
    np.testing.assert_array_equal(params["rtd"]["generator"]["embed"]["tokens"], carried)
    # a second such stage, that carries the delta too, goes on where the first ended
    later = params | {"rtd": params["rtd"] | {"delta": jnp.full((V, 16), 0.25)}}
    np.testing.assert_allclose(
        objective.after(objective.begin(later), 0)["backbone"]["embed"]["tokens"], carried, atol=1e-6
    )
    section = dict(factory="train.optimizer:adamw", weight_decay=0.5)
    spec = build.Spec({}, {}, section, dict(factory="train.schedule:constant", peak=0.01), 4)
    _, optimizer, learned = build.optimization(spec, "pretrain", bb, objective, 2)
    own = tree.split(params, learned)[0]
    assert "backbone/embed/tokens" not in tree.leaves(own)
    state = TrainState(jnp.int32(0), params, optimizer.init(own))
    step = jax.jit(partial(training.step, backbone=bb, objective=objective, optimizer=optimizer, learned=learned))
    for _ in range(2):
        state, _ = step(state, pack([[5, 0, 9], [1], [12, 3], [2, 15]], 48, 3), random.key(1))
    table, delta = state.params["rtd"]["generator"]["embed"]["tokens"], state.params["rtd"]["delta"]
    np.testing.assert_array_equal(state.params["backbone"]["embed"]["tokens"], table + delta)
    assert abs(table - carried).max() > 1e-3 < abs(delta).max()
    # at the start there is no delta
    fresh = jax.jit(objective.init)(random.generator(0))
    assert abs(fresh["delta"]).max() == 0 < abs(fresh["generator"]["embed"]["tokens"]).max()


def test_samples_are_the_generators(bb, vocab):
    """Of many rows alike but for who they are, the tokens sampled at a place are as often what its softmax says."""
    objective = rtd(bb, vocab, rate=0.5)
    params = params_of(bb, objective)
    n = 3000
    one = pack([[5]], 20, 1)
    batch = jax.device_get(training.corrupted(one, random.key(2), jnp.int32(0), objective))
    batch = jax.tree.map(lambda x: np.repeat(x, n, 0), batch)
    batch["example"] = np.stack([np.zeros(n), np.arange(n)], -1).astype(np.uint32)[:, None]
    _, _, seen = run(objective, bb, params, batch, random.key(1))
    place = int(batch["rtd"]["index"][0][batch["rtd"]["weight"][0] > 0][0])
    shared = {k: params["backbone"]["embed"][k] for k in ("tokens", "positions", "types")}
    small = backbone(sized("tiny", V=V, D=4, heads=1, F=8, embed_width=16, max_length=64))
    own = params["rtd"]
    theirs = own["generator"] | {"embed": own["generator"]["embed"] | shared}
    read = jax.tree.map(lambda x: x[:1], batch)
    hidden = small.encode(theirs, read | {"tokens": read["rtd"]["tokens"]}).hidden
    p = np.asarray(jax.nn.softmax(mlm_head(small.config).apply(own["words"], hidden, shared["tokens"])))[0, place]
    counts = np.bincount(seen[:, place], minlength=V)
    common = p * n > 5
    chi = ((counts - n * p) ** 2 / (n * p))[common].sum()
    freedom = common.sum()
    assert chi < freedom + 5 * np.sqrt(2 * freedom)


def test_refusals(bb, vocab):
    with pytest.raises(
        ValueError, match=r"rtd's generator is larger than its backbone: layers=3, D=32; make it smaller"
    ):
        rtd(bb, vocab, generator=dict(layers=3, D=32))
    with pytest.raises(ValueError, match=r"larger than its backbone: E=64"):
        rtd(bb, vocab, generator=dict(embed_width=64), sharing="none")
    for wider in (dict(head_width=64), dict(mlp="geglu"), dict(conv=3)):
        with pytest.raises(ValueError, match=r"larger than its backbone: [\d,]+ parameters beside the embeddings"):
            rtd(bb, vocab, generator=wider)
    with pytest.raises(ValueError, match=r"cannot have max_length=8 of its own"):
        rtd(bb, vocab, generator=dict(max_length=8))
    with pytest.raises(
        ValueError, match=r"rtd generator has no key 'depth'; its keys are fields of the backbone's config"
    ):
        rtd(bb, vocab, generator=dict(depth=3))
    with pytest.raises(ValueError, match=r"rtd generator=.*: backbone D=10 must be divisible by heads=3"):
        rtd(bb, vocab, generator=dict(D=10, heads=3))
    for wrong in (dict(D=8.0, heads=2), dict(dropout="0.1")):
        with pytest.raises(ValueError, match=r"rtd generator=.*, changes to the backbone's config: "):
            rtd(bb, vocab, generator=wrong)
    with pytest.raises(ValueError, match=r"embedding of 16 channels and cannot have embed_width=8"):
        rtd(bb, vocab, generator=dict(embed_width=8))
    with pytest.raises(ValueError, match=r"rtd sharing='some' must be one of tied, none, gdes"):
        rtd(bb, vocab, sharing="some")
    with pytest.raises(ValueError, match=r"rtd coefficient=-1 is that of a loss term"):
        rtd(bb, vocab, coefficient=-1)


@pytest.mark.parametrize("heads, fewer", [(1, 1), (2, 1), (5, 1), (6, 2), (12, 3)])
def test_the_generator_by_itself_is_a_quarter(vocab, heads, fewer):
    wide = backbone(sized("tiny", V=V, D=8 * heads, heads=heads, F=32 * heads, max_length=64))
    generator = jax.eval_shape(rtd(wide, vocab).init, random.generator(0))
    assert tree.leaves(generator["generator"])["layers/mlp/wi/kernel"].shape[-2:] == (8 * fewer, 32 * fewer)


def test_the_generator_is_placed_as_the_backbone_is(bb, vocab, alone):
    placed = set()

    def constrain(x, names):
        placed.add((x.shape, names))
        return x

    bb = backbone(bb.config, constrain)
    objective = rtd(bb, vocab, generator=dict(D=8, heads=2, F=16))
    params = jax.eval_shape(lambda: params_of(bb, objective))
    rows = training.corrupted(alone, random.key(0), jnp.int32(0), objective)
    encode = lambda *_, at=None, **__: Encoded(jnp.zeros((*alone["tokens"].shape, 16)))
    jax.eval_shape(lambda p: objective.loss(p, encode, rows, None, 0), params)
    assert ((*alone["tokens"].shape, 8), ("batch", "length", "width")) in placed
