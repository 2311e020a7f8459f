"""Minimal pairs: how often a trained stage holds the grammatical sentence likelier (BLiMP, Warstadt et al. 2019,
https://arxiv.org/abs/1912.00582)."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train.data import formats

_EXAMPLES = """examples:
  python -m launch.blimp --workdir=runs/wiki --stage=pretrain
  python -m launch.blimp --workdir=runs/wiki --stage=pretrain --pairs=200 --out=blimp.json

A left-to-right model is asked for the likelihood of each sentence, a masked one for its pseudo-log-likelihood, each
token hidden in turn. A paradigm is a file DATA/NAME.jsonl with `sentence_good` and `sentence_bad`; chance is 50 %.
"""


def likelihoods(trained: Any, texts: list[str]) -> np.ndarray:
    """The log-likelihood of each text under a stage (see `launch.predict.load`), float32.

    Raises ValueError for an objective that defines none, or a text longer than the backbone's `max_length`.
    """
    from functools import partial

    import jax

    from train import evaluate, sharding
    from train.data.layout import layout
    from train.data.loader import evaluation_batches
    from train.data.rows import label_examples
    from train.data.source import Record
    from train.data.table import table

    of = trained.objective.likelihood
    if of is None:
        raise ValueError(f"{trained.name} was trained by {trained.objective.name}, which gives texts no likelihood")
    records = [Record(text, None, None, repr(text)) for text in texts]
    rows = table(label_examples(records, trained.tokenizer, trained.backbone.config.max_length, None).arrays)
    batch = -(-trained.made.batch // trained.mesh.size) * trained.mesh.size

    @jax.jit
    def run(params, batch):
        viewed = trained.view(params)
        return of(viewed, partial(trained.backbone.encode, viewed["backbone"]), batch)

    how = layout("packed", rows, batch, trained.mesh.size)
    gathered = []
    for given in evaluation_batches(rows, batch, sharding.rows(trained.mesh), how):
        found = {"likelihood": run(trained.params, given)}
        gathered.append(jax.device_get({k: given[k] for k in ("example", "segments")} | found))
    return evaluate.examples(gathered, "likelihood")[0]


def paradigms(folder: Path, pairs: int | None) -> Iterator[tuple[str, list[dict]]]:
    """Yields (name, minimal pairs), the first `pairs` of each."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ValueError(f"--data={folder} holds no .jsonl files; expected BLiMP's paradigms, one file each")
    for file in files:
        found: list[dict] = []
        for row, line in itertools.islice(formats.jsonl_rows(file, _NAMES), pairs):
            if isinstance(line, ValueError):
                raise line
            if missing := {*_NAMES} - line.keys():
                raise ValueError(f"{file}:{row}: no column {sorted(missing)[0]!r}; columns found: {', '.join(line)}")
            found.append(line)
        yield file.stem, found


_NAMES = ("sentence_good", "sentence_bad")


def accuracies(trained: Any, folder: Path, pairs: int | None = None) -> dict[str, float]:
    """The share of pairs of each paradigm whose good sentence is the likelier; ties count half."""
    given = dict(paradigms(folder, pairs))
    texts = [line[side] for lines in given.values() for line in lines for side in _NAMES]
    good, bad = likelihoods(trained, texts).reshape(-1, 2).T
    right = np.where(good == bad, 0.5, good > bad)
    ends = np.cumsum([len(lines) for lines in given.values()])
    parts = np.split(right, ends[:-1])
    return {name: float(part.mean()) for name, part in zip(given, parts, strict=True)}


def main(argv: list[str] | None = None) -> None:
    from launch.predict import SET, load
    from train.data.files import expand

    parser = argparse.ArgumentParser(
        prog="python -m launch.blimp", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="the run's folder")
    add("--stage", required=True, help="the stage whose checkpoint is asked")
    add("--step", type=int, help="the checkpoint of this step, instead of the newest")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    add("--data", default="$ROOTSTOCK_DATA/blimp", help="the folder of the paradigms (default: %(default)s)")
    add("--pairs", type=int, help="so many of each paradigm, instead of all")
    add("--out", type=Path, help="write the accuracies there too, as JSON")
    args = parser.parse_args(argv)
    if args.pairs is not None and args.pairs < 1:
        parser.error(f"--pairs={args.pairs}: expected at least 1 of each paradigm")
    if args.out is not None and not args.out.absolute().parent.is_dir():
        parser.error(f"--out={args.out}: no such folder as {args.out.parent}")
    try:
        from absl import logging

        logging.set_verbosity(logging.WARNING)
        folder = Path(expand(args.data))
        found = accuracies(load(args.workdir, args.stage, args.step, changes=args.set), folder, args.pairs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for name, accuracy in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{name:60} {100 * accuracy:5.1f}")
    found = {"mean": float(np.mean(list(found.values())))} | found
    print(f"{'mean':60} {100 * found['mean']:5.1f}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
