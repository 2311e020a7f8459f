"""Looks at prepared rows and the texts they are made of, before a week is spent on training on them.

python -m train.data.doctor --help
"""

import collections
import heapq
import json
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from train.data import shards
from train.data.source import Record
from train.data.table import Shards
from train.data.tokenizer import Tokenizer

# what must not be trained on, as shares, but for ids outside of the vocabulary, of which there may be none
LIMITS = {"unknown": 0.01, "duplicates": 0.2, "near_duplicates": 0.3, "mojibake": 0.02, "control": 0.02, "leaked": 0.01}
SHINGLE = 5  # words that are compared at once for near duplicates
ALIKE = 0.8  # Jaccard similarity of these above which two texts are near duplicates
HASHES = 128
NGRAM = 8  # words in a row that are looked for in an evaluation text
LEAKED = 0.5  # of a text's runs: a text that shares as many with the corpus was copied
_BEGINNING = 10_000  # characters of a text that tell whether it was decoded wrongly
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, Lao, Japanese, Chinese: a letter is a word
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def examine(
    folder: Path,
    tokenizer: Tokenizer,
    source: Iterable[Record] | None = None,
    against: Iterable[Record] | None = None,
    sample: int = 20_000,
) -> dict[str, Any]:
    """What is in a folder of prepared rows, as JSON.

    Args:
      source: the texts that the rows are made of, if they are at hand: all are read, and `sample` of them looked at
        closely. Else as many documents are decoded from the rows, without the ends of their lines.
      against: an evaluation set whose texts should not be in the corpus; all documents of `source` are compared.

    `rows` counts tokens, `texts` the shares that LIMITS bound, `most` lists of the most frequent; `wrong` says in words
    what must not be trained on. Raises ValueError for a folder that holds no finished rows, or another tokenizer's.
    """
    table = Shards(folder)
    prepared = table.manifest["key"].get("tokenizer", tokenizer.vocab.fingerprint)
    if prepared != tokenizer.vocab.fingerprint:
        raise ValueError(
            f"{folder} was prepared with another tokenizer (fingerprint {prepared[:12]}) than this one "
            f"({tokenizer.vocab.fingerprint[:12]}): give the one it was prepared with"
        )
    if source is None and against is not None and len(table) > sample:
        raise ValueError(
            f"an evaluation set is compared with all texts: give the source, or a sample of all {len(table):,} rows"
        )
    damaged = ""
    try:
        shards.check(folder, table.manifest, checksums=True)
    except ValueError as error:
        damaged = str(error)
    records = _decoded(table, tokenizer, sample) if source is None else source
    report: dict[str, Any] = {"folder": str(folder), "manifest": table.report, "rows": _count_rows(table, tokenizer)}
    report |= _read(records, None if against is None else _Evaluation(against), sample)
    report["texts"]["from"] = "rows" if source is None else "source"
    if source is None and len(table) > sample:  # copies of what was not drawn are not seen
        for name in ("duplicates", "near_duplicates"):
            del report["texts"][name]
    report["wrong"] = [*([damaged] if damaged else []), *_wrong(report)]
    return report


def _count_rows(table: Shards, tokenizer: Tokenizer) -> dict[str, Any]:
    vocab = tokenizer.vocab
    byte = np.array([bool(_BYTE.fullmatch(piece)) for piece in tokenizer.pieces(range(vocab.size))])
    tokens = outside = 0
    seen = np.zeros(vocab.size, np.int64)
    lengths: collections.Counter[int] = collections.Counter()
    for shard in _watched([shard["name"] for shard in table.manifest["shards"]], "reading rows"):
        arrays = shards.arrays(table.folder, shard)
        ids = arrays["tokens"].astype(np.int64)
        sizes = arrays["sizes"].astype(np.int64)
        ids = ids[np.arange(ids.shape[1]) < sizes.sum(1)[:, None]]
        tokens += len(ids)
        inside = (ids >= 0) & (ids < vocab.size)
        outside += int((~inside).sum())
        seen += np.bincount(ids[inside], minlength=vocab.size)
        lengths.update(dict(enumerate(np.bincount(sizes[sizes > 0]).tolist())))
    text = max(1, tokens - int(seen[[vocab.cls, vocab.sep]].sum()))
    return {
        "tokens": tokens,
        "outside_vocabulary": outside,
        "unknown": int(seen[vocab.unk]) / text,
        "byte_fallback": int(seen[byte].sum()) / text,
        "pieces_used": int((seen > 0).sum()) / vocab.size,
        "lengths": {str(n): count for n, count in sorted(lengths.items()) if count},
    }


