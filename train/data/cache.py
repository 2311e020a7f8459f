"""A cache of rows on disk: made once, found again by the hash of what they were made from, mapped rather than read."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from train.data.rows import Rows

_LAYOUT = 1  # raise it when the code that makes rows changes what it makes


def cached(directory: str | os.PathLike, key: Mapping[str, Any], make: Callable[[], Rows]) -> Rows:
    """The rows stored under `directory/<hash of key>/`, or else those of `make()`, stored there first.

    `key` says all that the rows depend on, in JSON: a source's fingerprint, a tokenizer's, the arguments. A folder
    appears whole or not at all: of processes that make the same rows at once, one stores them and all read those.

    Raises:
      ValueError: the key is not JSON, or a stored file is not the one that was written.
    """
    try:
        text = json.dumps({"layout": _LAYOUT, **key}, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"the key of cached rows must be JSON ({error}): give fingerprints and plain values") from None
    folder = Path(directory) / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    if not folder.exists():
        _store(folder, json.loads(text), make())
    return _load(folder)


def _store(folder: Path, key: dict, rows: Rows) -> None:
    # Beside its destination, since a rename is atomic only within a file system.
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        for name, array in rows.arrays.items():
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
        checksums = {name: _checksum(partial / f"{name}.npy") for name in rows.arrays}
        manifest = {"key": key, "report": rows.report, "checksums": checksums}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process was first with the same rows; its folder stays.
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(folder: Path) -> Rows:
    manifest = json.loads((folder / "manifest.json").read_text())
    arrays = {}
    for name, checksum in manifest["checksums"].items():
        file = folder / f"{name}.npy"
        if not file.exists() or _checksum(file) != checksum:
            raise ValueError(f"{file} is missing or not what was written; delete {folder} and the rows are made again")
        arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
    return Rows(arrays, manifest["report"])


def _checksum(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
