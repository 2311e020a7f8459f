"""A plan says what arrays placed on real devices take, leaf by leaf, and what a formula says of FLOPs."""

import copy
import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from launch import plan as planning
from launch.plan import plan, show
from model import random
from train import build, loop, sharding, tree
from train import step as training

V, L, B = 99, 32, 16


def config(**changes):
    """An mlm stage and a classifier, on data that is nowhere."""
    documents = {"factory": "train.data.source:jsonl", "path": "/nowhere.jsonl"}
    common = {
        "optimizer": {"factory": "train.optimizer:adamw"}, "batch": B, "steps": 7,
        "schedule": {"factory": "train.schedule:linear", "peak": 1e-3},
    }  # fmt: skip
    made = {
        "stages": ("pretrain", "finetune"),
        "tokenizer": {"factory": "train.data.tokenizer:train_sentencepiece", "source": documents, "size": V},
        "backbone": {"size": "tiny", "D": 16, "F": 24, "max_length": 40},
        "pretrain": common | {
            "objective": {"factory": "objectives.mlm:mlm", "rate": 0.25},
            "data": {"factory": "train.data.rows:pack_documents", "source": documents, "length": L, "segments": 4},
        },
        "finetune": common | {
            "objective": {"factory": "objectives.classify:classify", "classes": 3},
            "data": {
                "factory": "train.data.rows:label_examples", "source": documents | {"label": "label", "pair": "pair"},
                "length": L, "classes": ("a", "b", "c"),
            },
        },
    }  # fmt: skip
    made["pretrain"] = made["pretrain"] | changes
    return made


def placed(found, name):
    """(state, learned, batch of zeros) of a stage, on the eight devices."""
    mesh = sharding.make_mesh(sharding.parse("data=2,fsdp=2,tensor=2"))
    stage, batch = planning._offline(found, name, build.spec(found, name), mesh)
    key = random.generator(0)
    axes = training.axes(stage.backbone, stage.objective)
    shardings = sharding.state_shardings(jax.eval_shape(loop.fresh(stage), key), axes, mesh)
    state = jax.jit(loop.fresh(stage), out_shardings=shardings)(key)
    zeros = {k: jax.device_put(np.zeros(x.shape, x.dtype), sharding.rows(mesh)) for k, x in batch.items()}
    return state, stage.learned, zeros


def on_a_device(x):
    return sum(shard.data.nbytes for shard in x.addressable_shards if shard.device == jax.devices()[0])


