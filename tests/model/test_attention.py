"""Attention against a reference written out in numpy, and what it may not see, by gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import V, pack, params_of

from model import attention, random
from model.backbone import backbone
from model.config import sized


def reference(q, k, v, segments, positions, reach, side):
    """Softmax attention of one row, one head, one query at a time."""
    L, H = q.shape
    out = np.zeros_like(v)
    for i in range(L):
        seen = [
            j
            for j in range(L)
            if segments[j] == segments[i] > 0
            and positions[j] <= reach[i]
            and (side is None or abs(positions[i] - positions[j]) <= side)
        ]
        if seen:
            s = q[i] @ k[seen].T / np.sqrt(H)
            w = np.exp(s - s.max())
            out[i] = w / w.sum() @ v[seen]
    return out


@pytest.mark.parametrize("window", [None, 4, 8, 100])
@pytest.mark.parametrize("reach", ["all", "causal", "prefix"])
@pytest.mark.parametrize("dense", [False, True])
def test_attend_is_the_reference(window, reach, dense):
    batch = pack([[0, 1, 2], [3], [4, 5]], 45, 3)
    B, L, N, H = 3, 45, 2, 8
    ends = {"all": np.full((B, L), 999), "causal": batch["positions"], "prefix": np.maximum(batch["positions"], 4)}
    if reach != "all":
        batch["reach"] = ends[reach].astype(np.int32)
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((B, L, N, H)).astype(np.float32) for _ in range(3))
    view = attention.view(batch, random.tokens(batch), window=window, theta=None, H=H, dense=dense)
    assert (view.block is not None) == (window in (4, 8) and not dense)
    with jax.default_matmul_precision("highest"):
        found, _ = attention.attend(*map(jnp.asarray, (q, k, v)), view)
    for b in range(B):
        for n in range(N):
            side = None if window is None else window // 2
            want = reference(
                q[b, :, n], k[b, :, n], v[b, :, n], batch["segments"][b], batch["positions"][b], ends[reach][b], side
            )
            real = batch["segments"][b] > 0
            np.testing.assert_allclose(found[b, :, n][real], want[real], atol=2e-6)


CONFIGS = {
    "bert": dict(size="tiny", D=16, heads=2, F=32, max_length=64),
    "modern": dict(size="modern-base", layers=2, D=16, heads=2, F=32, window=4, pattern=("local",)),
}


def influence(bb, params, batch, inputs):
    """bool [L, L]: whether the output at a token (first axis) depends on the input at another."""
    # weighed, because a norm's outputs sum to a constant
    weights = jnp.arange(1.0, 1 + inputs.shape[-1])

    def outputs(x):
        return bb.encode(params, batch, inputs=x).hidden[0] @ weights

    return np.asarray(abs(jax.jit(jax.jacrev(outputs))(inputs)[:, 0]).sum(-1)) > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_leaks(name):
    """The gradient of a token's output reaches the inputs of its own segment, within layers * window / 2, exactly."""
    bb = backbone(sized(V=V, **CONFIGS[name]))
    params = params_of(bb)
    batch = pack([[0, 1, 2]], 48, 3)
    inputs = jax.random.normal(random.generator(1), (1, 48, 16))
    touched = influence(bb, params, batch, inputs)
    segments, positions = batch["segments"][0], batch["positions"][0]
    same = (segments[:, None] == segments[None]) & (segments[:, None] > 0)
    if name == "modern":
        same &= abs(positions[:, None] - positions[None]) <= 2 * 2
    real = segments > 0
    np.testing.assert_array_equal(touched[real], same[real])


def test_reach_is_causal():
    bb = backbone(sized("tiny", V=V, D=16, heads=2, F=32))
    params = params_of(bb)
    batch = pack([[0, 1]], 40, 2)
    batch["reach"] = batch["positions"]
    inputs = jax.random.normal(random.generator(1), (1, 40, 16))
    touched = influence(bb, params, batch, inputs)
    segments, positions = batch["segments"][0], batch["positions"][0]
    want = (segments[:, None] == segments[None]) & (positions[None] <= positions[:, None])
    real = segments > 0
    np.testing.assert_array_equal(touched[real], want[real])
