"""Tokenize once: a source's records become rows of fixed length in shards on disk, in parallel, resumable.

The records are read in order and cut into chunks of so many characters; chunk n becomes shard n, by whatever process
makes it. So the same source, tokenizer and arguments give the same files on any number of workers and machines, and
what a killed run has finished is not made again.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from train.data import shards
from train.data.rows import Rows
from train.data.source import Record
from train.data.table import Shards
from train.data.tokenizer import Tokenizer

CHUNK = 16 * 2**20  # characters: of English 4 million tokens, and a few hundred MB while they are packed
Make = Callable[[Iterable[Record], Tokenizer], Rows]


def prepare(
    folder: Path,
    source: Iterable[Record],
    tokenizer: Tokenizer,
    make: Make,
    facts: Mapping[str, Any],
    *,
    workers: int | None = None,
    share: tuple[int, int] = (0, 1),
    chunk: int = CHUNK,
    title: str = "preparing",
) -> Shards | None:
    """The rows of a source in `folder`: made there, or what is missing of them, or found.

    Args:
      make: (records, tokenizer) -> Rows, as a `functools.partial` of a function in `train.data.rows`; it is pickled.
      facts: all that the rows depend on, in JSON, that a folder may not be used for two things.
      workers: processes that tokenize; None for one a core. What fits one chunk is made in this process.
      share: (i, n): make only chunks i, i + n, ... of one of n machines. The last to finish writes the manifest.
      chunk: characters of a shard.

    Returns the table, or None where other machines have not finished theirs.
    Raises ValueError for whatever is wrong with a record, or a folder that holds something else. What is finished
    stays, and is not made again.
    """
    shards.begin(folder, shards.key_of(facts))
    if not (folder / "manifest.json").exists():
        with _progress(title) as tell:
            count, read = _make_all(folder, source, tokenizer, make, workers or os.cpu_count() or 1, share, chunk, tell)
        if not shards.finish(folder, count, read):
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
        size += len(record.text) + len(record.pair or "")
        if size >= characters:
            yield held
            held, size = [], 0
    if held:
        yield held


def _make_all(
    folder: Path, source: Iterable[Record], tokenizer: Tokenizer, make: Make, workers: int, share: tuple[int, int],
    chunk: int, tell: Callable[[int, dict], None],
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Makes the missing shards; (chunks of the source, what reading it counted)."""
    numbered = enumerate(chunks(source, chunk))
    first = next(numbered, None)
    second = next(numbered, None)
    if first is None:
        raise ValueError("the source holds no record; expected at least one")
    if second is None:  # not worth another process
        if not shards.is_there(folder, 0) and share[0] == 0:
            tell(1, _make_one(folder, *first, tokenizer, make))
        return 1, {}
    count = 0
    running: set[Future] = set()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for number, records in _again(first, second, numbered):
                count = number + 1
                if number % share[1] != share[0] or shards.is_there(folder, number):
                    continue
                while len(running) > workers:  # one chunk waits, so that no worker does
                    running = _settle(running, tell)
                running.add(pool.submit(_make_one, folder, number, records, tokenizer, make))
            while running:
                running = _settle(running, tell)
        except BrokenProcessPool:
            raise ValueError(
                f"a worker that tokenized was killed, most likely for want of memory: run the same again with fewer "
                f"workers; {folder} keeps what is finished"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    return count, {}


def _again(first: Any, second: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    del first
    yield second
    del second
    yield from rest


def _settle(running: set[Future], tell: Callable[[int, dict], None]) -> set[Future]:
    done, running = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        tell(1, future.result())
    return running


def _make_one(folder: Path, number: int, records: list[Record], tokenizer: Tokenizer, make: Make) -> dict[str, Any]:
    rows = make(records, tokenizer)
    report = {name: value for name, value in rows.report.items() if isinstance(value, int)}
    length = rows.stored["tokens"].shape[1]
    facts = {"rows": len(rows), "length": length, "examples": report.get("pieces", len(records)), "report": report}
    shards.write(folder, number, rows.stored, facts)
    return report


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[int, dict], None]]:
    """Yields tell(shards, report), which shows documents and tokens a second: a line that is renewed on a terminal,
    one every half a minute elsewhere, and none for what takes less than a second.
    """
    began = shown = time.monotonic()
    done = {"shards": 0, "documents": 0, "tokens": 0}
    live = sys.stderr.isatty()
    said = False

    def tell(count: int, report: dict) -> None:
        nonlocal shown, said
        done["shards"] += count
        for name in ("documents", "tokens"):
            done[name] += report.get(name, 0)
        now = time.monotonic()
        if now - shown > (0.2 if live else 30):
            shown, said = now, True
            print(_line(title, done, now - began), end="\r" if live else "\n", file=sys.stderr, flush=True)

    yield tell
    if said:
        print(_line(title, done, time.monotonic() - began), file=sys.stderr, flush=True)


def _line(title: str, done: dict, seconds: float) -> str:
    rates = "  ".join(f"{done[k]:,} {k} ({done[k] / seconds:,.0f}/s)" for k in ("documents", "tokens"))
    return f"{title}: {done['shards']} shards  {rates}"
