"""Tokenize once: a source's records become rows of fixed length in shards on disk, in parallel, resumable.

    python -m train.data.prepare --help

A source is read in parts, runs of whole files, and a part's records in order, in chunks of so many characters; chunk n
of a part becomes its shard n, by whatever machine makes it. So the same source, tokenizer and arguments give the same
files on any number of machines, what a killed run has finished is not made again, and whole parts are not read again.
"""

import collections
import contextlib
import datetime
import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from train.data import shards
from train.data.rows import Rows
from train.data.source import Record, Source
from train.data.table import Shards
from train.data.tokenizer import Tokenizer

CHUNK = 8 * 2**20  # characters: of English 2 million tokens, and some 150 MB while they are packed
PART = 64 * 2**20  # bytes of files, if they lie in several
_QUIET = 30  # seconds between lines of progress
_AT_ONCE = 2  # chunks: while one is packed, another has the cores to be tokenized
Make = Callable[[Iterable[Record], Tokenizer], Rows]
Tell = Callable[[dict], None]


def prepare(
    folder: Path,
    source: Iterable[Record],
    tokenizer: Tokenizer,
    make: Make,
    facts: Mapping[str, Any],
    *,
    share: tuple[int, int] = (0, 1),
    chunk: int = CHUNK,
    part: int = PART,
    title: str = "preparing",
) -> Shards | None:
    """The rows of a source in `folder`: made there, or what is missing of them, or found.

    It runs in threads: what a tokenizer does outside of Python is done on all cores.

    Args:
      make: (records, tokenizer) -> Rows, as a `functools.partial` of a function in `train.data.rows`.
      facts: all that the rows depend on, in JSON, that a folder may not be used for two things.
      share: (i, n): make only what falls to machine i of n, and read only that where there are files enough: every n-th
        part then, else every n-th chunk of each. The last to finish writes the manifest.
      chunk: characters of a shard.
      part: bytes of files that are read by one machine.

    Returns the table, or None where other machines have not finished theirs.
    Raises ValueError for whatever is wrong with a record, or a folder that holds something else. What is finished
    stays, and is not made again.
    """
    shards.begin(folder, shards.key_of({**facts, "chunk": chunk, "part": part}))
    if not (folder / "manifest.json").exists():
        parts = source.parts(part) if isinstance(source, Source) else (source,)
        _make_all(folder, parts, tokenizer, make, share, chunk, title)
        if not shards.finish(folder, len(parts)):
            return None
    found = Shards(folder)
    if not len(found):
        raise ValueError(f"none of {found.report['documents']} documents has a token; expected text")
    return found


def chunks(source: Iterable[Record], characters: int) -> Iterator[list[Record]]:
    """The records in runs of at least so many characters, the last run aside."""
    held: list[Record] = []
    size = 0
    for record in source:
        held.append(record)
        size += sum(map(len, record.texts))
        if size >= characters:
            yield held
            held, size = [], 0
    if held:
        yield held


def _make_all(
    folder: Path, parts: tuple[Iterable[Record], ...], tokenizer: Tokenizer, make: Make, share: tuple[int, int],
    chunk: int, title: str,
) -> None:  # fmt: skip
    """Makes the missing shards that fall to this machine."""
    i, n = share
    by_part = len(parts) >= 4 * n  # enough that machines end at about the same time
    mine = [p for p in range(len(parts)) if not shards.is_whole(folder, p) and (p % n == i or not by_part)]
    pending: collections.deque[Callable[[], None]] = collections.deque()

    def settle(most: int) -> None:
        while len(pending) > most:
            pending.popleft()()  # in order: of several errors the first is the one to mend

    with ThreadPoolExecutor(_AT_ONCE, "prepare") as pool, _progress(title, [parts[p] for p in mine]) as tell:
        try:
            for p in mine:
                count = 0
                for number, records in enumerate(chunks(parts[p], chunk)):
                    count = number + 1
                    name = shards.name(p, number)
                    if (by_part or number % n == i) and not shards.is_there(folder, name):
                        settle(_AT_ONCE)  # one chunk more waits, so that no thread does
                        made = pool.submit(_make_one, folder, name, records, tokenizer, make)
                        pending.append(partial(_told, made, tell))
                pending.append(partial(shards.end_part, folder, p, count, _left_out(parts[p])))
            settle(0)
        finally:
            pool.shutdown(cancel_futures=True)


def _make_one(folder: Path, name: str, records: list[Record], tokenizer: Tokenizer, make: Make) -> dict[str, int]:
    rows = make(records, tokenizer)
    report = {name: value for name, value in rows.report.items() if isinstance(value, int)}
    length = rows.stored["tokens"].shape[1]
    facts = {"rows": len(rows), "length": length, "examples": report.get("pieces", len(records)), "report": report}
    shards.write(folder, name, rows.stored, facts)
    return report


def _told(made: Future, tell: Tell) -> None:
    tell(made.result())


def _left_out(part: Iterable[Record]) -> dict[str, int]:
    """Counts of the reading that has just ended."""
    return {"skipped": part.skipped.total(), "duplicates": part.repeated.total()} if isinstance(part, Source) else {}