SOME = (("backbone/embed/.*", False), ("backbone/layers/.*/kernel", (False, True)))
CASES = {
    "adamw": ("pretrain", {}),
    "some learned": ("pretrain", {"learned": SOME}),
    "adafactor": ("pretrain", {"optimizer": {"factory": "train.optimizer:adafactor", "factor_from": 8}}),
    "muon": ("pretrain", {"optimizer": {"factory": "train.optimizer:muon"}}),
    "finetune": ("finetune", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_arrays_on_the_devices(case):
    name, changes = CASES[case]
    found = config(**changes)
    planned = plan(found, name, "data=2,fsdp=2,tensor=2")
    state, learned, batch = placed(found, name)
    actual = tree.leaves(state)
    assert {leaf["path"]: leaf["bytes"] for leaf in planned["leaves"]} == {k: on_a_device(x) for k, x in actual.items()}
    assert {leaf["path"]: (tuple(leaf["shape"]), leaf["dtype"]) for leaf in planned["leaves"]} == {
        k: (x.shape, str(x.dtype)) for k, x in actual.items()
    }
    totals = planned["totals"]
    gradient, _ = tree.split(state.params, learned)
    total = lambda t: sum(map(on_a_device, jax.tree.leaves(t)))
    assert totals["params_bytes"] == total(state.params)
    assert totals["optimizer_bytes"] == total(state.opt_state)
    assert totals["batch_bytes"] == total(batch)
    assert totals["parameters"] == sum(x.size for x in jax.tree.leaves(state.params))
    assert totals["learned"] == sum(x.size for x in jax.tree.leaves(gradient))
    if case == "adamw":
        assert totals["gradient_bytes"] == totals["params_bytes"]
    if case == "some learned":  # its two moments and a count
        assert 2 * totals["gradient_bytes"] == totals["optimizer_bytes"] - 8


def test_flops_are_those_of_the_formula():
    D, F, layers, C, S = 16, 24, 2, 3, 1
    tokens = B * L
    # a token and a layer: q, k, v and out, the two maps of the mlp, scores and the weighted sum; two for a multiply-add
    layer = tokens * 2 * (4 * D * D + 2 * D * F + 2 * L * D)
    # of the last layer all keys and values, and the rest for what is read
    last = lambda read: tokens * 2 * 2 * D * D + B * read * 2 * (2 * D * D + 2 * D * F + 2 * L * D)
    chosen = int(0.25 * L) + 4  # rate * L, and room for a rounding in each of four segments
    encoder = (layers - 1) * layer
    mlm = encoder + last(chosen) + B * chosen * 2 * (D * D + D * V)
    classify = encoder + last(S) + B * S * 2 * (D * D + D * C)
    found = {name: plan(config(), name)["totals"] for name in ("pretrain", "finetune")}
    assert found["pretrain"]["flops"] == 3 * mlm
    assert found["finetune"]["flops"] == 3 * classify
    assert found["pretrain"]["flops_per_token"] == round(3 * mlm / tokens)
    assert found["pretrain"]["tokens"] == tokens


def test_what_does_not_divide_stays_whole_and_is_marked():
    planned = plan(config(), "pretrain", "data=2,fsdp=4,tensor=2")  # V = 99 over tensor=2
    leaf = {leaf["path"]: leaf for leaf in planned["leaves"]}["params/backbone/embed/tokens"]
    assert (leaf["axes"], leaf["shape"], leaf["dtype"]) == (["vocab", "embed"], [V, 16], "float32")
    assert (leaf["spec"], leaf["whole"], leaf["bytes"]) == ([None, "fsdp"], [0], V * 16 * 4 // 4)
    whole = [leaf["path"] for leaf in planned["leaves"] if leaf["whole"]]
    assert {path.split("/", 1)[1] for path in whole if path.startswith("params")} == {
        "backbone/embed/tokens",
        "mlm/bias",
    }
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(planned, console)
    text = console.export_text()
    console.file.close()
    assert "99*x16" in text
    assert "-, fsdp" in text
    assert "16 devices" in text
    assert "7 steps" in text


def test_the_configs_own_mesh_counts_what_is_left_as_one():
    planned = plan(config(mesh="data=-1,fsdp=2"), "pretrain")
    assert planned["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    assert planned["notes"] == ["mesh data=-1,fsdp=2: -1 counted as 1"]


def test_epochs_leave_the_steps_open():
    found = config(epochs=3.0, steps=None)
    planned = plan(found, "pretrain", "data=1")
    assert planned["totals"]["steps"] is None
    assert planned["notes"] == ["epochs=3.0: the number of steps depends on the data"]


def without_size():
    found = copy.deepcopy(config())
    del found["tokenizer"]["size"]
    return found


ERRORS = [
    (lambda: plan(config(), "x"), "the config has no stage 'x'; its stages are pretrain, finetune"),
    (lambda: plan(config(), "pretrain", "data=7"), "pretrain: a batch of 16 rows does not divide"),
    (lambda: plan(config(), "pretrain", "date=7"), "mesh 'date=7': 'date=7' must be one of data, fsdp, tensor"),
    (
        lambda: plan(config(best="dev/loss"), "pretrain"),
        "pretrain.best='dev/loss' must be a metric of one of its evals",
    ),
    (lambda: plan(without_size(), "pretrain"), "the config's tokenizer gives no size"),
    (lambda: plan(config(), "pretrain", memory="gpu"), "--memory=gpu: expected tpu:TOPOLOGY"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_memory_without_libtpu_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'libtpu, which is not installed: pip install -e "\.\[tpu\]"'):
        plan(config(), "pretrain", memory="tpu:v5e:2x2")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_memory_is_the_compilers():
    planned = plan(config(mesh="fsdp=-1"), "pretrain", memory="tpu:v5e:2x2")
    assert planned["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    totals, memory = planned["totals"], planned["memory"]
    # tiles of a TPU's memory are padded, so never less than the numbers alone
    assert memory["arguments"] >= totals["params_bytes"] + totals["optimizer_bytes"] + totals["batch_bytes"]
    assert memory["total"] == sum(memory[k] for k in ("arguments", "temporary", "outputs", "program"))


def test_the_command_prints_json_and_writes_nothing(toy, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "launch.plan", f"--config={toy.file}", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run("--mesh=data=4,fsdp=4", "--json", "--config.pretrain.batch=64", "--config.finetune.batch=16")
    assert done.returncode == 0, done.stderr
    pretrain, finetune = json.loads(done.stdout)
    assert pretrain["stage"] == "pretrain"
    assert finetune["stage"] == "finetune"
    assert pretrain["totals"]["tokens"] == 64 * 32
    assert pretrain == plan(
        toy.config | {"pretrain": toy.config["pretrain"] | {"batch": 64}}, "pretrain", "data=4,fsdp=4"
    )
    failed = run("--mesh=data=5")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: pretrain: a batch of 8 rows does not divide")
    assert failed.stdout == ""
    assert list(tmp_path.iterdir()) == []
