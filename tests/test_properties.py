"""What holds of every objective: the same task and the same gradient on any mesh, microbatches and packing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import V

from model import random
from model.backbone import backbone
from model.config import sized
from objectives import seq2seq, types
from objectives.answer import answer
from objectives.causal import causal
from objectives.choose import choose
from objectives.classify import classify, multilabel
from objectives.contrastive import contrastive
from objectives.data2vec import data2vec
from objectives.denoise import denoise
from objectives.diffusion import diffusion
from objectives.hybrid import hybrid
from objectives.mixture import mix
from objectives.mlm import mlm
from objectives.pairs import nsp, sop
from objectives.reconstruct import reconstruct
from objectives.regress import regress
from objectives.rtd import rtd
from objectives.seq2seq import span_corruption, translate
from objectives.tag import tag
from train import loop, sharding, tree
from train import step as training
from train.carry import carry
from train.optimizer import adamw
from train.stage import Stage

# exact in a reordering of sums, over every part that a backbone may have; dropout is on
BERT = dict(size="tiny", D=16, heads=4, F=32, layers=2, max_length=64, scan=True)
MODERN = dict(
    size="modern-base", D=16, heads=4, F=32, layers=3, max_length=64, window=8, qk_norm=True, norm="rms", dropout=0.1,
    attention_dropout=0.1, scan=True, pattern=("global", "local"),
)  # fmt: skip


LONG_ROWS = dict(max_length=16)  # as long as the longest segment may be


class Case(NamedTuple):
    make: Callable
    backbone: dict = BERT
    packing: bool | str = True  # whether what is drawn is the same however texts are packed; "groups" of them


# word starts are the ids that three does not divide
NGRAMS = [(a, b) for a in range(5, V) for b in range(5, V) if a % 3 and (a + b) % 3 == 0]

CASES = {
    "mlm": Case(mlm),
    "mlm-falling": Case(partial(mlm, rate=(0.5, 0.2, 10), mask=1.0, replace=0.0), BERT | dict(remat="full")),
    "mlm-modern-words": Case(partial(mlm, rate=0.3, unit="word", tied=False, softcap=30.0), MODERN),
    "mlm-spans-bag": Case(
        partial(mlm, rate=0.3, unit="span", choice="independent", capacity=0.9, bag=0.5), BERT | dict(conv=3)
    ),
    "mlm-ngrams-boundary": Case(partial(mlm, rate=0.3, unit="ngram", ngrams=NGRAMS, boundary=0.5, tied=False), MODERN),
    "causal": Case(causal),
    "causal-prefix-modern": Case(partial(causal, prefix=True, tied=False), MODERN),
    "diffusion": Case(partial(diffusion, least=0.1), MODERN),
    "diffusion-unweighted": Case(partial(diffusion, weighted=False)),
    "nsp": Case(nsp, BERT, packing=False),
    "sop": Case(sop, MODERN),
    "rtd": Case(partial(rtd, coefficient=2.0), BERT),
    "rtd-apart": Case(partial(rtd, sharing="none", generator=dict(layers=1, D=8, heads=2), unit="span"), MODERN),
    "rtd-gdes": Case(partial(rtd, sharing="gdes", coefficient=2.0), MODERN),
    "translate": Case(partial(translate, smoothing=0.1), BERT),
    "translate-modern": Case(partial(translate, tied=False, layers=1), MODERN | dict(relative="bias")),
    "span-corruption": Case(partial(span_corruption, rate=0.3, sentinels=8), MODERN | dict(V=V + 8)),
    "infilling": Case(
        partial(seq2seq.bart, span=2.0, empty=0.5, permute=0.5, sentence=4.0), BERT | dict(embed_width=8)
    ),
    "deletion": Case(partial(seq2seq.bart, noise="delete", span=1.0), MODERN),
    "hybrid": Case(partial(hybrid, unit="word"), BERT),
    "denoise": Case(partial(denoise, shuffle=0.5, permute=0.5), MODERN),
    "data2vec": Case(partial(data2vec, top=2, rate=0.3)),
    "data2vec-modern-instance": Case(partial(data2vec, top=2, norm="instance", beta=None, unit="word"), MODERN),
    "reconstruct": Case(reconstruct),
    "classify": Case(partial(classify, classes=3), BERT | dict(scan=False)),
    "multilabel": Case(partial(multilabel, classes=3, name="multilabel")),
    "regress": Case(partial(regress, pooling="mean"), MODERN),
    "contrastive": Case(partial(contrastive, pooling="attention", temperature=0.5), BERT | LONG_ROWS),
    "contrastive-group": Case(partial(contrastive, positives="group", temperature=0.2), MODERN, packing="groups"),
    "choose": Case(partial(choose, pooling="mean"), MODERN | LONG_ROWS, packing="groups"),
    "answer": Case(partial(answer, longest=3, dropout=0.1), BERT),
    "answer-none": Case(partial(answer, unanswerable=True, activation="gelu", norm=True), MODERN),
    "tag": Case(partial(tag, classes=("a", "b", "c")), MODERN),
    "readme": Case(partial(toys.swapped, rate=0.5)),
}


def mixed(*makers: tuple, **how) -> Callable:
    """A factory of a mixture of objectives, from (weight, factory)."""
    return lambda bb, vocab: mix(*((weight, make(bb, vocab)) for weight, make in makers), backbone=bb, **how)


CASES |= {
    "mixture": Case(mixed((1.0, mlm), (0.5, sop), (2.0, partial(classify, classes=3))), MODERN),
    "mixture-join": Case(mixed((1.0, mlm), (0.5, partial(contrastive, temperature=0.5)), (0.3, causal))),
    "mixture-teacher": Case(mixed((1.0, partial(data2vec, top=2)), (0.5, sop))),
    "mixture-rtd": Case(mixed((1.0, rtd), (0.5, nsp)), packing=False),
    "mixture-gdes": Case(mixed((1.0, partial(rtd, sharing="gdes")), (0.5, mlm)), MODERN),
    "alternate": Case(mixed((1.0, mlm), (0.5, causal), (1.5, partial(contrastive, temperature=0.5)), alternate=True)),
}


def two_groups_a_row(rows: dict) -> dict:
    """Rows of one group each, two to a row, and empty ones for those that are left."""
    from train.data.layout import PER_TOKEN

    out = {}
    for k, x in rows.items():
        a, b = np.array(x[::2]), np.array(x[1::2])
        if k == "segments":  # those of the second row come after those of the first
            b += a.max(1, keepdims=True) * (b > 0)
        if k == "group":
            b *= 2
        if k in PER_TOKEN:
            out[k] = np.concatenate([a, b], 1)
        else:  # by segment: those of the first row that are there, then the second's
            S = x.shape[1]
            both, count = np.concatenate([a, b], 1), rows["segments"][::2].max(1)
            order = np.arange(2 * S)[None] - count[:, None]
            at = np.where(order < 0, np.arange(2 * S)[None], np.minimum(S + order, 2 * S - 1))
            shaped = lambda y, x=x: y.reshape(*y.shape, *[1] * (x.ndim - 2))
            out[k] = np.take_along_axis(both, shaped(at), 1) * shaped(order < S).astype(x.dtype)
    return {k: np.concatenate([x, np.zeros_like(x)]) for k, x in out.items()}


class Cell(NamedTuple):
    mesh: tuple[int, int, int] | None
    microbatches: int
    packed: bool


# pairwise over the product, which `make test-all` runs whole
PAIRWISE = (Cell(None, 1, False), Cell((2, 2, 2), 4, True), Cell((1, 4, 2), 2, False))
PRODUCT = [Cell(m, n, p) for m in (None, (2, 2, 2), (1, 4, 2), (8, 1, 1)) for n in (1, 2, 4) for p in (False, True)]
REFERENCE = PAIRWISE[0]


def labelled(rows: dict, objective: types.Objective) -> dict:
    """The rows with labels of the objective's kind."""
    if objective.name == "regress":
        return rows | {"labels": rows["labels"].astype(np.float32)}
    if objective.name == "multilabel":
        return rows | {"labels": (rows["labels"][..., None] >= np.arange(3)).astype(np.int32)}
    return rows