@contextlib.contextmanager
def _progress(title: str, parts: list[Iterable[Record]]) -> Iterator[Tell]:
    """Yields a function to be told of each shard's report. Shows documents and tokens a second, and the time left by
    the bytes of the files that are read: a bar on a terminal, a line every half a minute elsewhere.
    """
    began = shown = time.monotonic()
    done = collections.Counter(shards=0, documents=0, tokens=0)
    sources = [part for part in parts if isinstance(part, Source)]
    whole = sum(source.bytes for source in sources)
    bar: Any = None
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task(title, total=whole or None, note="")

    def tell(report: dict) -> None:
        nonlocal shown
        done.update(shards=1, documents=report.get("documents", 0), tokens=report.get("tokens", 0))
        read = sum(source.read.total() for source in sources)
        now = time.monotonic()
        seconds = now - began
        note = f"{done['shards']} shards  " + "  ".join(
            f"{done[k]:,} {k} ({done[k] / seconds:,.0f}/s)" for k in ("documents", "tokens")
        )
        if bar:
            bar.update(task, completed=read, note=note)
        elif now - shown > _QUIET:
            shown = now
            left = f"  {datetime.timedelta(seconds=round(seconds * (whole - read) / read))} left" if read else ""
            print(f"{title}: {note}{left}", file=sys.stderr, flush=True)

    with bar or contextlib.nullcontext():
        yield tell


_HELP = """Tokenizes and packs texts into rows of fixed length, once, ahead of training (which else does it itself).

What a config needs, all stages or one, into the workdir, where training finds it:

  python -m train.data.prepare --config=configs/pretrain_wiki.py --workdir=runs/wiki

Or any texts into a folder of their own, which a config then names by data=dict(prepared="DIR"), alone or in a mixture:

  python -m train.data.prepare --source='jsonl:$DATA/wiki/*.jsonl.gz' --tokenizer=runs/wiki \\
      --length=512 --out=/data/wiki512

A source is FORMAT:PATH, the format a factory of train.data.source (text, jsonl, csv, ...); the path is a file, a folder
or a pattern. On several machines that see one folder, give each --shard=i/n, with i from 0 to n-1: in any order, at the
same time or not; the last to finish writes the manifest. Of many files each reads only its own, so that a machine of
many cores is quicker with several such processes too. Killed, the same command goes on from what is finished.
"""


def _parse_share(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f"--shard={text}: expected i/n with i below n, as in 0/8")
    return int(i), int(n)


def parse_source(text: str) -> Source:
    """The source that FORMAT:PATH names. Raises ValueError for another format."""
    from train.data import source

    kind, _, path = text.partition(":")
    ours = [x for x in vars(source).values() if inspect.isfunction(x) and x.__module__ == source.__name__]
    kinds = [x.__name__ for x in ours if not x.__name__.startswith("_")]
    if kind not in kinds or not path:
        raise ValueError(f"source {text!r}: expected FORMAT:PATH, with a format of {', '.join(sorted(kinds))}")
    return getattr(source, kind)(path)


def say(where: str, table: Shards | None) -> str:
    """A line on what was prepared."""
    if table is None:
        return f"{where}: this machine's share is done, and others are not; the last to finish writes the manifest"
    report = table.report
    counts = ", ".join(f"{value:,} {name}" for name, value in report.items() if name != "padding")
    return f"{where}: {counts}, {report['padding']:.2%} padding, in {table.folder}"


def main() -> None:
    from absl import flags

    from train import command

    workdir = flags.DEFINE_string("workdir", None, "with --config: the folder that training is given")
    stage = flags.DEFINE_string("stage", None, "with --config: the one stage to prepare for, instead of all")
    source = flags.DEFINE_string("source", None, "FORMAT:PATH of texts to prepare")
    tokenizer = flags.DEFINE_string("tokenizer", None, "the file of a tokenizer, or a workdir that keeps one")
    length = flags.DEFINE_integer("length", 512, "tokens of a row")
    segments = flags.DEFINE_integer("segments", 8, "documents that a row may hold")
    out = flags.DEFINE_string("out", None, "the folder for the rows")
    share = flags.DEFINE_string("shard", "0/1", "the part that this machine makes, i/n")

    def work(config: Any) -> None:
        how: dict[str, Any] = dict(share=_parse_share(share.value))
        if config is None:
            if source.value is None or tokenizer.value is None or out.value is None:
                raise ValueError("give --source, --tokenizer and --out, or --config and --workdir; see --help")
            print(say(out.value, _texts(source.value, tokenizer.value, length.value, segments.value, out.value, how)))
            return
        if workdir.value is None:
            raise ValueError("--config needs --workdir, the folder that training is given")
        from train import build

        config = build.plain(config)
        names = build.stages(config) if stage.value is None else (stage.value,)
        folder = Path(workdir.value)
        for name in names:
            made = build.spec(config, name)
            build.check_keys(config, made, name)
            tok = build.tokenizer(config, folder)
            for where, section in {"data": made.data, **{f"evals.{k}": v for k, v in made.evals.items()}}.items():
                for place, part in build.to_prepare(section, f"{name}.{where}"):
                    print(say(place, build.rows(part, place, tok, folder, **how)))

    command.main(_HELP, work, config_required=False)


def _texts(source: str, tokenizer: str, length: int, segments: int, out: str, how: dict) -> Shards | None:
    from train.data import tokenizer as tokenizers
    from train.data.rows import pack_documents

    made, tok = parse_source(source), tokenizers.load(tokenizer)
    facts = {"length": length, "segments": segments, "source": made.fingerprint, "tokenizer": tok.vocab.fingerprint}
    make = partial(pack_documents, length=length, segments=segments)
    table = prepare(Path(out), made, tok, make, facts, title=out, **how)
    if tokenizers.find(Path(out)) is None:  # so that the folder says what its ids mean
        tokenizers.save(tok, Path(out))
    return table


if __name__ == "__main__":
    main()
