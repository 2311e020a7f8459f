"""Cached rows are made once, appear whole or not at all, and are refused when a file has changed."""

import numpy as np
import pytest

from train.data.cache import cached
from train.data.rows import Rows

ROWS = Rows({"tokens": np.arange(12, dtype=np.int32).reshape(3, 4), "labels": np.ones((3, 1), np.float32)}, {"rows": 3})


def never():
    raise AssertionError("made again")


def test_made_once_and_mapped(tmp_path):
    first = cached(tmp_path / "new", {"length": 4, "source": "abc"}, lambda: ROWS)
    again = cached(tmp_path / "new", {"source": "abc", "length": 4}, never)
    for rows in (first, again):
        np.testing.assert_equal(dict(rows.arrays), ROWS.arrays)
        assert rows.report == ROWS.report
        assert all(isinstance(array, np.memmap) for array in rows.arrays.values())


def test_another_key_is_another_folder(tmp_path):
    cached(tmp_path, {"length": 4}, lambda: ROWS)
    other = cached(tmp_path, {"length": 5}, lambda: ROWS._replace(report={"rows": 9}))
    assert other.report == {"rows": 9}
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_left_when_making_or_storing_fails(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached(tmp_path, {"a": 1}, fail)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", fail)  # the manifest, after the arrays
        with pytest.raises(OSError, match="disk full"):
            cached(tmp_path, {"a": 1}, lambda: ROWS)
    assert list(tmp_path.iterdir()) == []
    cached(tmp_path, {"a": 1}, lambda: ROWS)


def test_a_process_that_comes_second_reads_what_the_first_stored(tmp_path):
    def make():
        cached(tmp_path, {"a": 1}, lambda: ROWS)  # another process, while this one is making its own
        return ROWS._replace(report={"rows": "second"})

    assert cached(tmp_path, {"a": 1}, make).report == ROWS.report
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["change", "truncate", "remove"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    cached(tmp_path, {"a": 1}, lambda: ROWS)
    file = next(tmp_path.glob("*/tokens.npy"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x55" if damage == "change" else content[:-4])
    if damage == "remove":
        file.unlink()
    with pytest.raises(ValueError, match=r"tokens\.npy is missing or not what was written; delete .* made again"):
        cached(tmp_path, {"a": 1}, never)


def test_a_key_must_be_json(tmp_path):
    with pytest.raises(ValueError, match=r"the key of cached rows must be JSON .*ndarray.*: give fingerprints"):
        cached(tmp_path, {"a": np.ones(3)}, never)