def run(case: Case, cell: Cell, dtype: str, rows: dict, vocab) -> tuple[dict, dict, dict]:
    """(gradient by path, report, corrupted tokens by example) of a step's first half, on the host."""
    mesh = cell.mesh and sharding.make_mesh(dict(zip(sharding.MESH_AXES, cell.mesh, strict=True)), jax.devices())
    constrain = sharding.constrainer(mesh)
    bb = backbone(sized(**{"V": V, "dtype": dtype, "param_dtype": dtype} | case.backbone), constrain)
    objective = case.make(bb, vocab)
    rows = labelled(rows, objective)
    axes = training.axes(bb, objective)
    params = toys.params_of(bb, objective)
    learned = tree.resolve([(p, False) for p in objective.frozen], params, True)
    if mesh:
        places = jax.tree.map(lambda s: jax.NamedSharding(mesh, s), sharding.specs(axes, params, mesh))
        params, rows = jax.device_put((params, rows), (places, sharding.rows(mesh)))

    def gradients(params, rows):
        key, step = random.key(3), jnp.int32(5)
        batch = training.corrupted(rows, key, step, objective)
        grads, sums = training.gradients(
            params, batch, key, step, backbone=bb, objective=objective, learned=learned,
            microbatches=cell.microbatches, constrain=constrain,
        )  # fmt: skip
        return grads, types.report(sums), batch["tokens"]

    grads, report, tokens = jax.device_get(jax.jit(gradients)(params, rows))
    rows = jax.device_get(rows)
    by_example = {}
    for b, s in zip(
        *np.nonzero(np.arange(1, rows["example"].shape[1] + 1) <= rows["segments"].max(1)[:, None]), strict=True
    ):
        by_example[tuple(rows["example"][b, s])] = tokens[b][rows["segments"][b] == s + 1].tolist()
    return tree.leaves(grads), report, by_example


