"""The table of objectives: what each training is known by, and what the table says of it."""

import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toys import WORDS

from configs.compare_objectives import OBJECTIVES, VOCABULARY, get_config
from launch import compare
from train import build


def test_a_training_of_other_settings_is_another():
    one = compare.Pretraining("mlm", "tiny", 100, 32, "0.002", 0)
    other = dict(objective="rtd", size="mini", steps=99, batch=8, peak="0.001", seed=1)
    folders = {one.folder, *(one._replace(**{k: v}).folder for k, v in other.items())}
    assert len(folders) == 7 and other.keys() == {*one._fields}


def test_a_training_is_made_as_it_is_named():
    config = get_config(compare.Pretraining("mlm", "small", 100, 8, "0.0003", 1).config.partition(":")[2])
    assert (config.pretrain.batch, config.pretrain.steps, config.pretrain.seed) == (8, 100, 1)
    assert config.backbone.size == "small" and config.pretrain.schedule.peak == 3e-4
    assert get_config("size=small,batch=8").pretrain.schedule.peak == 5e-4


@pytest.fixture(scope="module")
def of_mlm():
    return compare.flops("mlm", "tiny")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_the_table_can_be_planned(objective, of_mlm):
    assert 0.4 < compare.flops(objective, "tiny") / of_mlm < 4


@pytest.fixture(scope="module")
def articles(tmp_path_factory):
    """A folder that is laid out as ROOTSTOCK_DATA, with made-up articles."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "pretrain").mkdir()
    rng = np.random.default_rng(0)
    for split, n in (("train", 60), ("valid", 6)):
        with gzip.open(folder / f"pretrain/wiki_{split}.jsonl.gz", "wt") as file:
            for _ in range(n):
                sentences = [" ".join(rng.choice(WORDS, 9)) + "." for _ in range(30)]
                file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return folder


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_the_table_is_built_from_text(objective, articles, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_DATA", str(articles))
    config = build.plain(get_config(f"objective={objective},steps=4"))
    config["tokenizer"] |= dict(size=45, byte_fallback=False)
    config["backbone"]["V"] = 45 + config["backbone"]["V"] - VOCABULARY
    stage = build.stage(config, "pretrain", articles / "work")
    assert len(stage.rows) > 50 and stage.evals["valid"]


def test_unknown_names_are_refused_before_anything_runs(tmp_path, capsys):
    for what in ("objectives", "tasks"):
        with pytest.raises(SystemExit):
            compare.main([f"--out={tmp_path / 'out'}", f"--{what}=mlm,nonsense"])
        assert f"--{what}:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main([f"--out={tmp_path / 'out'}", "--peaks=1e-3,large"])
    assert "--peaks: invalid numbers value: '1e-3,large'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main([f"--out={tmp_path / 'out'}", "--batch=-3"])
    assert "--batch: -3 is not at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_that_is_missing_is_told_before_anything_runs(articles, monkeypatch, capsys):
    monkeypatch.setenv("ROOTSTOCK_DATA", str(articles))
    with pytest.raises(SystemExit):
        compare.main([f"--out={articles / 'out'}", "--tasks=RTE,EWT"])
    assert f"ROOTSTOCK_DATA={articles} has no glue/RTE, ud_ewt, blimp" in capsys.readouterr().err
    assert not (articles / "out").exists()


_SLOW = """
import pathlib, signal, sys, time
from train import loop
with loop._ask_to_stop() as asked:
    print("ready", flush=True)
    while not asked.stop:
        time.sleep(0.1)
    time.sleep(1)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(1)
