"""Paths become files, files become lines, and what is wrong with either is said with file and row."""

import gzip

import pytest

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
    expected = [(1, "one\r\n"), (2, "two \u2028 still two\n"), (3, "three")]
    assert list(files.lines(tmp_path / "a.txt")) == list(files.lines(tmp_path / "a.txt.gz")) == expected


def test_lines_says_where_bytes_are_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"a\.txt:2: byte 0xe9 at column 4 is not UTF-8; convert the file"):
        list(files.lines(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b"not gzip", lambda b: b[:60] + b"\xff" * 60 + b[120:]]
)
def test_lines_says_where_gzip_breaks(tmp_path, damage):
    whole = gzip.compress("\n".join(str(i * i) for i in range(1000)).encode())
    (tmp_path / "a.gz").write_bytes(damage(whole))
    with pytest.raises(ValueError, match=r"a\.gz:\d+: broken or truncated gzip .*; copy the file again"):
        list(files.lines(tmp_path / "a.gz"))