def _decoded(table: Shards, tokenizer: Tokenizer, sample: int) -> Iterator[Record]:
    """Documents of a sample of the rows, or their pieces where they are long."""
    done = 0
    for row in table.shuffled(np.arange(min(sample, len(table))), 0):
        arrays = table.read(np.array([row]))
        for segment in range(1, int(arrays["segments"].max()) + 1):
            ids = arrays["tokens"][0][arrays["segments"][0] == segment]
            inside = ids[(ids >= 0) & (ids < tokenizer.vocab.size)]
            text = tokenizer.decode(inside).strip("\ufffd")  # a row may end in the middle of a character
            yield Record(text, None, None, f"row {row}, segment {segment}")
            done += 1
            if done == sample:
                return


def _read(records: Iterable[Record], evaluation: "_Evaluation | None", sample: int) -> dict[str, Any]:
    """Compares every record with all before it and with the evaluation set; examines `sample` of those that differ."""
    documents = repeated = 0
    digests: set[bytes] = set()
    kept: list[tuple[int, int, Record]] = []  # those of the greatest hash: near copies together or not at all
    copies: collections.Counter[str] = collections.Counter()
    for record in _watched(records, "reading texts"):
        documents += 1
        words = record.text.split()
        digest = blake2b(" ".join(words).encode(), digest_size=16).digest()
        if digest in digests:
            repeated += 1
            copies[_short(record.text)] += 1
            continue
        digests.add(digest)
        if evaluation:
            evaluation.look(record)
        item = (_kinship(record.text), -documents, record)
        if len(kept) < sample:
            heapq.heappush(kept, item)
        else:
            heapq.heappushpop(kept, item)
    looked = [record for _, _, record in sorted(kept, key=lambda item: -item[1])]
    texts = [record.text for record in looked]
    mojibake = [text for text in texts if _is_mojibake(text)]
    near, pairs = _near_duplicates(looked)
    lines = collections.Counter(line for text in texts for line in map(str.strip, text.splitlines()) if len(line) > 20)
    letters: collections.Counter[str] = collections.Counter()
    for text in texts:
        letters.update(text)
    scripts: collections.Counter[str] = collections.Counter()
    for letter, count in letters.items():
        if letter.isalpha():
            scripts[_script(letter)] += count
    found = {
        "documents": documents,
        "looked_at": len(texts),
        "duplicates": repeated / max(1, documents),
        "near_duplicates": near / max(1, len(texts)),
        "mojibake": len(mojibake) / max(1, len(texts)),
        "control": _share(texts, _has_control),
        "empty": _share(texts, lambda text: not text.strip()),
    }
    most = {
        "copied_texts": copies.most_common(10),
        "near_duplicates": pairs[:10],
        "repeated_lines": [(_short(line), n) for line, n in lines.most_common(10) if n > 1],
        "mojibake": [_short(text) for text in mojibake[:5]],
    }
    if evaluation:
        leaked = evaluation.leaked()
        found |= {"evaluation": len(evaluation.sizes), "evaluation_too_short": evaluation.short}
        found |= {"leaked": len(leaked) / max(1, len(evaluation.sizes))}
        most["leaked"] = list(leaked.items())[:10]
    shares = {name: n / max(1, scripts.total()) for name, n in scripts.most_common(12)}
    return {"texts": found, "scripts": shares, "most": most}


def _kinship(text: str) -> int:
    """A hash that near duplicates share as often as their runs of words are alike (Broder 1997)."""
    least = min(zlib.crc32(run.encode()) for run in _runs(_words(text), SHINGLE))
    return int.from_bytes(blake2b(least.to_bytes(4), digest_size=7).digest())


