"""Layouts: the same examples whichever way they lie, in one of three shapes, to the same loss and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbers_as_text import Numbers, records, some
from toys import params_of

from model import random
from model.backbone import backbone
from model.config import sized
from objectives import types
from objectives.classify import classify
from objectives.regress import regress
from train import evaluate, sharding, tree
from train import step as training
from train.data.layout import LAYOUTS, layout
from train.data.loader import Loader, evaluation_batches
from train.data.prepare import prepare
from train.data.rows import label_examples, pack_documents
from train.data.table import Filled, Memory, Mixture

LENGTH = 48


def labelled(sizes, classes=("0", "1", "2"), pairs=False):
    texts = [some(n, 5 + k % 20) for k, n in enumerate(sizes)]
    given = records(texts, [some(2)] * len(texts) if pairs else None, [str(k % 3) for k in range(len(texts))])
    return Memory(label_examples(given, Numbers(), LENGTH, classes).arrays)


UNEVEN = [40] + [3, 25, 1, 7, 12, 5, 2, 9, 4, 6, 3, 21, 8, 3, 5, 2, 16, 10, 4, 7, 1, 13] * 3


def examples(batch):
    """Each example with its tokens, types and label, however they lie; one may come twice where an epoch ends."""
    out = []
    there = np.arange(1, batch["example"].shape[1] + 1) <= batch["segments"].max(1)[:, None]
    for b, s in zip(*np.nonzero(there), strict=True):
        here = batch["segments"][b] == s + 1
        assert (batch["positions"][b][here] == np.arange(here.sum())).all()
        said = [batch[name][b][here].tolist() for name in ("tokens", "types") if name in batch]
        out.append((batch["example"][b, s].tolist(), *said, batch["labels"][b, s].item()))
    return sorted(out)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 20), st.sampled_from([1, 2, 4]),
    st.booleans(), st.integers(0, 30),
)  # fmt: skip
def test_a_batch_is_the_same_examples(sizes, batch, multiple, pairs, n):
    table = labelled(sizes, pairs=pairs)
    want = examples(Loader(table, batch, 3).read(n))
    for name in ("bucketed", "packed"):
        how = layout(name, table, batch, multiple)
        assert len(how.shapes) <= 3
        loader = Loader(table, batch, 3, layout=how)
        found = loader.read(n)
        assert found["tokens"].shape in how.shapes
        assert {k: (x.shape, x.dtype) for k, x in found.items()} == {
            k: (x.shape, x.dtype) for k, x in loader.shapes(n).items()
        }
        if name == "packed":
            assert found["tokens"].shape[0] % multiple == 0
        assert examples(found) == want
        parts = [loader.read(n, slice(i, i + 2)) for i in range(0, len(found["tokens"]), 2)]
        for key, array in found.items():
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), array)


def test_a_process_may_hold_nothing_of_a_batch(tmp_path):
    """Packed rows of a batch may all be empty in the part that one of four processes reads."""
    texts = records([some(n, 5) for n in UNEVEN], labels=["1"] * len(UNEVEN))
    make = partial(label_examples, length=LENGTH, classes=("0", "1"))
    one = prepare(tmp_path / "x", texts, Numbers(), make, {"of": "labels"}, chunk=200)
    for table in (one, Mixture([one, one], [0.5, 0.5]), Filled(one, 16)):
        how = layout("packed", table, 16, 4)
        loader = Loader(table, 16, shuffle=not isinstance(table, Filled), layout=how)
        nothing = 0
        for n in range(len(table) // 16):
            whole = loader.read(n)
            quarter = len(whole["tokens"]) // 4
            parts = [loader.read(n, slice(i * quarter, (i + 1) * quarter)) for i in range(4)]
            for name, array in whole.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
            nothing += sum(not part["segments"].any() for part in parts)
        assert nothing


def test_no_batch_is_padded_for_want_of_a_shape():
    sizes = np.random.default_rng(0).lognormal(2, 0.8, 20_000).clip(1, 45).astype(int)
    table = labelled(sizes.tolist())
    for batch in (32, 1024):
        loader = Loader(table, batch, layout=layout("packed", table, batch))
        seen = {loader.shapes(n)["tokens"].shape[0] for n in range(100)}
        assert len(seen) <= 2
        assert max(seen) < batch / 2


def test_short_texts_are_not_computed_as_padding():
    table = labelled(np.random.default_rng(0).geometric(0.15, 500).clip(1, 45).tolist())
    positions = {}
    for name in LAYOUTS:
        loader = Loader(table, 32, layout=layout(name, table, 32))
        shapes = [loader.shapes(n)["tokens"].shape for n in range(60)]
        assert len(set(shapes)) <= 3
        positions[name] = np.mean([np.prod(shape) for shape in shapes])
    real = 32 * table.sizes.mean()
    assert positions["padded"] == 32 * LENGTH
    assert positions["packed"] < 1.35 * real < positions["bucketed"] < 0.95 * positions["padded"]


OBJECTIVES = {
    "classify": (partial(classify, classes=3), ("0", "1", "2"), False),
    "regress, pairs": (partial(regress, pooling="mean"), None, True),
}
OTHERS = [("bucketed", None, 1), ("packed", {"data": 4, "fsdp": 1, "tensor": 2}, 2)]


@pytest.fixture(scope="module")
def losses(vocab):
    """A function: the gradients and the report of batch 2 in a layout, dropout on."""

    def of(objective, name, mesh, microbatches):
        make, classes, pairs = OBJECTIVES[objective]
        table = labelled(UNEVEN, classes, pairs)
        mesh = mesh and sharding.make_mesh(mesh, jax.devices())
        constrain = sharding.constrainer(mesh)
        bb = backbone(sized("tiny", V=vocab.size, D=16, heads=2, F=32, max_length=64, scan=True), constrain)
        made = make(bb, vocab)
        params = params_of(bb, made)
        parts = 1 if mesh is None else sharding.row_parts(dict(mesh.shape))
        loader = Loader(table, 16, 1, layout=layout(name, table, 16, parts * microbatches))
        batch = loader.read(2) if mesh is None else loader.device(2, sharding.rows(mesh))
        gradients = partial(
            training.gradients, backbone=bb, objective=made, learned=jax.tree.map(lambda _: True, params),
            microbatches=microbatches, constrain=constrain,
        )  # fmt: skip
        grads, sums = jax.jit(gradients)(params, batch, random.key(3), jnp.int32(5))
        return batch["tokens"].shape, tree.leaves(jax.device_get(grads)), types.report(jax.device_get(sums))

    return of


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradients_agree(objective, losses):
    padded, want, report = losses(objective, "padded", None, 1)
    norm = np.sqrt(sum((g**2).sum() for g in want.values()))
    for name, mesh, microbatches in OTHERS:
        shape, grads, found = losses(objective, name, mesh, microbatches)
        assert shape != padded
        for key, value in report.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-6, err_msg=f"{name} {key}")
        assert np.sqrt(sum(((grads[k] - g) ** 2).sum() for k, g in want.items())) < 1e-5 * norm, name


def test_evaluations_agree(vocab):
    table = labelled(UNEVEN)
    bb = backbone(sized("tiny", V=vocab.size, D=16, heads=2, F=32, max_length=64))
    objective = classify(bb, vocab, classes=3)
    params = params_of(bb, objective)
    run = jax.jit(evaluate.evaluator(bb, objective))
    where = sharding.rows(sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2]))
    found = {}
    for name in LAYOUTS:
        batches = evaluation_batches(table, 8, where, layout(name, table, 8, 2))
        found[name] = evaluate.evaluate(run, params, batches, objective)
    for name in LAYOUTS[1:]:
        assert found[name] == pytest.approx(found["padded"], rel=1e-5)


def test_layouts_that_cannot_be():
    with pytest.raises(ValueError, match="layout='packd' must be one of padded, bucketed, packed"):
        layout("packd", labelled([3]), 4)
    rows = Memory(pack_documents(records([some(5)] * 9), Numbers(), 16, 4).arrays)
    with pytest.raises(ValueError, match=r"layout='packed' is for rows of one example, and these hold up to 4: .*=1"):
        layout("packed", rows, 4)
