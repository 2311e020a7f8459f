"""What a command line can get wrong is one line that says it, without the program's insides."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (
            ["--config=configs/finetune_classification.py:form=runs/wiki", "--workdir=x"],
            "error: 'form' is no argument of this config; they are from, train, dev",
        ),
        (["--config=configs/no.py", "--workdir=x"], f"error: --config=configs/no.py: there is no such file in {ROOT}"),
        (["--config=configs/no.py:a=b", "--workdir=x", "--config.c=1"], "error: --config=configs/no.py: there is no"),
        (["--config=configs/demo.py"], "error: flag --workdir=None: Flag --workdir must have a value"),
        (["--config=configs/demo.py", "--workdir=x", "--config.pretrain.steps=ten"], "error: flag --config.pretrain.s"),
        (["--config=configs/demo.py", "--workdir=README.md"], "error: the workdir README.md is a file: take a folder"),
    ],
)
def test_a_mistake_is_one_line(arguments, says):
    done = subprocess.run([sys.executable, "-m", "train", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(says)
    assert len(done.stderr.splitlines()) == 1


def test_help_lists_every_flag():
    done = subprocess.run([sys.executable, "-m", "train", "--help"], cwd=ROOT, capture_output=True, text=True)
    flags = done.stdout.partition("flags:")[2]
    assert all(f"--{flag}:" in flags for flag in ("config", "distributed", "fork", "stage", "workdir"))