def _near_duplicates(records: Sequence[Record]) -> tuple[int, list[tuple[str, str]]]:
    """(texts that are like one before them, pairs of where such lie): MinHash (Broder 1997) over runs of words."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=ALIKE, num_perm=HASHES)
    found = 0
    pairs = []
    shingled = ({run.encode() for run in _runs(_words(record.text), SHINGLE)} for record in records)
    for record, hashed in zip(records, MinHash.generator(shingled, num_perm=HASHES, hashfunc=zlib.crc32), strict=True):
        like = index.query(hashed)
        found += bool(like)
        if like:
            pairs.append((like[0], record.where))
        index.insert(record.where, hashed, check_duplication=False)
    return found, pairs


class _Evaluation:
    """The runs of words of an evaluation set, and which of them were found in a corpus.

    Texts of fewer words than a run are left out: they would be found by chance.
    """

    def __init__(self, against: Iterable[Record]):
        self._runs: dict[str, list[str]] = {}  # not found yet, to where their texts are
        self.sizes: collections.Counter[str] = collections.Counter()  # runs of a text
        self._found: collections.Counter[str] = collections.Counter()
        self._where: dict[str, str] = {}
        self.short = 0
        for record in against:
            words = _words(" ".join(record.texts))
            for run in _runs(words, NGRAM) if len(words) >= NGRAM else ():
                self._runs.setdefault(run, []).append(record.where)
                self.sizes[record.where] += 1
            self.short += len(words) < NGRAM

    def look(self, record: Record) -> None:
        for run in self._runs.keys() & _runs(_words(record.text), NGRAM):
            for where in self._runs.pop(run):
                self._found[where] += 1
                self._where.setdefault(where, record.where)

    def leaked(self) -> dict[str, str]:
        """Where the texts are of which LEAKED of the runs were found, to where the first of them was."""
        return {text: self._where[text] for text, n in self._found.items() if n >= LEAKED * self.sizes[text]}


def _wrong(report: dict[str, Any]) -> list[str]:
    out = []
    if n := report["rows"]["outside_vocabulary"]:
        out.append(f"{n:,} ids are outside of the vocabulary: an accelerator reads whatever lies there. Prepare again")
    if report["texts"].get("evaluation_too_short", 0) > report["texts"].get("evaluation", 0):
        out.append(f"most evaluation texts have fewer than {NGRAM} words and were not compared: look for them yourself")
    shares = {"unknown": report["rows"]["unknown"], **report["texts"]}
    says = {
        "unknown": "of the tokens are [UNK]: take a tokenizer with byte fallback, or one of these languages",
        "duplicates": "of the documents are copies of one before them: give the source unique=True",
        "near_duplicates": "of the others are nearly copies of one before them: filter the corpus",
        "mojibake": "of the texts are wrongly decoded, as in most.mojibake: repair them, for example with ftfy",
        "control": "of the texts hold control or unassigned characters: clean them",
        "leaked": f"of the evaluation texts are in the corpus (half of their runs of {NGRAM} words): filter it",
    }
    for name, limit in LIMITS.items():
        if shares.get(name, 0) > limit:
            out.append(f"{shares[name]:.1%} {says[name]} (the limit is {limit:.0%})")
    return out


def show(report: dict[str, Any], console: Any) -> None:
    """Prints a report for people, on a rich console."""
    from rich.table import Table

    table = Table(title=report["folder"], show_header=False, title_justify="left")
    for part in ("manifest", "rows", "texts"):
        for name, value in report[part].items():
            if not isinstance(value, dict):
                table.add_row(part, name, _figure(value))
        table.add_section()
    scripts = [f"{name} {share:.1%}" for name, share in report["scripts"].items() if share > 0.0005]
    table.add_row("texts", "scripts", ", ".join(scripts))
    console.print(table)
    for name, entries in report["most"].items():
        for entry in entries[:3]:
            console.print(f"{name}: {entry}", markup=False, highlight=False)
    for problem in report["wrong"]:
        console.print(f"wrong: {problem}", style="bold red", markup=False, highlight=False)


def picture(report: dict[str, Any], file: Path) -> None:
    """Draws lengths, scripts, shares and the most repeated lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((lengths, scripts), (shares, lines)) = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    sizes, counts = (np.array(list(map(int, x))) for x in zip(*report["rows"]["lengths"].items(), strict=True))
    lengths.hist(sizes, bins=min(60, int(sizes.max())), weights=counts)
    lengths.set(title="tokens of a document or piece", xlabel="tokens", ylabel="how many", yscale="log")
    names = list(report["scripts"])[::-1]
    scripts.barh(names, [report["scripts"][name] for name in names])
    scripts.set(title="scripts, by letters", xscale="log")
    found = {"unknown": report["rows"]["unknown"], **report["texts"]}
    bounded = [name for name in LIMITS if name in found][::-1]
    part = [found[name] / LIMITS[name] for name in bounded]
    labels = [f"{name}\n{found[name]:.2%} of {LIMITS[name]:.0%}" for name in bounded]
    shares.barh(labels, part, color=["tab:red" if p > 1 else "tab:green" for p in part])
    shares.axvline(1, color="black")
    shares.set(title="shares, as parts of their limits", xlim=(0, max(1.1, *part)))
    lines.axis("off")
    repeated = [f"{n:6,} x {line[:60]}" for line, n in report["most"]["repeated_lines"]] or ["no line comes twice"]
    lines.text(
        0,
        1,
        "most repeated lines\n\n" + "\n".join(repeated),
        va="top",
        family="monospace",
        fontsize=8,
        parse_math=False,
    )
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3%}" if isinstance(value, float) else str(value)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: list[str], n: int) -> set[str]:
    """Every n words in a row, or all of them where they are fewer."""
    return set(map(" ".join, zip(*(words[i:] for i in range(n)), strict=False))) or {" ".join(words)}


