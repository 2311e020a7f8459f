"""The README's objective, as it stands there, trains as it stands there; what it says of a workdir is so."""

import re
from pathlib import Path

import numpy as np
from toys import config_of, readme, write_reviews

import configs.demo
from train import build, checkpoint
from train.__main__ import _HELP
from train.log import curve


def test_the_objective_in_the_readme(tmp_path, monkeypatch):
    objective, training = readme()
    assert len(objective.splitlines()) < 45
    write_reviews(tmp_path / "reviews.tsv")
    monkeypatch.setattr(configs.demo, "get_config", lambda: config_of(tmp_path, save_every=50))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    exec(objective, names)
    exec(training, names)
    assert checkpoint.steps_in(tmp_path / "runs/notebook/swapped/checkpoints") == [50]
    steps, losses = curve(tmp_path / "runs/notebook/swapped", "loss")
    assert steps == list(range(1, 51))
    assert abs(losses[0] - np.log(2)) < 1e-5  # its weights are zeros
    assert np.mean(losses[-10:]) < 0.64


def test_what_may_not_change_under_a_workdir_is_told():
    for text in ((Path(__file__).parents[1] / "README.md").read_text(), _HELP):
        said = re.search(r"(?:Another|What may not:) ([^.(]*?)(?: is an error| \(an error)", text.replace("\n", " "))[1]
        keys = re.findall(r"\w+", said.replace(" or ", " "))
        assert sorted(keys) == sorted([*build._IDENTITY, "backbone", "tokenizer"])
