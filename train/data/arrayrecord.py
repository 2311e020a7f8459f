"""The format of TensorFlow Datasets: datasets prepared as ArrayRecord, read without TensorFlow."""

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from train.data import files
from train.data.arrow import class_name
from train.data.formats import Rows

_BATCH = 256  # records read at once, which is twice as fast as one by one


def tfds_files(name: str, *, split: str, data_dir: str | None) -> list[Path]:
    """The shards of a split, of a prepared dataset's folder or of `name` under `data_dir`.

    Raises:
      ValueError: the dataset is not prepared there, is not ArrayRecord, or has no such split.
    """
    import tensorflow_datasets as tfds

    folder = Path(files.expand(name))
    data_dir = data_dir if data_dir is None else files.expand(data_dir)
    if not (folder / "features.json").exists():
        try:
            found = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
        except ValueError as error:
            where, why = data_dir or tfds.core.constants.DATA_DIR, str(error).splitlines()[0]
            raise ValueError(
                f"TFDS dataset {name!r} is not prepared in {where} ({why}); give data_dir=, or the folder with its "
                "features.json, or prepare it, where TensorFlow is: `pip install tensorflow importlib_resources && "
                f"tfds build {name} --file_format=array_record --data_dir={where}`"
            ) from None
        folder = Path(found.data_path)
    builder = _builder(folder)
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{folder}: prepared as {builder.info.file_format.value}, expected array_record; convert it with "
            f"`tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record --out_dir=DIRECTORY`"
        )
    try:
        return [Path(file) for file in builder.info.splits[split].filepaths]
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def tfds_digest(file: Path) -> bytes:
    """A hash of a shard and of what says how to read it."""
    return files.digest(file) + files.digest(file.parent / "features.json")


def tfds_rows(file: Path, names: Collection[str], tell: files.Tell = files.nobody, *, split: str) -> Rows:
    """Examples of a shard that belong to the split, by their place in the shard, from 1; a class is its name."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from google.protobuf.message import DecodeError

    info = _builder(file.parent).info
    classes = {name: getattr(feature, "names", None) for name, feature in info.features.items()}
    if missing := set(names) - classes.keys():
        raise ValueError(f"{file}: no column {min(missing)!r}; columns found: {', '.join(sorted(classes))}")
    row = 1
    try:
        with ArrayRecordDataSource([str(file)]) as records:
            for part in info.splits[split].file_instructions:
                mine = range(part.skip, part.skip + part.take) if Path(part.filename).name == file.name else ()
                for start in range(0, len(mine), _BATCH):
                    places = mine[start : start + _BATCH]
                    row = places[0] + 1
                    for place, record in zip(places, records.__getitems__(places), strict=True):
                        row = place + 1
                        tell(len(record))
                        try:
                            columns = info.features.deserialize_example_np(record)
                        except DecodeError as error:
                            yield row, ValueError(f"{file}:{row}: not a TFDS example ({error}); prepare it again")
                        else:
                            yield row, {name: class_name(columns[name], classes[name]) for name in names}
    except (RuntimeError, ValueError) as error:  # ValueError where the shard has fewer records than its dataset says
        raise ValueError(f"{file}:{row}: broken or truncated ArrayRecord ({error}); copy the file again") from None


@functools.lru_cache(maxsize=8)  # read again for each of a thousand shards otherwise
def _builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(folder))