def _share(texts: Sequence[str], test: Any) -> float:
    return sum(map(bool, map(test, texts))) / max(1, len(texts))


def _is_mojibake(text: str) -> bool:
    from ftfy import badness

    return "\ufffd" in text or badness.is_bad(text[:_BEGINNING])


def _has_control(text: str) -> bool:
    """Whether it holds control, private or unassigned characters."""
    return any(unicodedata.category(c) in ("Cc", "Cn", "Co") and not c.isspace() for c in set(text))


@lru_cache(1 << 16)
def _script(letter: str) -> str:
    """The first word of the character's name, which is its script for all that are in large use."""
    return unicodedata.name(letter, "unnamed").split(" ")[0].split("-")[0].lower()


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:99] + "…"


def _watched(items: Iterable, title: str) -> Iterable:
    """The items, with a bar on a terminal."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, title, console=Console(stderr=True), transient=True)


_HELP = """Looks at prepared rows, and at the texts they are made of, before they are trained on.

  python -m train.data.doctor runs/wiki/data/*        # rows that training made; the workdir has the tokenizer
  python -m train.data.doctor wiki512 --source='jsonl:wiki/*.jsonl.gz' --against='csv:test.csv'

Counts documents, tokens, lengths, unknown and byte-fallback tokens, ids outside of the vocabulary, exact and near
duplicates, scripts, repeated lines, control characters, wrongly decoded text, and, of an evaluation set, the texts that
are in the corpus. Prints them, and leaves doctor.json and doctor.png in the folder. Without --source the texts are
decoded from the rows. Needs the extra: pip install -e '.[doctor]'. The exit code is 1 where something must not be
trained on.
"""


def main(argv: list[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m train.data.doctor", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", nargs="+", metavar="DIR", help="folders of prepared rows")
    add("--tokenizer", help="its file, or a workdir that keeps one (default: DIR's own, or that of DIR's workdir)")
    add("--source", help="FORMAT:PATH of the texts, as for train.data.prepare")
    add("--against", help="FORMAT:PATH of an evaluation set that should not be in the corpus")
    add("--sample", type=int, default=20_000, help="documents to look at closely (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        wrong = [problem for folder in args.folders for problem in _one(Path(folder), args)["wrong"]]
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if wrong else 0)


def _one(folder: Path, args: Any) -> dict[str, Any]:
    from rich.console import Console

    from train.data import tokenizer as tokenizers
    from train.data.prepare import parse_source

    shards.manifest(folder)  # before anything is read
    kept = args.tokenizer or tokenizers.beside(folder)
    source, against = (parse_source(given) if given else None for given in (args.source, args.against))
    report = examine(folder, tokenizers.load(kept), source, against, args.sample)
    (folder / "doctor.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    show(report, Console())
    picture(report, folder / "doctor.png")
    return report


if __name__ == "__main__":
    main()
