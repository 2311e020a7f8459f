"""Paths become files, files become lines, and what is wrong with either is said with file and row."""

import gzip
import re

import pytest
import zstandard

from train.data import files


@pytest.fixture
def folder(tmp_path):
    for name in ("b.txt", "a.txt", "inner/c.txt", ".hidden/d.txt", "inner/.e.txt", "inner/f.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.txt", ["a.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "inner/c.txt"]),
        ("", ["a.txt", "b.txt", "inner/c.txt", "inner/f.tsv"]),
        ("inner", ["inner/c.txt", "inner/f.tsv"]),
    ],
)
def test_find(folder, path, found):
    assert [str(file.relative_to(folder)) for file in files.find(f"{folder}/{path}")] == found


def test_find_expands(folder, monkeypatch):
    monkeypatch.setenv("MY_DATA", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    assert files.find("$MY_DATA/a.txt") == files.find("${MY_DATA}/a.txt") == files.find("~/a.txt") == [folder / "a.txt"]
    assert files.find("package:pytest/__init__.py")[0].read_text().startswith("#")


def test_find_takes_a_name_that_looks_like_a_pattern(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert files.find(f"{tmp_path}/a[1].txt") == [tmp_path / "a[1].txt"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/a.txt", "path 'nowhere/a.txt': no such file; expected a file, a glob pattern or a directory"),
        ("nowhere/*.txt", "no file matches the pattern"),
        ("$NO_SUCH_DIR/a.txt", "the environment variable NO_SUCH_DIR is not set; run `export NO_SUCH_DIR="),
        ("package:no_such_package/a.csv", "the package 'no_such_package' is not installed"),
        ("package:pytest/a.csv", r"path 'package:pytest/a.csv' \(meaning '.*/pytest/a.csv'\): no such file"),
    ],
)
def test_find_errors(path, message):
    with pytest.raises(ValueError, match=message):
        files.find(path)


def test_find_refuses_an_empty_directory(tmp_path):
    with pytest.raises(ValueError, match="the directory holds no file"):
        files.find(str(tmp_path))


def test_lines(tmp_path):
    text = "\ufeffone\r\ntwo \u2028 still two\nthree"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    frames = [zstandard.compress(part) for part in (text.encode()[:7], b"", text.encode()[7:])]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))  # as `cat one.zst two.zst` makes it
    expected = [(1, "one\r\n", None), (2, "two \u2028 still two\n", None), (3, "three", None)]
    for name in ("a.txt", "a.txt.gz", "a.txt.zst"):
        assert list(files.lines(tmp_path / name)) == expected


def test_lines_says_where_bytes_are_not_utf8_and_goes_on(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\ncaf\xe9\nfine\n")
    one, two, three = files.lines(tmp_path / "a.txt")
    assert (one, three) == ((1, "fine\n", None), (3, "fine\n", None))
    assert two[:2] == (2, "caf\ufffd\n")
    assert re.search(r"a\.txt:2: byte 0xe9 at column 4 is not UTF-8; convert the file", str(two[2]))


COMPRESS = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress}
DAMAGE = {
    "cut": lambda b: b[:-20],
    "half": lambda b: b[: len(b) // 2],
    "last byte": lambda b: b[:-1],
    "another format": lambda b: b"not compressed",
    "wrong bytes": lambda b: b[:60] + b"\xff" * 60 + b[120:],
    "a second stream, cut": lambda b: b + b[:100],
}


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_lines_says_where_a_stream_breaks(tmp_path, kind, damage):
    text = [f"{i * i}\n" for i in range(20_000)]
    whole = COMPRESS[kind]("".join(text).encode())
    (tmp_path / f"a.{kind}").write_bytes(DAMAGE[damage](whole))
    read = []
    name = {"gz": "gzip", "zst": "zstandard"}[kind]
    with pytest.raises(
        ValueError, match=rf"a\.{kind}:\d+: broken or truncated {name} \(.+\); copy the file again"
    ) as e:
        read += (line for _, line, _ in files.lines(tmp_path / f"a.{kind}"))
    assert f"a.{kind}:{len(read) + 1}:" in str(e.value)
    # a checksum comes at the end, so wrong bytes may have become wrong lines by then
    assert damage == "wrong bytes" or read == (text + text)[: len(read)], "what came before is whole"


def test_a_window_as_large_as_zstd_makes_it(tmp_path):
    large = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    frame = zstandard.ZstdCompressor(compression_params=large).compressobj()
    (tmp_path / "a.zst").write_bytes(frame.compress(b"one\ntwo") + frame.flush())
    assert [line for _, line, _ in files.lines(tmp_path / "a.zst")] == ["one\n", "two"]


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_line_of_50_mb(tmp_path, kind):
    (tmp_path / f"a.{kind}").write_bytes(COMPRESS[kind](b"wide words " * 5_000_000 + b"\nnext"))
    (_, first, _), (row, second, _) = files.lines(tmp_path / f"a.{kind}")
    assert (len(first), row, second) == (55_000_001, 2, "next")
