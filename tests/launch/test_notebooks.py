"""Each notebook in launch/notebooks/ runs in a kernel of its own, with fewer steps, and does what it says."""

import ast
import re
from pathlib import Path

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from train.log import curve

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "notebooks"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """(a notebook's name, changes to its sources) -> its cells by id, executed in `tmp_path`."""
    for variable in ("NPROC", "XLA_FLAGS"):  # the suite's: a notebook has its own
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"):
        monkeypatch.setenv(name.upper(), str(jax.config.values[name]))

    def run(name: str, changes: dict[str, str]) -> dict:
        book = nbformat.read(FOLDER / name, as_version=4)
        for was, now in changes.items():
            (cell,) = [c for c in book.cells if was in c.source]
            cell.source = cell.source.replace(was, now)
        where = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(book, kernel_name="python3", startup_timeout=300, timeout=600, resources=where).execute()
        return {cell.id: cell for cell in book.cells}

    return run


def said(cell, stream: str) -> str:
    return "".join(out.text for out in cell.outputs if out.output_type == "stream" and out.name == stream)


def test_a_new_objective(execute, tmp_path):
    cells = execute("new_objective.ipynb", {"PRETRAIN, FINETUNE = 400, 100": "PRETRAIN, FINETUNE = 40, 12"})
    source = cells["objective"].source
    assert len(source.splitlines()) <= 25
    assert [node.name for node in ast.parse(source).body] == ["first_letter"]
    assert "⟦[MASK]⟧" in said(cells["config"], "stdout")

    # on eight devices, the embeddings in two parts
    assert said(cells["fit"], "stdout") == "8 devices; of the embeddings (4096, 128) each holds (4096, 64)\n"
    steps, losses = curve(tmp_path / "runs/new_objective/pretrain", "loss")
    assert steps == list(range(1, 41))
    assert losses[0] > np.log(26)
    assert np.mean(losses[-5:]) < 2.95  # 2.83 is the entropy of first letters
    assert [out.output_type for out in cells["curve"].outputs] == ["display_data"]
    assert "image/png" in cells["curve"].outputs[0].data

    log = said(cells["run"], "stderr")
    assert "pretrain is done at step 40" in log
    assert re.search(r"backbone/embed/tokens +taken", log)
    assert log.count("carried from") == 1
    for arm in ("grafted", "fresh"):
        assert curve(tmp_path / "runs/new_objective" / arm, "loss")[0] == list(range(1, 13))
    found = re.fullmatch(r".* dev: grafted (\S+) %, fresh (\S+) %\n", said(cells["run"], "stdout"))
    logged = [100 * curve(tmp_path / "runs/new_objective" / arm, "dev/accuracy")[1][-1] for arm in ("grafted", "fresh")]
    assert found.groups() == tuple(f"{accuracy:.1f}" for accuracy in logged)
    assert not [cell for cell in cells.values() if cell.cell_type == "code" and "Warning" in said(cell, "stderr")]