"""


@pytest.mark.parametrize("whom", ["it alone", "all"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_waits_for_what_runs_to_save(tmp_path, number, whom):
    """As from a terminal or a scheduler, which tell the training too, or by `kill` of its own process."""
    code = "import sys; from launch import compare; compare._run('-c', *sys.argv[1:])"
    command = [sys.executable, "-c", code, _SLOW, str(tmp_path / "saved")]
    how = dict(cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True, start_new_session=True)
    with subprocess.Popen(command, **how) as asked:
        assert any(line == "ready\n" for line in asked.stderr)
        os.kill(asked.pid, number) if whom == "it alone" else os.killpg(asked.pid, number)
        told = asked.stderr.read()
        assert asked.wait() == 1
    assert told == f"stopped by {number.name}: the same command goes on from there\n"
    assert (tmp_path / "saved").read_text() == "saved"


def test_one_that_fails_does_not_keep_the_others_from_running(tmp_path, capsys, monkeypatch):
    def run(*command):
        folder = next(x.removeprefix("--workdir=") for x in command if x.startswith("--workdir="))
        if "0.004" in folder:
            raise ValueError("it ended with exit code 1")
        (Path(folder) / "pretrain").mkdir(parents=True, exist_ok=True)
        (Path(folder) / "pretrain" / "metrics.jsonl").write_text('{"valid/loss": 2.0}')

    monkeypatch.setenv("ROOTSTOCK_DATA", str(tmp_path))
    (tmp_path / "pretrain").mkdir()
    monkeypatch.setattr(compare, "_run", run)
    monkeypatch.setattr(compare, "TASKS", {})
    with pytest.raises(SystemExit) as ended:
        compare.main([f"--out={tmp_path}", "--objectives=mlm", "--peaks=4e-3,1e-3", "--tasks=", "--pairs=0"])
    assert str(ended.value) == "error: 1 unfinished:\n  it ended with exit code 1"
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "| mlm | 0.004 | 2500 | 1.00 | failed |", "| mlm | 0.001 | 2500 | 1.00 | 2.000 |",
    ]  # fmt: skip


def test_rates_are_walked_until_the_best_is_no_end(tmp_path, capsys, monkeypatch):
    """Of a score that is highest at 4e-3; above it training fails."""

    def run(*command):
        folder = next(x.removeprefix("--workdir=") for x in command if x.startswith("--workdir="))
        rate = float(folder.removeprefix(f"{tmp_path}/").split("_")[3])
        if rate > 4.1e-3:
            raise ValueError("it ended with exit code 1")
        stage = "finetune" if "RTE" in folder else "pretrain"
        (Path(folder) / stage).mkdir(parents=True, exist_ok=True)
        (Path(folder) / stage / "metrics.jsonl").write_text(json.dumps({"valid/loss": 2.0, "dev/accuracy": 50 * rate}))

    monkeypatch.setenv("ROOTSTOCK_DATA", str(tmp_path))
    for folder in ("pretrain", "glue/RTE"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(compare, "_run", run)
    how = ["--objectives=mlm", "--tasks=RTE", "--pairs=0", "--peaks=1e-3", "--walk=RTE"]
    with pytest.raises(SystemExit, match="1 unfinished"):
        compare.main([f"--out={tmp_path}", *how])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[1], row[-1]) for row in rows] == [
        ("0.001", "5.0 |"), ("0.002", "10.0 |"), ("0.0005", "2.5 |"), ("0.004", "20.0 |"), ("0.008", "failed |"),
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        compare.main([f"--out={tmp_path}", "--tasks=RTE", "--walk=EWT"])
    assert "--walk: EWT is not one of --tasks, RTE" in capsys.readouterr().err


def test_equal_compute_gives_dearer_objectives_fewer_steps(tmp_path, capsys, monkeypatch):
    ran = []

    def run(*command):
        ran.append(shlex.join(command))
        folder = next(x.removeprefix("--workdir=") for x in command if x.startswith("--workdir="))
        other = "_1/" in f"{folder}/"
        stage, logged = "pretrain", [{"valid/loss": 2.0 + other}]
        if "finetune_glue" in ran[-1]:
            stage, logged = "finetune", [{"dev/accuracy": 0.5}, {"dev/accuracy": 0.625 + 0.25 * other}]
        (tmp_path / folder / stage).mkdir(parents=True)
        (tmp_path / folder / stage / "metrics.jsonl").write_text("\n".join(map(json.dumps, logged)))

    monkeypatch.setenv("ROOTSTOCK_DATA", str(tmp_path))
    for folder in ("pretrain", "glue/RTE", "blimp"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(compare, "_run", run)
    monkeypatch.setattr(compare, "blimp", lambda workdir, pairs: None)
    how = [
        "--objectives=mlm,mlm|causal",
        "--tasks=RTE",
        "--seeds=0,1",
        "--steps=90",
        "--equal=compute",
        "--peaks=2e-3,1e-3",
    ]
    compare.main([f"--out={tmp_path}", *how])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| objective | peak | steps | FLOPs | loss | RTE | BLiMP |"
    assert rows[0] == "| mlm | 0.002 | 90 | 1.00 | 2.500 ± 0.707 | 75.0 ± 17.7 |  |"
    assert rows[1] == rows[0].replace("0.002", "0.001")
    cells = rows[2].replace(r"\|", "").split(" | ")
    assert int(cells[2]) == round(90 / float(cells[3])) and 1.3 < float(cells[3]) < 1.8
    assert len(rows) == 4 and len(ran) == 16 and all("from=" in x for x in ran if "finetune_glue" in x)
