"""Formats read through Arrow: parquet files, and datasets of Hugging Face on disk or on its hub."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from train.data import files
from train.data.formats import Rows

_BATCH = 256  # rows read at once: enough to be quick, few enough to hold even if each is a book


def parquet_rows(file: Path, names: Collection[str], tell: files.Tell = files.nobody) -> Rows:
    """Rows of a parquet file, from 1; only the columns `names` are read, and of those a few pages at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 1
    try:
        # The first two together: with either default a whole row group is held (490 against 94 MB where one has 200 MB
        # in two columns). Checksums are read where there are any.
        options = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
        with pq.ParquetFile(file, **options) as opened:
            _check(file, names, opened.schema_arrow.names)
            row_bytes = file.stat().st_size / max(1, opened.metadata.num_rows)
            for batch in opened.iter_batches(_BATCH, columns=list(names), use_threads=False):
                tell(round(row_bytes * len(batch)))
                yield from _rows(batch, names, {}, row)
                row += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}:{row}: broken or truncated parquet ({error}); copy the file again") from None


def huggingface_files(path: str, *, config: str | None, split: str, revision: str | None) -> list[Path]:
    """The Arrow files of a dataset saved by `save_to_disk`; or else the one path `name@commit`, a dataset of the hub.

    Raises:
      ValueError: there is no such split, the folder holds something else, the hub has none such or is out of reach, or
        its package is not installed.
    """
    folder = Path(files.expand(path))
    if not folder.exists():
        try:
            commit = _library().load_dataset_builder(path, config, revision=revision).hash
        except OSError as error:
            raise ValueError(f"{path!r} is no folder, and the hub does not give such a dataset: {error}") from None
        return [Path(f"{path}@{commit}")]
    if (folder / "dataset_dict.json").exists():
        found = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        state = folder / split / "state.json"
    elif (state := folder / "state.json").exists():
        found = [json.loads(state.read_text())["_split"] or "train"]
    else:
        raise ValueError(
            f"{folder}: not what `save_to_disk` writes; for a folder of plain files use source.parquet, jsonl or csv"
        )
    if split not in found:
        raise ValueError(f"{folder}: no split {split!r}; found {', '.join(found)}")
    return [state.parent / file["filename"] for file in json.loads(state.read_text())["_data_files"]]


def huggingface_digest(file: Path) -> bytes:
    """A hash of what `huggingface_files` found: a file's bytes (its schema too), or a name with its commit."""
    return files.digest(file) if file.exists() else str(file).encode()


def huggingface_rows(
    file: Path, names: Collection[str], tell: files.Tell = files.nobody, *, config: str | None, split: str
) -> Rows:
    """Rows of what `huggingface_files` found, from 1; a class is its name. The hub is read as a stream."""
    return _saved_rows(file, names, tell) if file.exists() else _hub_rows(file, names, config, split)


def _saved_rows(file: Path, names: Collection[str], tell: files.Tell) -> Rows:
    import pyarrow as pa

    row = 1
    try:
        with pa.memory_map(str(file)) as opened:
            # An Arrow stream ends with this mark; cut between two batches, it would be read in silence.
            if opened.size() < 8 or opened.read_at(8, opened.size() - 8) != b"\xff\xff\xff\xff\0\0\0\0":
                raise OSError("the mark of its end is missing")
            stream = pa.ipc.open_stream(opened)
            _check(file, names, stream.schema.names)
            described = json.loads((stream.schema.metadata or {}).get(b"huggingface", b"{}"))
            features = described.get("info", {}).get("features", {})
            classes = {k: v["names"] for k, v in features.items() if v.get("_type") == "ClassLabel"}
            for batch in stream:
                tell(batch.nbytes)
                for start in range(0, len(batch), _BATCH):
                    yield from _rows(batch.slice(start, _BATCH), names, classes, row + start)
                row += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}:{row}: broken or truncated Arrow file ({error}); copy it again") from None


def _hub_rows(file: Path, names: Collection[str], config: str | None, split: str) -> Rows:
    import pyarrow as pa

    datasets = _library()
    name, _, commit = str(file).rpartition("@")
    row = 1
    try:
        stream = datasets.load_dataset(name, config, split=split, revision=commit, streaming=True)
        classes = {}
        if stream.features is not None:  # None where the dataset declares none
            _check(file, names, stream.features)
            stream = stream.select_columns(list(names))
            classes = {k: v.names for k, v in stream.features.items() if isinstance(v, datasets.ClassLabel)}
        for table in stream.with_format("arrow").iter(_BATCH):
            _check(file, names, table.column_names)
            yield from _rows(table, names, classes, row)
            row += len(table)
    except pa.ArrowException as error:  # and not what the network has wrong, which is an OSError
        raise ValueError(f"{file}:{row}: broken data ({error})") from None


def class_name(value: Any, names: list[str] | None) -> Any:
    """The name of a class, or the value itself where classes have no names or it is none of them, such as -1."""
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _rows(table: Any, names: Collection[str], classes: Mapping[str, list[str]], first: int) -> Rows:
    columns = {name: _cells(table.column(name)) for name in names}
    for name in classes.keys() & columns.keys():
        columns[name] = [class_name(value, classes[name]) for value in columns[name]]
    for row, cells in enumerate(zip(*columns.values(), strict=True), start=first):
        yield row, dict(zip(columns, cells, strict=True))


def _cells(column: Any) -> list:
    """Python values, text as bytes: Arrow does not check that a string is UTF-8, and would fail for the whole batch."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type in (pa.string(), pa.large_string(), pa.string_view()):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _check(file: Path, names: Collection[str], found: Iterable[str]) -> None:
    for name in names:
        if name not in found:
            raise ValueError(f"{file}: no column {name!r}; columns found: {', '.join(found)}")


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "the hub of Hugging Face needs a package of its own: run `pip install datasets`, or install this project "
            "with its extra, `pip install -e '.[huggingface]'`"
        ) from None
    return datasets
