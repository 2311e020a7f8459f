"""Optimizers against optax's own on one layer's leaves, schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import V, params_of

from model import random
from model.backbone import backbone
from model.config import sized
from train import optimizer, schedule, tree


@pytest.fixture(scope="module")
def toy():
    bb = backbone(sized("tiny", V=V, D=16, heads=4, F=32, layers=3, max_length=20))
    params = {"backbone": params_of(bb)}
    grads = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size) + 1.0).reshape(x.shape), params)
    return {"backbone": bb.axes}, params, grads


FACTORIES = ("adamw", "lamb", "lion", "adafactor", "muon")


@pytest.mark.parametrize("name", FACTORIES)
def test_layers_are_optimized_each_by_itself(name, toy):
    """The update of a stack of layers is the stack of the updates of each layer's tree."""
    axes, params, grads = toy
    make = lambda: getattr(optimizer, name)(axes, lambda step: 0.1, clip=None)

    @jax.jit
    def update(params, grads):
        tx = make()
        return tx.update(grads, tx.init(params), params)[0]

    whole = update(params, grads)
    pick = lambda x, i: {
        "backbone": x["backbone"] | {"layers": jax.tree.map(lambda y: y[i : i + 1], x["backbone"]["layers"])}
    }
    for i in (0, 2):
        one = update(pick(params, i), pick(grads, i))
        want = pick(whole, i)["backbone"]["layers"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one["backbone"]["layers"], want)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(whole))


def test_adafactor_is_optax_s_of_each_matrix(toy):
    """The maps of a layer, as the matrices that they are, with second moments of rows and of columns alone."""
    axes, params, grads = toy
    ours = optimizer.adafactor(axes, lambda step: 0.1, factor_from=8)
    theirs = optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=8), optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(), optax.scale_by_learning_rate(0.1),
    )  # fmt: skip
    state = ours.init(params)
    updates, _ = ours.update(grads, state, params)
    of = lambda x: x["backbone"]["layers"]["attention"]
    flat = lambda x: np.moveaxis(np.asarray(of(x)["qkv"]["kernel"]), 3, 1)  # [layers, D, N, 3, H]
    for layer in range(3):
        for part in range(3):
            p, g, u = (flat(x)[layer, part].reshape(16, 16) for x in (params, grads, updates))
            np.testing.assert_allclose(u, theirs.update(g, theirs.init(p), p)[0], rtol=1e-4, atol=1e-7)
    sizes = {path: x.size for path, x in tree.leaves(state).items() if "qkv/kernel" in path}
    assert sum(sizes.values()) < 3 * 3 * 40, sizes


def test_a_pattern_that_spares_nothing_is_misspelt(toy):
    axes, params, _ = toy
    tx = optimizer.adamw(axes, lambda step: 0.1, no_decay=(*optimizer.NO_DECAY, "backbone/embeds/.*"))
    with pytest.raises(ValueError, match=r"the rule 'backbone/embeds/.*' matches no parameter"):
        tx.update(params, tx.init(params), params)


def test_decay_spares_biases_and_scales(toy):
    axes, params, grads = toy
    zero = jax.tree.map(jnp.zeros_like, grads)
    tx = optimizer.adamw(axes, lambda step: 0.1, weight_decay=0.5)
    updates, _ = tx.update(zero, tx.init(params), params)
    for name, u in tree.leaves(updates).items():
        want = 0 if name.endswith(("bias", "scale")) else -0.05 * tree.leaves(params)[name]
        np.testing.assert_allclose(u, want, rtol=1e-5, atol=1e-9, err_msg=name)


def test_adamw_is_optax_adamw(toy):
    axes, params, grads = toy
    mask = jax.tree_util.tree_map_with_path(lambda p, x: p[-1].key not in ("bias", "scale"), params)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.01, mask=mask))
    ours = optimizer.adamw(axes, lambda step: 0.1)
    a, b = (tx.update(grads, tx.init(params), params)[0] for tx in (ours, theirs))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8), a, b)


def test_rates_by_path_and_layer(toy):
    axes, params, grads = toy
    rules = [("backbone/layers/.*", (0.25, 0.5, 1.0)), ("backbone/embed/.*", 0.0)]
    plain, scaled = (optimizer.adamw(axes, lambda step: 0.1, rates=r) for r in ((), rules))
    a, b = (tree.leaves(tx.update(grads, tx.init(params), params)[0]) for tx in (plain, scaled))
    for name in a:
        if "layers" in name:
            np.testing.assert_allclose(b[name][0], 0.25 * a[name][0], rtol=1e-6)
            np.testing.assert_allclose(b[name][2], a[name][2], rtol=1e-6)
        else:
            assert not b[name].any()


def test_muon_orthogonalises_the_layers_kernels(toy):
    axes, params, _ = toy
    numbers = tree.leaves(optimizer.tree_of_matrices(axes), is_leaf=lambda x: x is None or hasattr(x, "reduction_axis"))
    # stacked qkv [layers, D, N, 3, H] reads D and writes N x H; the map back [layers, N, H, D] the other way round
    assert numbers["backbone/layers/attention/qkv/kernel"] == optax.contrib.MuonDimensionNumbers((1,), (2, 4))
    assert numbers["backbone/layers/attention/out/kernel"] == optax.contrib.MuonDimensionNumbers((1, 2), (3,))
    assert numbers["backbone/layers/mlp/wo/kernel"] == optax.contrib.MuonDimensionNumbers((1,), (2,))
    assert numbers["backbone/embed/tokens"] is None
    assert numbers["backbone/layers/attention/qkv/bias"] is None
    # a random gradient: one of rank two, as the others' sines are, has nothing to be orthogonal in the rest
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(random.generator(1), len(leaves))
    grads = structure.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    tx = optimizer.muon(axes, lambda step: 1.0, weight_decay=0.0, clip=None, rms=0.2)
    update = tx.update(grads, tx.init(params), params)[0]["backbone"]["layers"]["mlp"]["wi"]["kernel"][1]
    singular = np.linalg.svd(np.asarray(update) / (0.2 * np.sqrt(32)), compute_uv=False)
    # five steps of Newton-Schulz bring singular values near 1, not to it
    assert 0.6 < singular.min() <= singular.max() < 1.3


S, PEAK = 100, 2.0


@pytest.mark.parametrize(
    "make, points",
    [
        (schedule.constant, {0: 2, 99: 2}),
        (lambda s, peak: schedule.linear(s, peak=peak, warmup=10, end=0.5), {0: 0, 5: 1, 10: 2, 55: 1.5, 100: 1}),
        (lambda s, peak: schedule.cosine(s, peak=peak, warmup=0.2), {0: 0, 20: 2, 60: 1, 100: 0}),
        (lambda s, peak: schedule.inverse_sqrt(s, peak=peak, warmup=25), {25: 2, 100: 1}),
        (
            lambda s, peak: schedule.warmup_stable_decay(s, peak=peak, warmup=10, decay=0.4),
            {10: 2, 60: 2, 70: 1, 100: 0},
        ),
    ],
)
def test_schedules(make, points):
    f = make(S, peak=PEAK)
    for step, want in points.items():
        assert float(f(step)) == pytest.approx(want, abs=1e-6), step


def test_bad_schedules():
    with pytest.raises(ValueError, match="warmup=200 must lie between 0 and the run's 100 steps"):
        schedule.linear(100, peak=1.0, warmup=200)
    with pytest.raises(ValueError, match="do not fit into 100 steps"):
        schedule.warmup_stable_decay(100, peak=1.0, warmup=60, decay=60)
