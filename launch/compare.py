"""Objectives side by side: pretrained by configs/compare_objectives.py, finetuned, probed, asked about BLiMP."""

import argparse
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_EXAMPLES = """examples:
  python -m launch.compare --out=runs/compare --objectives=mlm,causal,hybrid,rtd
  python -m launch.compare --out=runs/compare --objectives=mlm,rtd --equal=compute --seeds=0,1,2
  python -m launch.compare --out=runs/compare --objectives=mlm,causal --tasks=EWT,EWT-frozen --pairs=200
  python -m launch.compare --out=runs/compare --objectives=rtd --peaks=5e-4,1e-3,2e-3 --tasks=EWT-frozen
  python -m launch.compare --out=runs/compare --objectives=mlm --steps=1    what a backbone scores that learned nothing

Every training is a command of its own, which is printed, and goes on where it was: run it again after an interruption,
or with more objectives, tasks and seeds. Of each seed there is one pretraining and one finetuning on each task. The
table has the mean over seeds in percent, and the deviation where there are several; scores are those on dev of the last
step. EWT is part-of-speech tagging, and EWT-frozen the same by a linear map of a backbone that stays as it is. Before
them are pretraining's learning rate at its peak, steps, FLOPs of one as a multiple of mlm's, and loss on held-out text,
which is of one objective and no measure of two. A learning rate that suits one may not suit another: with several in
--peaks each has a row.
"""
EQUAL = ("tokens", "compute")


class Task(NamedTuple):
    """How a backbone is finetuned: a config to which the backbone is added, what is read, epochs, learning rate."""

    config: str
    metric: str
    epochs: float
    peak: float


TASKS = {
    "SST-2": Task("configs/finetune_glue.py:task=SST-2", "accuracy", 3.0, 1e-3),
    "CoLA": Task("configs/finetune_glue.py:task=CoLA", "matthews", 3.0, 1e-3),
    "MRPC": Task("configs/finetune_glue.py:task=MRPC", "f1", 3.0, 1e-3),
    "RTE": Task("configs/finetune_glue.py:task=RTE", "accuracy", 3.0, 1e-3),
    "EWT": Task("configs/finetune_tag.py:task=EWT", "tag_accuracy", 1.0, 1e-3),
    "EWT-frozen": Task("configs/finetune_tag.py:task=EWT,frozen=yes", "tag_accuracy", 1.0, 1e-2),
}


class Pretraining(NamedTuple):
    """What a pretraining is known by, and its folder named after."""

    objective: str
    size: str
    steps: int
    batch: int
    peak: str
    seed: int

    @property
    def config(self) -> str:
        return f"configs/compare_objectives.py:{','.join(f'{k}={v}' for k, v in self._asdict().items())}"

    @property
    def folder(self) -> str:
        return f"{self.objective}_{self.size}_{self.steps}x{self.batch}_{self.peak}_{self.seed}"


def _run(*command: str) -> None:
    print(shlex.join(["python", *command]), file=sys.stderr, flush=True)
    subprocess.run([sys.executable, *command], stdout=sys.stderr, check=True)


def _last(folder: Path, metric: str) -> float:
    """The last value logged of a metric."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[metric] for line in lines if metric in line][-1]


def flops(objective: str, size: str) -> int:
    """FLOPs of one step of pretraining."""
    from configs.compare_objectives import get_config
    from launch.plan import plan

    return plan(get_config(f"objective={objective},size={size}"), "pretrain")["totals"]["flops"]


def pretrain(out: Path, which: Pretraining) -> Path:
    """A workdir with the stage `pretrain`; all of them share tokenized rows."""
    workdir = out / which.folder
    workdir.mkdir(parents=True, exist_ok=True)
    (out / "data").mkdir(exist_ok=True)
    if not (workdir / "data").exists():
        os.symlink("../data", workdir / "data")
    _run("-m", "train", f"--workdir={workdir}", f"--config={which.config}")
    return workdir


def finetune(workdir: Path, name: str, seed: int) -> float:
    """The task's metric on dev after the last step, in percent."""
    task = TASKS[name]
    folder = workdir / f"{name}_{task.epochs:g}_{task.peak:g}"
    config = f"--config={task.config},from={workdir},stage=pretrain,seed={seed}"
    more = [f"--config.finetune.epochs={task.epochs}", f"--config.finetune.schedule.peak={task.peak}"]
    _run("-m", "train", f"--workdir={folder}", config, *more)
    return 100 * _last(folder / "finetune", f"dev/{task.metric}")


