"""Rows on disk: a folder of shards, each there whole or not at all, and a manifest once all of them are.

    FOLDER/key.json                 what the rows are made from; written first, never changed
    FOLDER/00002-00000/tokens.npy   a shard, the first of part 2: one array a file, any row one seek away
    FOLDER/00002-00000/shard.json   its counts and the checksums of its files
    FOLDER/00002.json               part 2 is whole: how many shards it has, and what was left out of it
    FOLDER/manifest.json            all of that in one, written last

The arrays are numpy's own format, mapped when read: rows of one length need no index.
"""

import collections
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_hash = functools.partial(hashlib.blake2b, digest_size=16)
_ABANDONED = 24 * 3600  # seconds after which nobody goes on with a shard half written
_PARTIAL = re.compile(r"\.(\d+-\d+|(\d+|key|manifest)\.json)\.[0-9a-f]{32}")
_LAYOUT = 3  # raise it when the code that makes or stores rows changes what it makes
_VERIFY = 64 * 2**20  # bytes that a folder may have for its checksums to be verified whenever it is opened


def key_of(facts: Mapping[str, Any]) -> str:
    """The text that names what rows are made from. Raises ValueError for facts that are not JSON."""
    try:
        return json.dumps({"layout": _LAYOUT, **facts}, sort_keys=True)
    except TypeError as error:
        raise ValueError(
            f"the key of prepared rows must be JSON ({error}): give fingerprints and plain values"
        ) from None


def name_of(key: str) -> str:
    """A folder's name for a key."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def begin(folder: Path, key: str) -> None:
    """Makes the folder for these rows. Raises ValueError where it holds others, and touches nothing then."""
    file = folder / "key.json"
    if file.exists():
        was, now = (json.loads(x) for x in (file.read_text(), key))
        if was != now:
            differing = ", ".join(k for k in sorted(was.keys() | now.keys()) if was.get(k) != now.get(k))
            raise ValueError(f"{folder} holds rows made from something else ({differing} differ); take another folder")
        return
    if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        if file.exists():  # another process has just begun
            begin(folder, key)
            return
        raise ValueError(f"{folder} is not empty and holds no prepared rows; take another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not _write(file, key, first=True):  # another process was quicker
        begin(folder, key)


def name(part: int, number: int) -> str:
    """Of a part's shard; as text they sort as their numbers do."""
    return f"{part:05d}-{number:05d}"


def is_there(folder: Path, shard: str) -> bool:
    return (folder / shard / "shard.json").exists()