@pytest.fixture(scope="module")
def reference(alone, packed, vocab):
    """Gradients of a case alone on one device in one microbatch, in float64, computed once."""

    @lru_cache
    def of(name):
        with jax.enable_x64(True):
            return run(CASES[name], REFERENCE, "float64", alone if CASES[name].packing is True else packed, vocab)

    return of


def check(name, cell, dtype, reference, alone, packed, vocab):
    grads, report, tokens = reference(name)
    with jax.enable_x64(dtype == "float64"):
        rows = packed if cell.packed or CASES[name].packing is not True else alone
        if cell.packed and CASES[name].packing == "groups":
            rows = two_groups_a_row(rows)
        other_grads, other_report, other_tokens = run(CASES[name], cell, dtype, rows, vocab)
    assert other_tokens == tokens
    assert other_grads.keys() == grads.keys()
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    assert norm > 1e-3
    loss_tolerance, tree_tolerance = (1e-12, 1e-10) if dtype == "float64" else (1e-6, 1e-5)
    for key in report:
        np.testing.assert_allclose(other_report[key], report[key], rtol=loss_tolerance, err_msg=key)
    far = {k: np.abs(other_grads[k] - g).max() / norm for k, g in grads.items()}
    if dtype == "float64":
        assert max(far.values()) < tree_tolerance, far
    distance = np.sqrt(sum(((other_grads[k] - g) ** 2).sum() for k, g in grads.items()))
    assert distance < tree_tolerance * norm


