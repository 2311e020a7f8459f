"""Tokenize once: a source's records become rows of fixed length in shards on disk, in parallel, resumable.

    python -m train.data.prepare --help

The records are read in order and cut into chunks of so many characters; chunk n becomes shard n, by whatever process
makes it. So the same source, tokenizer and arguments give the same files on any number of workers and machines, and
what a killed run has finished is not made again.
"""

import collections
import contextlib
import inspect
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from train.data import shards
from train.data.rows import Rows
from train.data.source import Record, Source
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
            count = _make_all(folder, source, tokenizer, make, workers or os.cpu_count() or 1, share, chunk, tell)
        left_out = {}
        if isinstance(source, Source):
            left_out = {"skipped": source.skipped.total(), "duplicates": source.repeated.total()}
        if not shards.finish(folder, count, left_out):
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
) -> int:  # fmt: skip
    """Makes the missing shards; how many chunks the source has."""
    numbered = enumerate(chunks(source, chunk))
    first = next(numbered, None)
    second = next(numbered, None)
    if first is None:
        raise ValueError("the source holds no record; expected at least one")
    if second is None:  # not worth another process
        if not shards.is_there(folder, 0) and share[0] == 0:
            tell(1, _make_one(folder, *first, tokenizer, make))
        return 1
    count = 0
    running: collections.deque[Future] = collections.deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for number, records in itertools.chain((first, second), numbered):
                count = number + 1
                if number % share[1] != share[0] or shards.is_there(folder, number):
                    continue
                while len(running) > workers:  # one chunk waits, so that no worker does
                    tell(1, running.popleft().result())  # in order: of several errors the first is the one to mend
                running.append(pool.submit(_make_one, folder, number, records, tokenizer, make))
            while running:
                tell(1, running.popleft().result())
        except BrokenProcessPool:
            raise ValueError(
                f"a worker that tokenized was killed, most likely for want of memory: run the same again with fewer "
                f"workers; {folder} keeps what is finished"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    return count


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


_HELP = """Tokenizes and packs texts into rows of fixed length, once, ahead of training (which else does it itself).

What a config needs, all stages or one, into the workdir, where training finds it:

  python -m train.data.prepare --config=configs/pretrain_wiki.py --workdir=runs/wiki

Or any texts into a folder of their own, which a config then names by data=dict(prepared="DIR"), alone or in a mixture:

  python -m train.data.prepare --source='jsonl:$DATA/wiki/*.jsonl.gz' --tokenizer=runs/wiki \\
      --length=512 --out=/data/wiki512

A source is FORMAT:PATH, the format a factory of train.data.source (text, jsonl, csv, ...); the path is a file, a folder
or a pattern. On several machines that see one folder, give each --shard=i/n, with i from 0 to n-1: in any order, at the
same time or not; the last to finish writes the manifest. Killed, the same command goes on from the shards that are
finished.
"""


def _parse_share(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f"--shard={text}: expected i/n with i below n, as in 0/8")
    return int(i), int(n)


def _parse_source(text: str) -> Any:
    from train.data import source

    kind, _, path = text.partition(":")
    ours = [x for x in vars(source).values() if inspect.isfunction(x) and x.__module__ == source.__name__]
    kinds = [x.__name__ for x in ours if not x.__name__.startswith("_")]
    if kind not in kinds or not path:
        raise ValueError(f"--source={text}: expected FORMAT:PATH, with a format of {', '.join(sorted(kinds))}")
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
    workers = flags.DEFINE_integer("workers", None, "processes that tokenize (default: one a core)", lower_bound=1)

    def work(config: Any) -> None:
        how: dict[str, Any] = dict(workers=workers.value, share=_parse_share(share.value))
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

    made, tok = _parse_source(source), tokenizers.load(tokenizer)
    facts = {"length": length, "segments": segments, "source": made.fingerprint, "tokenizer": tok.vocab.fingerprint}
    make = partial(pack_documents, length=length, segments=segments)
    return prepare(Path(out), made, tok, make, facts, title=out, **how)


if __name__ == "__main__":
    main()