def blimp(workdir: Path, pairs: int) -> float | None:
    """The mean accuracy in percent; None for an objective without a likelihood."""
    from launch.predict import load

    if load(workdir, "pretrain").objective.likelihood is None:
        return None
    file = workdir / f"blimp_{pairs}.json"
    if not file.exists():
        _run("-m", "launch.blimp", f"--workdir={workdir}", "--stage=pretrain", f"--pairs={pairs}", f"--out={file}")
    return 100 * json.loads(file.read_text())["mean"]


def _cell(found: list[float | None], digits: int = 1) -> str:
    values = [x for x in found if x is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main(argv: list[str] | None = None) -> None:
    from configs.compare_objectives import OBJECTIVES, peak

    parser = argparse.ArgumentParser(
        prog="python -m launch.compare", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add, listed = parser.add_argument, lambda text: text.split(",")

    def integers(text: str) -> list[int]:
        return [int(x) for x in listed(text)]

    def numbers(text: str) -> list[float]:
        return [float(x) for x in listed(text)]

    add("--out", type=Path, required=True, help="a folder; the workdirs are in it")
    add("--objectives", type=listed, default=list(OBJECTIVES), help=f"of {', '.join(OBJECTIVES)} (default: all)")
    add("--tasks", type=listed, default=list(TASKS), help=f"of {', '.join(TASKS)} (default: all)")
    add("--seeds", type=integers, default=[0], help="(default: 0)")
    add("--size", default="tiny", help="of the backbone (default: %(default)s)")
    add("--steps", type=int, default=2500, help="of pretraining (default: %(default)s)")
    add("--batch", type=int, default=32, help="rows of 128 tokens a step (default: %(default)s)")
    add(
        "--peaks", type=numbers,
        help="learning rates of pretraining (default: one for all, by size and batch)",
    )  # fmt: skip
    add(
        "--equal", choices=EQUAL, default=EQUAL[0],
        help="tokens: --steps for each; compute: as many as take the FLOPs of --steps of mlm (default: %(default)s)",
    )  # fmt: skip
    add("--pairs", type=int, default=200, help="minimal pairs of each paradigm of BLiMP (default: %(default)s)")
    args = parser.parse_args(argv)
    for what, given, known in (("objectives", args.objectives, OBJECTIVES), ("tasks", args.tasks, TASKS)):
        if unknown := [x for x in given if x not in known]:
            parser.error(f"--{what}: {unknown[0]} is not one of {', '.join(known)}")
    columns = ["loss", *args.tasks, "BLiMP"]
    print(f"| objective | peak | steps | FLOPs | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 4) + "|", flush=True)
    one = flops("mlm", args.size)
    for objective, rate in itertools.product(args.objectives, args.peaks or [peak(args.size, args.batch)]):
        ratio = flops(objective, args.size) / one
        steps = round(args.steps / ratio) if args.equal == "compute" else args.steps
        found: dict[str, list[float | None]] = {column: [] for column in columns}
        for seed in args.seeds:
            try:
                which = Pretraining(objective, args.size, steps, args.batch, f"{rate:g}", seed)
                workdir = pretrain(args.out, which)
                found["loss"].append(_last(workdir / "pretrain", "valid/loss"))
                for task in args.tasks:
                    found[task].append(finetune(workdir, task, seed))
                found["BLiMP"].append(blimp(workdir, args.pairs))
            except subprocess.CalledProcessError as error:
                sys.exit(f"error: {shlex.join(error.cmd)} ended with exit code {error.returncode}; its words are above")
        first = [objective.replace("|", r"\|"), which.peak, str(steps), f"{ratio:.2f}", _cell(found.pop("loss"), 3)]
        print(f"| {' | '.join([*first, *map(_cell, found.values())])} |", flush=True)


if __name__ == "__main__":
    main()