def write(folder: Path, shard: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Stores a shard; it appears whole or not at all. Where another process was first, its shard stays.

    Raises ValueError where it cannot be written, as on a full disk; nothing of it is left then.
    """
    to = folder / shard
    partial = folder / f".{shard}.{uuid.uuid4().hex}"
    try:
        partial.mkdir()
        files = {}
        for array_name, array in arrays.items():
            content = io.BytesIO()  # numpy, writing to a file itself, does not see that the last bytes found no room
            np.save(content, array, allow_pickle=False)
            with open(partial / f"{array_name}.npy", "wb") as stream:
                stream.write(content.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())
            files[array_name] = {"bytes": content.tell(), "checksum": _hash(content.getbuffer()).hexdigest()}
        _write(partial / "shard.json", json.dumps({"name": shard, **facts, "files": files}))
        try:
            partial.rename(to)
        except OSError:
            if not is_there(folder, shard):
                raise
    except OSError as error:
        raise ValueError(
            f"shard {shard} could not be written to {folder} ({error.strerror or error}); make room and run the same "
            "again: what is finished stays"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def end_part(folder: Path, part: int, count: int, report: Mapping[str, int]) -> None:
    """Notes that a part is whole, if all its `count` shards are there; `report` counts what was left out of it."""
    if all(is_there(folder, name(part, n)) for n in range(count)):
        _write(folder / f"{part:05d}.json", json.dumps({"shards": count, "report": report}))


def is_whole(folder: Path, part: int) -> bool:
    return (folder / f"{part:05d}.json").exists()


def finish(folder: Path, count: int) -> bool:
    """Writes the manifest if all `count` parts are whole; whether it did. Raises ValueError if they have no shard."""
    if not all(is_whole(folder, part) for part in range(count)):
        return False
    parts = [json.loads((folder / f"{part:05d}.json").read_text()) for part in range(count)]
    names = [name(part, n) for part, facts in enumerate(parts) for n in range(facts["shards"])]
    if not names:
        raise ValueError("the source holds no record; expected at least one")
    found = [json.loads((folder / shard / "shard.json").read_text()) for shard in names]
    _sweep(folder)
    _headers.cache_clear()
    totals: collections.Counter[str] = collections.Counter()
    for facts in (*found, *parts):
        totals.update(facts["report"])
    padding = 1 - totals["tokens"] / max(1, sum(shard["rows"] * shard["length"] for shard in found))
    report = {**totals, "padding": padding}
    key = json.loads((folder / "key.json").read_text())
    _write(folder / "manifest.json", json.dumps({"key": key, "report": report, "shards": found}, indent=1))
    return True


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder. Raises ValueError where there is none, or it is of another layout."""
    file = folder / "manifest.json"
    if not file.exists():
        if (folder / "key.json").exists():
            raise ValueError(f"{folder} is not finished: run what prepares it again, and it goes on from there")
        raise ValueError(f"{folder} holds no prepared rows; expected a folder that train.data.prepare has made")
    found = json.loads(file.read_text())
    if found["key"].get("layout") != _LAYOUT:
        raise ValueError(
            f"{folder} was prepared with layout {found['key'].get('layout')}, expected {_LAYOUT}: prepare again"
        )
    return found


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """Hash of the bytes of all the files."""
    sums = [file["checksum"] for shard in manifest["shards"] for _, file in sorted(shard["files"].items())]
    return hashlib.blake2b("".join(sums).encode(), digest_size=16).hexdigest()


def check(folder: Path, manifest: Mapping[str, Any], checksums: bool | None = None) -> None:
    """Raises ValueError for the first file that is missing or not what was written.

    By size, and by checksum if `checksums`; None verifies checksums where all files together are small.
    """
    total = sum(file["bytes"] for shard in manifest["shards"] for file in shard["files"].values())
    checksums = total <= _VERIFY if checksums is None else checksums
    for shard in manifest["shards"]:
        for array_name, facts in shard["files"].items():
            file = folder / shard["name"] / f"{array_name}.npy"
            same = file.exists() and file.stat().st_size == facts["bytes"]
            if not same or (checksums and _checksum(file) != facts["checksum"]):
                raise ValueError(
                    f"{file} is missing or not what was written; delete {file.parent}, "
                    f"{folder / shard['name'].partition('-')[0]}.json and {folder / 'manifest.json'}, prepare again, "
                    f"and only that shard is made again"
                )


def arrays(folder: Path, shard: str) -> dict[str, np.ndarray]:
    """A shard's arrays, mapped."""
    return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in (folder / shard).glob("*.npy")}


def read(folder: Path, shard: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of these numbers [n] in a shard, by name [n, ...]. Holds no file open, however many shards there are."""
    out = {}
    for array_name, (file, offset, dtype, shape) in _headers(folder, shard).items():
        size = dtype.itemsize * math.prod(shape)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            content = b"".join(os.pread(descriptor, size, offset + size * row) for row in rows.tolist())
        finally:
            os.close(descriptor)
        out[array_name] = np.frombuffer(content, dtype).reshape(len(rows), *shape)
    return out


@functools.lru_cache(1 << 16)
def _headers(folder: Path, shard: str) -> dict[str, tuple[Path, int, np.dtype, tuple[int, ...]]]:
    """Of each array: its file, where its rows begin, their dtype and shape."""
    out = {}
    for file in (folder / shard).glob("*.npy"):
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        out[file.stem] = file, mapped.offset, mapped.dtype, mapped.shape[1:]
    return out


def _sweep(folder: Path) -> None:
    """Removes what processes that were killed have left half written; one that still runs may be writing another."""
    for leftover in folder.glob(".*"):
        if not _PARTIAL.fullmatch(leftover.name):
            continue
        try:
            if time.time() - leftover.stat().st_mtime < _ABANDONED:
                continue
            leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover, ignore_errors=True)
        except FileNotFoundError:  # its process has just ended with it
            continue


def _write(file: Path, text: str, first: bool = False) -> bool:
    """Writes a file whole or not at all; False where `first` and it is there already."""
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with open(partial, "w") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if not first:
            partial.rename(file)
            return True
        try:
            os.link(partial, file)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            partial.rename(file)
        return True
    finally:
        partial.unlink(missing_ok=True)


def _checksum(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, _hash).hexdigest()
