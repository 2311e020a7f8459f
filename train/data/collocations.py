"""Which words go together in prepared rows, by their pointwise mutual information: a list for masking them together."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from objectives.vocab import LONGEST_WORD, Vocab

_HELP = """Lists the collocations of prepared rows, for PMI-masking.

  python -m train.data.collocations runs/wiki/data/* --out=ngrams.txt      # rows that training made
  python -m train --config=... --config.pretrain.objective.unit=ngram --config.pretrain.objective.ngrams=ngrams.txt

Counts the runs of two to --longest words, and scores each by how much likelier it is than the best way to put it
together from parts (Levine et al. 2020, https://arxiv.org/abs/2010.01825, section 3.1). The --most of the highest score
that occur --least times go to --out, a line of token ids each, the highest first. The tokenizer is the rows' own.
"""


class Collocation(NamedTuple):
    """A run of words: its token ids, how many times it occurs, and its score in nats."""

    ids: tuple[int, ...]
    times: int
    score: float


def collocations(
    rows: dict[str, np.ndarray], vocab: Vocab, *, longest: int = 5, least: int = 10, most: int = 20_000
) -> list[Collocation]:
    """The runs of 2 to `longest` words with the highest PMI_n = min over the ways s to cut it of
    log(p(run) / product of p(part of s)), highest first (Levine et al. 2020, equation 2). p is the share among all runs
    of as many words.

    rows: `tokens` and `segments` [N, L]. A run lies in one segment, with no special token inside, and has at most
      `LONGEST_WORD` tokens.
    Raises ValueError for bounds that cannot be.
    """
    if longest < 2 or least < 1 or most < 1:
        raise ValueError(
            f"longest={longest}, least={least}, most={most}: expected runs of 2 words or more, and at least 1 of each"
        )
    tokens, start, end = _words(rows, vocab)
    beside = np.append(end[:-1] == start[1:], False)  # whether the next word follows at once
    one = _numbers(tokens, start, end)
    ids, logp = [one], [_logp(one, len(one))]
    whole = np.ones(len(one), bool)  # of a run from each word, whether it is of one piece
    found: list[Collocation] = []
    for n in range(2, longest + 1):
        if len(one) < n:
            break
        whole = whole[:-1] & beside[n - 2 : len(beside) - 1]
        # both runs that are a word shorter must be frequent, or this one is not
        could = whole & (ids[-1][:-1] >= 0) & (ids[-1][1:] >= 0)
        key = np.where(could, ids[-1][:-1].astype(np.int64) * (one.max() + 1) + one[n - 1 :], -1)
        kinds, first, inverse, counts = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
        kept = (kinds >= 0) & (counts >= least)
        ids.append(np.where(kept, np.cumsum(kept) - 1, -1)[inverse.reshape(-1)])
        counts, first = counts[kept], first[kept]
        logp.append(np.log(counts / max(1, whole.sum())))
        best = [np.zeros(len(first))]  # of the first k words, the likeliest way to cut them
        for k in range(1, n + 1):
            ways = [best[j] + logp[k - j - 1][ids[k - j - 1][first + j]] for j in range(k) if (j, k) != (0, n)]
            best.append(np.max(ways, 0))
        for at, count, score in zip(first, counts, logp[-1] - best[n], strict=True):
            run = tuple(tokens[start[at] : end[at + n - 1]].tolist())
            if len(run) <= LONGEST_WORD:  # each step looks for the longest, token by token
                found.append(Collocation(run, int(count), float(score)))
    return sorted(found, key=lambda c: (-c.score, c.ids))[:most]


def _words(rows: dict[str, np.ndarray], vocab: Vocab) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(all tokens, where each word begins, where it ends)."""
    tokens, segments = rows["tokens"].reshape(-1), rows["segments"].reshape(-1)
    row = np.arange(len(tokens)) // rows["tokens"].shape[1]
    ordinary = (segments > 0) & ~np.isin(tokens, vocab.special)
    apart = np.ones(len(tokens), bool)
    apart[1:] = (segments[1:] != segments[:-1]) | (row[1:] != row[:-1]) | ~ordinary[:-1]
    start = np.flatnonzero(ordinary & (vocab.word_starts[tokens] | apart))
    # a word ends where the next begins, or at what is no part of any
    stops = np.append(np.flatnonzero(~ordinary | vocab.word_starts[tokens] | apart), len(tokens))
    end = stops[np.searchsorted(stops, start, "right")]
    kept = end - start <= LONGEST_WORD
    return tokens, start[kept], end[kept]


def _numbers(tokens: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """A number for each word, equal where its tokens are."""
    numbers, base = np.zeros(len(start), np.int64), int(tokens.max(initial=0)) + 2
    for i in range(int((end - start).max(initial=0))):
        token = np.where(start + i < end, tokens[np.minimum(start + i, len(tokens) - 1)] + 1, 0)
        _, numbers = np.unique(numbers * base + token, return_inverse=True)
    return numbers.reshape(-1)


def _logp(ids: np.ndarray, total: int) -> np.ndarray:
    return np.log(np.bincount(ids) / max(1, total)) if len(ids) else np.zeros(0)


def main(argv: list[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m train.data.collocations",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folders", nargs="+", metavar="DIR", help="folders of prepared rows, of one tokenizer")
    add("--out", type=Path, required=True, help="the file to write, which must not be there")
    add("--tokenizer", help="its file, or a workdir that keeps one (default: DIR's own, or that of DIR's workdir)")
    add("--longest", type=int, default=5, help="words of a run, at most (default: %(default)s)")
    add("--least", type=int, default=10, help="how often a run must occur (default: %(default)s)")
    add("--most", type=int, default=20_000, help="how many runs are listed (default: %(default)s)")
    add(
        "--rows",
        type=int,
        default=200_000,
        help="of each folder so many are read, evenly spread (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        tell(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


def tell(args: Any) -> None:
    """Reads the rows, writes the list and prints its first."""
    from train.data import tokenizer as tokenizers
    from train.data.table import Shards

    if args.out.exists():
        raise ValueError(f"{args.out} is there already: take another name, or remove it")
    if args.rows < 1:
        raise ValueError(f"--rows={args.rows}: expected at least 1")
    tables = [Shards(Path(folder)) for folder in args.folders]
    tok = tokenizers.load(args.tokenizer or tokenizers.beside(Path(args.folders[0])))
    for table in tables:
        if (other := table.manifest["key"].get("tokenizer", tok.vocab.fingerprint)) != tok.vocab.fingerprint:
            raise ValueError(
                f"{table.folder} was prepared with another tokenizer (fingerprint {other[:12]}) than this one "
                f"({tok.vocab.fingerprint[:12]})"
            )
    read = [t.read(np.unique(np.linspace(0, len(t) - 1, args.rows).astype(np.int64))) for t in tables]
    length = max(rows["tokens"].shape[1] for rows in read)
    padded = lambda x: np.pad(x, ((0, 0), (0, length - x.shape[1])))
    rows = {k: np.concatenate([padded(some[k]) for some in read]) for k in ("tokens", "segments")}
    found = collocations(rows, tok.vocab, longest=args.longest, least=args.least, most=args.most)
    if not found:
        raise ValueError(
            f"no run of words occurs {args.least} times in {len(rows['tokens']):,} rows: a smaller --least"
        )
    args.out.write_text("".join(" ".join(map(str, run.ids)) + "\n" for run in found))
    for run in found[:20]:
        print(f"{run.score:6.2f}  {run.times:7,}  {tok.decode(np.array(run.ids))}")
    print(f"{len(found):,} runs of words, from {len(rows['tokens']):,} rows, in {args.out}")


if __name__ == "__main__":
    main()
