"""Minimal pairs from files, held against the likelihoods themselves; and what is said where there is none."""

import json

import numpy as np
import pytest

from launch import blimp
from launch.predict import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blimp")
    pairs = [("good film.", "film good."), ("bad plot.", "bad plot."), ("never always.", "rather quite good story.")]
    for name in ("one", "two"):
        lines = [json.dumps(dict(sentence_good=good, sentence_bad=bad)) for good, bad in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(lines[: 3 if name == "one" else 2]) + "\n")
    return folder


def test_accuracies(toy, folder, capsys, tmp_path):
    trained = load(toy.workdir, "pretrain")
    good = blimp.likelihoods(trained, ["good film.", "bad plot.", "never always."])
    bad = blimp.likelihoods(trained, ["film good.", "bad plot.", "rather quite good story."])
    alone = blimp.likelihoods(trained, ["film good."])
    np.testing.assert_allclose(alone, bad[:1], rtol=1e-4)  # packed or not
    right = np.where(good == bad, 0.5, good > bad)
    expected = {"one": right.mean(), "two": right[:2].mean()}
    assert blimp.accuracies(trained, folder) == pytest.approx(expected)
    out = tmp_path / "found.json"
    blimp.main([f"--workdir={toy.workdir}", "--stage=pretrain", f"--data={folder}", "--pairs=2", f"--out={out}"])
    said = json.loads(out.read_text())
    assert said["one"] == said["two"] == said["mean"] == pytest.approx(expected["two"])
    assert f"{100 * expected['two']:.1f}" in capsys.readouterr().out


def test_errors(toy, folder, tmp_path, capsys):
    for arguments, message in (
        (["--stage=finetune", f"--data={folder}"], "trained by classify, which gives texts no likelihood"),
        (["--stage=pretrain", f"--data={tmp_path}"], "holds no .jsonl files"),
    ):
        with pytest.raises(SystemExit, match=message):
            blimp.main([f"--workdir={toy.workdir}", *arguments])