@pytest.mark.parametrize("cell", PAIRWISE[1:], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_invariance(name, cell, reference, alone, packed, vocab):
    check(name, cell, "float64", reference, alone, packed, vocab)


@pytest.mark.parametrize("name", CASES)
def test_invariance_float32(name, reference, alone, packed, vocab):
    check(name, PAIRWISE[1], "float32", reference, alone, packed, vocab)


@pytest.mark.product
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("cell", [c for c in PRODUCT if c != REFERENCE], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_invariance_product(name, cell, dtype, reference, alone, packed, vocab):
    check(name, cell, dtype, reference, alone, packed, vocab)


# of an objective one way of it, and what keeps more than params that are learned
KEEPING = (
    "rtd-gdes", "span-corruption", "mixture-teacher", "mixture-join", "mixture-gdes", "causal-prefix-modern",
    "contrastive-group",
)  # fmt: skip
RESUMED = [c for c in CASES if "-" not in c or c in KEEPING]


@pytest.mark.parametrize("name", [pytest.param(c, marks=[pytest.mark.product] * (c not in RESUMED)) for c in CASES])
def test_resumed_is_unbroken_to_the_bit(name, packed, vocab, tmp_path, capsys):
    """Two more steps from the checkpoint of the second: what the objective keeps (a teacher) and draws is in it. And
    all again from the start, to the same bits.
    """
    case = CASES[name]
    bb = backbone(sized(**{"V": V} | case.backbone))
    objective = case.make(bb, vocab)
    like = jax.eval_shape(partial(training.init, backbone=bb, objective=objective), random.generator(0))
    stage = Stage(
        name="a", backbone=bb, objective=objective, vocab=vocab, rows=labelled(packed, objective), batch=8, steps=4,
        optimizer=adamw(axes=training.axes(bb, objective), schedule=lambda step: 1e-2), schedule=lambda step: 1e-2,
        learned=tree.resolve([(p, False) for p in objective.frozen], like, True),
        mesh=sharding.make_mesh(dict.fromkeys(sharding.MESH_AXES, 1), jax.devices()[:1]), save_every=2,
    )  # fmt: skip
    whole = tree.leaves(loop.fit(stage, tmp_path))
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "4")
    again = tree.leaves(loop.fit(stage, tmp_path))
    assert "resumed a at step 2" in capsys.readouterr().err
    anew = tree.leaves(loop.fit(stage, tmp_path / "anew"))
    assert "resumed" not in capsys.readouterr().err
    for path, x in whole.items():
        np.testing.assert_array_equal(again[path], x, err_msg=path)
        np.testing.assert_array_equal(anew[path], x, err_msg=path)


@pytest.mark.parametrize("alternate", [False, True])
def test_all_objectives_can_be_one_mixture(alternate, packed, vocab):
    """One of each name, but for those whose labels are of other kinds."""
    bb = backbone(sized(**BERT | dict(V=V + 8)))
    makers = [case.make for case in CASES.values()]
    makers += [partial(seq2seq.bart, name="bart"), partial(span_corruption, sentinels=8, name="t5")]
    parts = {o.name: o for o in (make(bb, vocab) for make in makers) if not o.parts}
    parts = [part for name, part in parts.items() if name not in ("regress", "multilabel")]
    assert len(parts) > 18
    objective = mix(*((1.0, part) for part in parts), backbone=bb, alternate=alternate)
    params = toys.params_of(bb, objective)

    def gradients(params, rows):
        key, step = random.key(3), jnp.int32(5)
        return training.gradients(
            params, training.corrupted(rows, key, step, objective), key, step, backbone=bb, objective=objective,
            learned=tree.resolve([(p, False) for p in objective.frozen], params, True), microbatches=2,
        )  # fmt: skip

    _, sums = jax.eval_shape(gradients, params, packed)
    assert all(any(term == o.name or term.startswith(f"{o.name}_") for term in sums.terms) for o in parts)


_DRAWS = """
import hashlib, pickle, sys
import jax, numpy as np
from model import random
from test_properties import CASES, backbone, sized, V
from toys import SPECIAL, pack
from train import step as training
from objectives.types import Vocab
vocab = Vocab(V, *SPECIAL, special=SPECIAL, word_starts=np.arange(V) % 3 != 0, fingerprint="toy")
rows = pack([[5, 0, 9], [1, 3]], 48, 3)
for name in sys.argv[1:]:
    bb = backbone(sized(**{"V": V} | CASES[name].backbone))
    batch = jax.device_get(training.corrupted(rows, random.key(3), np.int32(5), CASES[name].make(bb, vocab)))
    print(name, hashlib.sha256(b"".join(x.tobytes() for x in jax.tree.leaves(batch))).hexdigest())
"""


def test_other_processes_draw_the_same():
    """Whatever the order in which they hash their strings."""
    names = ["mlm", "mlm-spans-bag", "hybrid", "nsp", "span-corruption", "denoise", "mixture"]
    here = Path(__file__).parent
    told = [
        subprocess.run(
            [sys.executable, "-c", _DRAWS, *names], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1] and len(told[0].splitlines()) == len(names)


@pytest.fixture(scope="module")
def params_by_name(vocab):
    """The objective of each case and a params tree, with other numbers in each, all on one architecture."""
    made = {}
    for i, (name, case) in enumerate(CASES.items()):
        bb = backbone(sized(**BERT | dict(V=V + 8)))
        objective = case.make(bb, vocab)
        params = jax.tree.map(lambda x, i=i: np.asarray(x) + i, toys.params_of(bb, objective))
        made[name] = objective, params
    return made


@pytest.mark.parametrize("name", CASES)
def test_what_one_objective_trained_carries_to_every_other(name, params_by_name):
    _, old = params_by_name[name]
    for other, (objective, fresh) in params_by_name.items():
        carried, report = carry(old, fresh)
        params = objective.begin(carried)
        assert jax.tree.structure(params) == jax.tree.structure(fresh)
        for path, x in tree.leaves(old["backbone"]).items():
            np.testing.assert_array_equal(tree.leaves(params["backbone"])[path], x, err_msg=f"{other}: {path}")
        assert {line.what for line in report if line.path.startswith("backbone/")} == {"taken"}
        for part in objective.parts or (objective,):
            own = params.get(part.name, {})
            for path, x in tree.leaves(own.get("teacher", {})).items():  # begins as what was carried
                np.testing.assert_array_equal(x, tree.leaves(old["backbone"])[path])
            if "delta" in own:
                whole = own["generator"]["embed"]["tokens"] + own["delta"]
                np.testing.assert_allclose(whole, old["backbone"]["embed"]["tokens"], atol=1e-4)  # of sums up to 80
