"""The README's objective, as it stands there, trains as it stands there."""

import numpy as np
from toys import config_of, readme, write_reviews

import configs.demo
from train import checkpoint
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
