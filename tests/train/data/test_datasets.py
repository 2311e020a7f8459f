"""Parquet, TensorFlow Datasets and Hugging Face datasets, all written by their own libraries."""

import collections
import dataclasses
import datetime
import json
import shutil
import sys
import types

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from train.data import source
from train.data.rows import label_examples

N = 600  # more than two batches
TEXTS = [f"text é {i}" for i in range(N)]


def rows_of(records):
    return [(r.text, r.pair, r.label, r.where.rpartition(":")[2]) for r in records]


# parquet


@pytest.fixture
def table():
    return pa.table({
        "text": TEXTS,
        "a.b": pa.array([f"pair {i % 3}" for i in range(N)]).dictionary_encode(),
        "y": range(N),
        "image": [b"\0" * 10] * N,
    })  # fmt: skip


OLD = int(pa.__version__.split(".")[0]) < 22
VIEW = pytest.param(pa.string_view(), marks=pytest.mark.skipif(OLD, reason="this pyarrow cannot write it"))


@pytest.mark.parametrize("type", [pa.string(), pa.large_string(), pa.binary(), VIEW])
def test_parquet(tmp_path, table, type):
    path = str(tmp_path / "a.parquet")
    pq.write_table(table.set_column(0, "text", pa.array(TEXTS).cast(type)), path, row_group_size=250)
    records = source.parquet(path, pair="a.b", label="y")
    assert rows_of(records) == [(t, f"pair {i % 3}", str(i), str(i + 1)) for i, t in enumerate(TEXTS)]
    assert next(iter(records)).where == f"{path}:1"
    assert list(records) == list(records)
    some = source.parquet(path, where={"a.b": "pair 1", "y": 4})
    assert rows_of(some) == [("text é 4", None, None, "5")]


def test_parquet_files_of_a_folder(tmp_path, table):
    for i in (1, 0):
        pq.write_table(table.slice(i * 300, 300), tmp_path / f"{i}.parquet")
    for path in (str(tmp_path), f"{tmp_path}/*.parquet"):
        records = source.parquet(path, label="y")
        assert [r.label for r in records] == [str(i) for i in range(N)]
    half = dataclasses.replace(records, split=(0, 0.5), where=(("a.b", "pair 0"),))
    assert 60 < len(list(half)) < 140


def test_parquet_is_held_a_few_pages_at_a_time(tmp_path):
    """Not a row group: Arrow counts what it holds."""
    text = pa.array([str(i % 10) * 10_000 + str(i) for i in range(4000)])
    pq.write_table(pa.table({"text": text}), tmp_path / "a", compression="none", use_dictionary=False)
    del text
    before = pa.total_allocated_bytes()
    held = max(pa.total_allocated_bytes() - before for _ in source.parquet(str(tmp_path / "a")))
    assert held < 16e6 < (tmp_path / "a").stat().st_size


def test_parquet_text_that_is_not_utf8(tmp_path):
    cells = pa.array([b"fine", b"caf\xe9", b"fine"])
    strings = pa.Array.from_buffers(pa.string(), 3, cells.buffers())
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": strings}), path)
    with pytest.raises(ValueError, match=r"a\.parquet:2: column 'text': byte 0xe9 at 4 is not UTF-8"):
        list(source.parquet(path))
    records = source.parquet(path, on_error="skip")
    assert [r.where for r in records] == [f"{path}:1", f"{path}:3"]
    assert records.skipped == {path: 1}


PARQUET_ERRORS = {
    "no column": ({"txt": ["a"], "y": [1]}, "a.parquet: no column 'text'; columns found: txt, y"),
    "null": ({"text": ["a", None]}, "a.parquet:2: column 'text' holds null, expected text or a number"),
    "nested": ({"text": [{"a": 1}]}, "a.parquet:1: column 'text' holds {\"a\": 1}, expected text"),
    "date": ({"text": [datetime.date(2020, 1, 2)]}, "a.parquet:1: column 'text' holds .*2020, 1, 2.*, expected text"),
    "no rows": ({"text": pa.array([], pa.string())}, "no record kept of 0"),
}


