"""Prepared rows: the same files however they are made, nothing made twice, nothing half made taken for whole."""

import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numbers_as_text import Numbers, records, some

from train.data import formats, source
from train.data import prepare as preparing
from train.data.prepare import chunks, prepare
from train.data.rows import label_examples, pack_documents
from train.data.table import Memory, Shards
from train.data.tokenizer import save, train_sentencepiece

MAKE = partial(pack_documents, length=16, segments=4)
DOCUMENTS = records([some(n % 23) for n in range(120)])


def files(folder):
    found = {f.relative_to(folder): f for f in sorted(folder.rglob("*")) if f.is_file()}
    return {str(name): f.read_bytes() for name, f in found.items() if not str(name).startswith(".")}


def made(folder, **options):
    return prepare(folder, DOCUMENTS, Numbers(), MAKE, {"of": "a test"}, chunk=400, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "x"
    made(folder)
    return folder


def test_every_document_is_there(whole):
    table = made(whole)
    assert len(list(whole.glob("00000-*"))) > 5
    expected = pack_documents(DOCUMENTS, Numbers(), 16, 4).report
    assert {k: table.report[k] for k in ("documents", "pieces", "split", "empty", "tokens")} == {
        k: expected[k] for k in ("documents", "pieces", "split", "empty", "tokens")
    }
    read = table.read(np.arange(len(table)))
    assert np.count_nonzero(read["segments"]) == expected["tokens"]
    assert (
        np.sort(read["tokens"], None).sum()
        == sum(int(t) for r in DOCUMENTS for t in r.text.split()) + 5 * expected["pieces"]
    )


def test_one_chunk_is_what_the_maker_makes(tmp_path):
    table = prepare(tmp_path / "x", DOCUMENTS, Numbers(), MAKE, {"of": "a test"})
    rows = Memory(pack_documents(DOCUMENTS, Numbers(), 16, 4).arrays)
    everything = np.arange(len(rows))
    np.testing.assert_equal(table.read(everything), rows.read(everything))


def test_machines_share_the_work_and_the_last_one_finishes(whole, tmp_path):
    assert made(tmp_path / "x", share=(1, 2)) is None
    assert not (tmp_path / "x" / "manifest.json").exists()
    assert len(made(tmp_path / "x", share=(0, 2))) > 0
    assert files(tmp_path / "x") == files(whole)


def test_machines_read_only_their_own_files_where_there_are_many(tmp_path):
    for n in range(24):
        text = "\n".join(json.dumps({"text": some(k % 9, 5 + n)}) for k in range(n % 5))
        (tmp_path / f"{n:02d}.jsonl").write_text(text)
    given = lambda: source.jsonl(f"{tmp_path}/*.jsonl")
    how = dict(facts={"of": "files"}, chunk=50, part=60)
    assert 8 < len(given().parts(60)) < 24
    assert [r for part in given().parts(60) for r in part] == list(given())
    assert given().parts(10**9)[0].is_part is False
    assert len(dataclasses.replace(given(), unique=True).parts(1)) == 1
    whole = prepare(tmp_path / "whole", given(), Numbers(), MAKE, **how)
    read = []
    for i in (1, 0):
        mine = given()
        with pytest.MonkeyPatch.context() as patch:
            rows = formats.jsonl_rows
            patch.setattr(formats, "jsonl_rows", lambda file, *more: read.append((i, file)) or rows(file, *more))  # noqa: B023
            mine = source.jsonl(f"{tmp_path}/*.jsonl")
            table = prepare(tmp_path / "x", mine, Numbers(), MAKE, share=(i, 2), **how)
        assert (table is None) == (i == 1)
    assert len(read) == len({file for _, file in read}) == 24
    assert files(tmp_path / "x") == files(tmp_path / "whole")
    assert whole.report["documents"] == sum(n % 5 for n in range(24))
    (tmp_path / "x" / "manifest.json").unlink()
    prepare(tmp_path / "x", given(), Numbers(), None, **how)  # nothing is made again, or read


def test_what_is_finished_is_not_made_again(whole, tmp_path, monkeypatch):
    before = {f: f.stat().st_mtime_ns for f in whole.rglob("*")}
    monkeypatch.setattr(preparing, "_make_all", None)
    made(whole)
    assert {f: f.stat().st_mtime_ns for f in whole.rglob("*")} == before


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from numbers_as_text import Slow
from test_prepare import DOCUMENTS, MAKE
from train.data.prepare import prepare
if __name__ == "__main__":
    prepare(Path({folder!r}), DOCUMENTS, Slow(), MAKE, {{"of": "a test"}}, chunk=400)
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(whole, tmp_path):
    folder, script = tmp_path / "x", tmp_path / "script.py"
    here = Path(__file__).parent
    paths = [str(here), str(here.parent.parent), str(here.parent.parent.parent)]
    script.write_text(KILLED.format(paths=paths, folder=str(folder)))
    chance = random.Random(0)
    kept: dict = {}
    for _ in range(3):
        shards_kept = len(list(folder.glob("0*-*")))
        process = subprocess.Popen([sys.executable, script], start_new_session=True)
        end = time.monotonic() + 60  # killed soon after the next shard
        while process.poll() is None and len(list(folder.glob("0*-*"))) <= shards_kept:
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(chance.random() * 0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {f: f.stat().st_mtime_ns for f in folder.glob("0*-*/*")}
        assert now.items() >= kept.items(), "a finished shard was made again"
        kept = now
    assert kept
    abandoned, current = (folder / f".00000-00000.{c * 32}" for c in "ab")
    for leftover in (abandoned, current):
        leftover.mkdir()
    os.utime(abandoned, (0, 0))
    made(folder)
    assert files(folder) == files(whole)
    assert current.exists(), "another process may be at it"
    assert not abandoned.exists()


def test_an_error_leaves_what_is_finished_and_names_the_record(tmp_path):
    texts = [some(n % 23) for n in range(120)]
    labelled = records(texts, labels=["no"] * 100 + ["maybe"] * 20)
    make = partial(label_examples, length=32, classes=("no", "yes"))
    with pytest.raises(ValueError, match=r"f:101: label 'maybe' is not among"):
        prepare(tmp_path / "x", labelled, Numbers(), make, {"of": "labels"}, chunk=400)
    assert (tmp_path / "x" / "00000-00000" / "shard.json").exists()
    assert not list((tmp_path / "x").glob(".0*"))


def test_labels_keep_the_number_of_their_record(tmp_path):
    labelled = records([some(n % 23) for n in range(60)], labels=[str(n) for n in range(60)])
    make = partial(label_examples, length=32, classes=None)
    table = prepare(tmp_path / "x", labelled, Numbers(), make, {"of": "labels"}, chunk=400)
    read = table.read(np.arange(len(table)))
    assert (read["labels"][:, 0] == read["example"][:, 0, 1]).all()
    assert len(table) == 60


def test_a_disk_that_takes_no_more(tmp_path):
    """A limit on the size of files stands in for it: the write fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ValueError, match=r"shard 00000-00000 could not be written .*File too large.*; make room"):
            prepare(tmp_path / "x", DOCUMENTS, Numbers(), MAKE, {"of": "a test"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [f.name for f in (tmp_path / "x").iterdir()] == ["key.json"]
    prepare(tmp_path / "x", DOCUMENTS, Numbers(), MAKE, {"of": "a test"})


def test_a_document_of_50_megabytes_on_one_line(tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("5 " * (25 * 2**20))
    table = prepare(tmp_path / "x", source.text(str(file), "line"), Numbers(), partial(MAKE, length=512), {"of": "one"})
    assert (table.report["documents"], table.report["split"]) == (1, 1)
    assert table.report["tokens"] == 25 * 2**20 + 2 * table.report["pieces"]
    assert table.report["padding"] < 1e-4


def test_the_manifest_counts_what_was_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "5 6"}\n{"text": "5 6"}\n{"txt": "7"}\n{"text": "8"}\n')
    given = source.jsonl(str(tmp_path / "a.jsonl"), unique=True, on_error="skip")
    report = prepare(tmp_path / "x", given, Numbers(), MAKE, {"of": "a file"}).report
    assert (report["documents"], report["duplicates"], report["skipped"]) == (2, 1, 1)


def test_chunks_hold_every_record_in_order():
    assert sum(chunks(DOCUMENTS, 100), []) == DOCUMENTS  # noqa: RUF017
    assert all(sum(len(r.text) for r in chunk) >= 100 for chunk in list(chunks(DOCUMENTS, 100))[:-1])


@pytest.mark.parametrize(
    ("texts", "message"), [([], "holds no record"), (["", " "], "none of 2 documents has a token")]
)
def test_nothing_to_prepare(tmp_path, texts, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "x", records(texts), Numbers(), MAKE, {})


def command(*arguments):
    here = Path(__file__).parents[3]
    return subprocess.run(
        [sys.executable, "-m", "train.data.prepare", *arguments], cwd=here, capture_output=True, text=True
    )


def test_the_command(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(["a film about a film, and so on and so on"] * 50))
    file = save(train_sentencepiece(source.text(str(tmp_path / "texts.txt"), "line"), size=275), tmp_path)
    given = [f"--source=text:{tmp_path}/texts.txt", f"--tokenizer={file}", f"--out={tmp_path}/out"]
    done = command(*given, "--length=32")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/out: 1 documents, " in done.stdout
    assert len(Shards(tmp_path / "out")) > 0
    again = command(*given, "--length=64")
    assert again.returncode == 1
    assert (
        again.stderr
        == f"error: {tmp_path}/out holds rows made from something else (length differ); take another folder\n"
    )


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: preparing._parse_share("3/3"), "--shard=3/3: expected i/n with i below n"),
        (lambda: preparing.parse_source("jsonll:x"), "expected FORMAT:PATH, with a format of .*csv, .*jsonl.*text"),
        (lambda: preparing.parse_source("text"), "source 'text': expected FORMAT:PATH"),
    ],
)
def test_flags_that_cannot_be(read, message):
    with pytest.raises(ValueError, match=message):
        read()
