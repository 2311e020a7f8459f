"""Imports go one way, and each library has its room."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# what a folder may import of ours
MAY = {
    "model": {"model"},
    "objectives": {"model", "objectives"},
    "train": {"model", "objectives", "train"},
    "launch": {"model", "objectives", "train", "launch", "configs"},
    "configs": set(),
}
# the one place of a library
ROOMS = {
    "flax": "model/",
    "orbax": "train/checkpoint.py",
    "tensorflow_datasets": "train/data/",
    "sentencepiece": "train/data/",
    "tokenizers": "train/data/",
    "pyarrow": "train/data/",
    "zstandard": "train/data/",
    "array_record": "train/data/",
    "isal": "train/data/",
    "datasketch": "train/data/",
    "ftfy": "train/data/",
}
# imported by the function that needs it, since a machine may train without
LATE = {"tensorflow_datasets", "pyarrow", "zstandard", "array_record", "datasets", "datasketch", "ftfy"}
FILES = [p.relative_to(ROOT) for folder in MAY for p in sorted((ROOT / folder).rglob("*.py"))]


def imports(nodes: Iterable[ast.AST], file: Path) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports(file):
    tree = ast.parse((ROOT / file).read_text())
    assert not imports(tree.body, file) & LATE, "import it where it is needed"
    found = imports(ast.walk(tree), file)
    folder = file.parts[0]
    assert not (found & MAY.keys()) - MAY[folder], f"{folder} may import {MAY[folder] or 'nothing of ours'}"
    for library, room in ROOMS.items():
        assert library not in found or str(file).startswith(room), f"{library} belongs to {room}"
    if folder == "configs":
        assert found <= {"ml_collections"}


def test_every_folder_is_seen():
    assert {f.parts[0] for f in FILES} == MAY.keys()