@pytest.mark.parametrize("name", PARQUET_ERRORS)
def test_parquet_errors(tmp_path, name):
    columns, message = PARQUET_ERRORS[name]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        list(source.parquet(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    ("damage", "row"),
    [
        (lambda b: b[:-10], 1),
        (lambda b: b"", 1),
        (lambda b: b.replace(b"450", b"000"), 257),  # in the second row group; the page's checksum says so
    ],
)
def test_broken_parquet(tmp_path, table, damage, row):
    pq.write_table(
        table,
        tmp_path / "good.parquet",
        row_group_size=300,
        use_dictionary=False,
        compression="none",
        write_page_checksum=True,
    )
    (tmp_path / "bad.parquet").write_bytes(damage((tmp_path / "good.parquet").read_bytes()))
    with pytest.raises(
        ValueError, match=rf"bad\.parquet:{row}: broken or truncated parquet \(.+\); copy the file again"
    ):
        list(source.parquet(str(tmp_path / "bad.parquet")))
    records = source.parquet((str(tmp_path / "bad.parquet"), str(tmp_path / "good.parquet")), on_error="skip")
    assert len(list(records)) >= N, "the other file is read"
    assert records.skipped == {str(tmp_path / "bad.parquet"): 1}


# TensorFlow Datasets


class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="plain"),)

    def _info(self):
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["neg", "pos"]),
            "unnamed": tfds.features.ClassLabel(num_classes=3),
            "score": np.float32,
            "place": np.int64,
            "vector": tfds.features.Tensor(shape=(2,), dtype=np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(0, N), "test": self._generate_examples(N, N + 10)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            hidden = start > 0
            yield i, {
                "text": f"text é {i}", "label": -1 if hidden else i % 2, "unnamed": i % 3, "score": i / 2, "place": i,
                "vector": [i, i],
            }  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = Tiny(data_dir=folder, file_format="array_record", config="plain")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return folder


def test_tfds(data_dir, monkeypatch):
    by_name = source.tfds("tiny/plain", "train", label="label", pair="place", data_dir=str(data_dir))
    expected = {(f"text é {i}", str(i), ("neg", "pos")[i % 2]) for i in range(N)}
    assert {r[:3] for r in by_name} == expected
    by_folder = source.tfds(str(data_dir / "tiny/plain/1.2.0"), label="label", pair="place")
    by_version = source.tfds("tiny/plain:1.2.0", label="label", pair="place", data_dir=str(data_dir))
    assert list(by_name) == list(by_folder) == list(by_version)
    monkeypatch.chdir(data_dir / "tiny")
    assert rows_of(source.tfds("plain/1.2.0", label="label", pair="place")) == rows_of(by_name)
    assert by_name.fingerprint == by_folder.fingerprint
    ours = tfds.builder_from_directory(data_dir / "tiny/plain/1.2.0").as_data_source("train")
    assert [r.text for r in by_name] == [example["text"].decode() for example in ours], "in TFDS' own order"
    assert [r.where.rpartition(":")[2] for r in by_name] == [str(i + 1) for _ in range(3) for i in range(N // 3)]
    assert by_name.files[0].name == "tiny-train.array_record-00000-of-00003"
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("split", "wanted"),
    [("train[10:420]", slice(10, 420)), ("train[:10%]", slice(0, 60)), ("train[590:]+train[:10]", None)],
)
def test_tfds_slices(data_dir, split, wanted):
    whole = [r.text for r in source.tfds("tiny/plain", data_dir=str(data_dir))]
    found = [r.text for r in source.tfds("tiny/plain", split, data_dir=str(data_dir))]
    if wanted is None:
        assert sorted(found) == sorted(whole[590:] + whole[:10])
    else:
        assert found == whole[wanted]


def test_tfds_numbers_filters_and_classes(data_dir):
    def records(split="train", **arguments):
        return source.tfds("tiny/plain", split, data_dir=str(data_dir), **arguments)

    assert {r.label for r in records(label="unnamed")} == {"0", "1", "2"}
    assert sorted(float(r.label) for r in records(label="score")) == [i / 2 for i in range(N)]
    assert {r.label for r in records("test", label="label")} == {"-1"}, "a hidden label"
    assert [r.text for r in records(where={"place": 7, "label": "pos"})] == ["text é 7"]
    lower, upper = ({r.text for r in records(fractions=part)} for part in ((0, 0.5), (0.5, 1)))
    assert lower | upper == set(TEXTS)
    assert not lower & upper
    assert len(list(records(limit=5, unique=True))) == 5

    tokenizer = types.SimpleNamespace(
        vocab=types.SimpleNamespace(cls=1, sep=2),
        separators=1,
        encode=lambda ts: [np.array([len(t)], np.int32) for t in ts],
    )
    made = label_examples(records(label="label"), tokenizer, 4, classes=("neg", "pos"))
    places = [int(r.text.split()[-1]) for r in records()]
    np.testing.assert_array_equal(made.arrays["labels"][:, 0], [place % 2 for place in places])


def test_tfds_errors(data_dir, tmp_path):
    def message(name="tiny/plain", split="train", **arguments):
        with pytest.raises(ValueError) as error:
            list(source.tfds(name, split, **({"data_dir": str(data_dir)} | arguments)))
        return str(error.value)

    assert "TFDS dataset 'glue/sst2' is not prepared in" in message("glue/sst2")
    assert f"tfds build glue/sst2 --file_format=array_record --data_dir={data_dir}" in message("glue/sst2")
    assert "not prepared" in message("tiny/other")
    assert "not prepared" in message("/no/such/folder/1.0.0")
    assert "Unknown split 'dev'. Should be one of ['train', 'test']" in message(split="dev")
    assert "00000-of-00003: no column 'sentence'; columns found: label, place, score, text" in message(text="sentence")
    assert "00000-of-00003:1: column 'vector' holds" in message(label="vector")
    assert "split=(0, 0.5): expected a split of the dataset" in message(split=(0, 0.5))

    shutil.copytree(data_dir / "tiny/plain/1.2.0", tmp_path / "old")
    info = json.loads((tmp_path / "old/dataset_info.json").read_text())
    (tmp_path / "old/dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    assert "prepared as tfrecord, expected array_record; convert it with" in message(str(tmp_path / "old"))


def write_array_record(file, records):
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_broken_tfds(data_dir, tmp_path):
    shutil.copytree(data_dir / "tiny/plain/1.2.0", tmp_path / "bad")
    records = source.tfds(str(tmp_path / "bad"))
    before = records.fingerprint
    first, second, _ = records.files
    first.write_bytes(first.read_bytes()[:-10])
    write_array_record(second, [b"no example"] * (N // 3))
    assert source.tfds(str(tmp_path / "bad")).fingerprint != before
    with pytest.raises(
        ValueError, match=r"00000-of-00003:1: broken or truncated ArrayRecord \(.+\); copy the file again"
    ):
        list(records)
    skipping = dataclasses.replace(records, on_error="skip")
    assert len(list(skipping)) == N // 3
    assert skipping.skipped == {str(first): 1, str(second): N // 3}
    shutil.copy(records.files[2], first)
    write_array_record(second, [b"no example"] * 5)
    with pytest.raises(
        ValueError, match=r"00001-of-00003:1: broken or truncated ArrayRecord \(.+\); copy the file again"
    ):
        list(records)


# Hugging Face

FEATURES = datasets.Features({
    "text": datasets.Value("string"),
    "label": datasets.ClassLabel(names=["neg", "pos"]),
    "place": datasets.Value("int64"),
})  # fmt: skip


@pytest.fixture(scope="module")
def dataset():
    columns = {"text": TEXTS, "label": [i % 2 for i in range(N)], "place": list(range(N))}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


EXPECTED = [(f"text é {i}", str(i), ("neg", "pos")[i % 2]) for i in range(N)]


def save(dataset, folder, **arguments):
    dataset.save_to_disk(folder, **arguments)
    return str(folder)


def test_huggingface_saved(tmp_path, dataset):
    one = source.huggingface(save(dataset, tmp_path / "one", num_shards=2), pair="place", label="label")
    assert [r[:3] for r in one] == EXPECTED
    assert [r.where for r in one][299:301] == [f"{one.files[0]}:300", f"{one.files[1]}:1"]
    both = datasets.DatasetDict({"train": dataset, "test": dataset.select([5, 3])})
    path = save(both, tmp_path / "both")
    assert [r[:3] for r in source.huggingface(path, pair="place", label="label")] == EXPECTED
    test = source.huggingface(path, "test", pair="place", label="label", where={"label": "pos"}, fractions=(0, 1))
    assert [r[:3] for r in test] == [EXPECTED[5], EXPECTED[3]]
    shutil.copytree(path, tmp_path / "elsewhere")
    arguments = {"split": "test", "pair": "place", "label": "label"}
    here, there = (source.huggingface(str(tmp_path / f), **arguments) for f in ("both", "elsewhere"))
    assert here.fingerprint == there.fingerprint != test.fingerprint


def test_huggingface_errors(tmp_path, dataset):
    def message(path, **arguments):
        with pytest.raises(ValueError) as error:
            list(source.huggingface(str(path), **arguments))
        return str(error.value)

    save(datasets.DatasetDict({"train": dataset}), tmp_path / "both")
    save(dataset, tmp_path / "one")
    assert "no split 'dev'; found train" in message(tmp_path / "both", split="dev")
    assert "no split 'test'; found train" in message(tmp_path / "one", split="test")
    assert "arrow: no column 'sentence'; columns found: text, label, place" in message(
        tmp_path / "one", text="sentence"
    )
    gone = tmp_path / "gone"
    assert f"{str(gone)!r} is no folder, and the hub does not give such a dataset: " in message(gone)
    (tmp_path / "other").mkdir()
    assert "not what `save_to_disk` writes" in message(tmp_path / "other")


@pytest.mark.parametrize("damage", [lambda b: b[:-8], lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b""])
def test_broken_huggingface(tmp_path, dataset, damage):
    folder = tmp_path / "bad"
    save(dataset, folder, num_shards=2)
    file = folder / "data-00000-of-00002.arrow"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        ValueError, match=r"00000-of-00002\.arrow:\d+: broken or truncated Arrow file \(.+\); copy it again"
    ):
        list(source.huggingface(str(folder)))
    records = source.huggingface(str(folder), on_error="skip")
    assert [r.text for r in records] == TEXTS[300:]
    assert records.skipped == {str(file): 1}


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_huggingface_by_name_is_streamed(tmp_path, dataset, monkeypatch, kind):
    """The hub stands in a folder, which the same functions of the library read."""
    (dataset.to_parquet if kind == "parquet" else dataset.to_json)(tmp_path / f"train.{kind}")
    asked = collections.Counter()
    load = datasets.load_dataset

    def load_builder(name, config, revision):
        asked[name, config, revision] += 1
        return types.SimpleNamespace(hash="c0ffee")

    def load_stream(name, config, *, split, revision, streaming):
        asked[name, config, revision, streaming] += 1
        return load(str(tmp_path), split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    monkeypatch.setattr(datasets, "load_dataset", load_stream)
    records = source.huggingface("us/tiny", pair="place", label="label", config="plain", revision="main")
    found = list(records)
    expected = EXPECTED if kind == "parquet" else [(*r[:2], str(i % 2)) for i, r in enumerate(EXPECTED)]
    assert [r[:3] for r in found] == expected, "JSON has no names of classes"
    assert (found[0].where, found[-1].where) == ("us/tiny@c0ffee:1", f"us/tiny@c0ffee:{N}")
    assert asked == {("us/tiny", "plain", "main"): 1, ("us/tiny", "plain", "c0ffee", True): 1}
    with pytest.raises(ValueError, match="us/tiny@c0ffee: no column 'sentence'; columns found: text"):
        list(source.huggingface("us/tiny", text="sentence", config="plain", revision="main"))


def test_huggingface_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"run `pip install datasets`, or .* `pip install -e '\.\[huggingface\]'`"):
        list(source.huggingface("anything"))
