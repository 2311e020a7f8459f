"""The table of objectives: what each training is known by, and what the table says of it."""

import gzip
import json
import shlex

import numpy as np
import pytest
from toys import WORDS

from configs.compare_objectives import OBJECTIVES, VOCABULARY, get_config
from launch import compare
from train import build


def test_a_training_of_other_settings_is_another():
    one = compare.Pretraining("mlm", "tiny", 100, 32, 0)
    others = [one._replace(**{k: v}) for k, v in dict(objective="rtd", size="mini", steps=99, batch=8, seed=1).items()]
    assert len({one.folder, *(x.folder for x in others)}) == 6


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
    assert not (tmp_path / "out").exists()


def test_equal_compute_gives_dearer_objectives_fewer_steps(tmp_path, capsys, monkeypatch):
    ran = []

    def run(*command):
        ran.append(shlex.join(command))
        folder = next(x.removeprefix("--workdir=") for x in command if x.startswith("--workdir="))
        if "finetune_glue" in ran[-1]:
            (tmp_path / folder / "finetune").mkdir(parents=True)
            (tmp_path / folder / "finetune" / "metrics.jsonl").write_text(
                json.dumps({"dev/accuracy": 0.5})
                + "\n"
                + json.dumps({"dev/accuracy": 0.625 + 0.25 * ("_1/" in folder)})
            )

    monkeypatch.setattr(compare, "_run", run)
    monkeypatch.setattr(compare, "blimp", lambda workdir, pairs: None)
    how = ["--objectives=mlm,mlm|causal", "--tasks=RTE", "--seeds=0,1", "--steps=90", "--equal=compute"]
    compare.main([f"--out={tmp_path}", *how])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| objective | steps | FLOPs | RTE | BLiMP |"
    assert rows[0] == "| mlm | 90 | 1.00 | 75.0 ± 17.7 |  |"
    cells = rows[1].replace(r"\|", "").split(" | ")
    assert int(cells[1]) == round(90 / float(cells[2])) and 1.3 < float(cells[2]) < 1.8
    assert len(ran) == 8 and all("from=" in x for x in ran if "finetune_glue" in x)
