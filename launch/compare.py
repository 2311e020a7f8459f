"""Objectives side by side: pretrained by configs/compare_objectives.py, finetuned, probed, asked about BLiMP."""

import argparse
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

_EXAMPLES = """examples:
  python -m launch.compare --out=runs/compare --objectives=mlm,causal,hybrid,rtd
  python -m launch.compare --out=runs/compare --objectives=mlm,rtd --equal=compute --seeds=0,1,2
  python -m launch.compare --out=runs/compare --objectives=mlm,causal --tasks=EWT,EWT-frozen --pairs=200
  python -m launch.compare --out=runs/compare --objectives=rtd --peaks=5e-4,1e-3,2e-3 --tasks=EWT-frozen
  python -m launch.compare --out=runs/compare --peaks=1e-3,2e-3 --tasks=EWT-frozen --walk=EWT-frozen
  python -m launch.compare --out=runs/compare --objectives=mlm --steps=1    what a backbone scores that learned nothing

Every training is a command of its own, which is printed, and goes on where it was: run it again after an interruption,
or with more objectives, tasks and seeds. Of each seed there is one pretraining and one finetuning on each task. The
table has the mean over seeds in percent, and the deviation where there are several; scores are those on dev of the last
step. EWT is part-of-speech tagging, and EWT-frozen the same by a linear map of a backbone that stays as it is. Before
them are pretraining's learning rate at its peak, steps, FLOPs of one as a multiple of mlm's, and the objective's own
loss on held-out text: compare it over seeds and rates of one objective, never between objectives. A learning rate that
suits one may not suit another: with several in --peaks each has a row, and with --walk there are more, until the best
for that task has a worse one on either side. A training that fails leaves its row unfinished, and the others go on. A
row of tiny at 1,250 steps with EWT-frozen alone takes some five minutes of one CPU core.
"""
EQUAL = ("tokens", "compute")


class Task(NamedTuple):
    """How a backbone is finetuned: a config to which the backbone is added, what is read, epochs, learning rate, and
    the folder of its data in $ROOTSTOCK_DATA.
    """

    config: str
    metric: str
    epochs: float
    peak: float
    data: str


TASKS = {
    "SST-2": Task("configs/finetune_glue.py:task=SST-2", "accuracy", 3.0, 1e-3, "glue/SST-2"),
    "CoLA": Task("configs/finetune_glue.py:task=CoLA", "matthews", 3.0, 1e-3, "glue/CoLA"),
    "MRPC": Task("configs/finetune_glue.py:task=MRPC", "f1", 3.0, 1e-3, "glue/MRPC"),
    "RTE": Task("configs/finetune_glue.py:task=RTE", "accuracy", 3.0, 1e-3, "glue/RTE"),
    "EWT": Task("configs/finetune_tag.py:task=EWT", "tag_accuracy", 1.0, 1e-3, "ud_ewt"),
    "EWT-frozen": Task("configs/finetune_tag.py:task=EWT,frozen=yes", "tag_accuracy", 1.0, 1e-2, "ud_ewt"),
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
    """Runs it to its end. Asked to stop, it asks the command, which saves, and ends when that has ended."""
    print(shlex.join(["python", *command]), file=sys.stderr, flush=True)
    asked: list[int] = []
    child: subprocess.Popen | None = None

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        if child is not None:
            child.send_signal(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen([sys.executable, *command], stdout=sys.stderr)
        if asked:  # while it was being started
            child.send_signal(asked[0])
        code = child.wait()
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    if asked:
        sys.exit(f"stopped by {signal.Signals(asked[0]).name}: the same command goes on from there")
    if code:
        raise ValueError(f"{shlex.join(['python', *command])} ended with exit code {code}; see its output above")


def _last(folder: Path, metric: str) -> float:
    """The last value logged of a metric. Raises ValueError where there is none, or it is not a number."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = [line[metric] for line in lines if metric in line][-1:]
    if found in ([], [None]):
        raise ValueError(f"{folder / 'metrics.jsonl'} has no {metric}, or a last one that is not finite")
    return found[0]


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


_MOST = 8  # learning rates of an objective


def beyond(scores: dict[float, float]) -> list[float]:
    """The learning rates to try next: twice the largest or half the smallest, where that has the best score so far, or
    half of all that diverged. None at all once there are eight: of what is worse than nothing, less is ever better.
    """
    best = max(scores, key=lambda rate: scores[rate])
    if len(scores) >= _MOST:
        return []
    if scores[best] == -math.inf:
        return [min(scores) / 2]
    return [2 * best] * (best == max(scores)) + [best / 2] * (best == min(scores))


def row(
    args: argparse.Namespace, objective: str, rate: float, steps: int
) -> tuple[dict[str, list[float | None]], list[str]]:
    """(what each column found, seed by seed; what failed): pretrains, finetunes and asks."""
    found: dict[str, list[float | None]] = {column: [] for column in _columns(args)}
    failed = []
    for seed in args.seeds:
        try:
            which = Pretraining(objective, args.size, steps, args.batch, f"{rate:g}", seed)
            workdir = pretrain(args.out, which)
            found["loss"].append(_last(workdir / "pretrain", "valid/loss"))
            for task in args.tasks:
                found[task].append(finetune(workdir, task, seed))
            if args.pairs:
                found["BLiMP"].append(blimp(workdir, args.pairs))
        except ValueError as error:  # as where a learning rate is too large: others may do
            failed.append(str(error))
            print(f"error: {error}", file=sys.stderr, flush=True)
    return found, failed


def _columns(args: argparse.Namespace) -> list[str]:
    return ["loss", *args.tasks, *["BLiMP"] * (args.pairs > 0)]


def main(argv: list[str] | None = None) -> None:
    from configs.compare_objectives import OBJECTIVES, WIDER, peak

    parser = argparse.ArgumentParser(
        prog="python -m launch.compare", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add, listed = parser.add_argument, lambda text: [x for x in text.split(",") if x]

    def count(text: str) -> int:
        if (number := int(text)) < 1:
            raise argparse.ArgumentTypeError(f"{number} is not at least 1")
        return number

    def integers(text: str) -> list[int]:
        return [int(x) for x in text.split(",")]

    def numbers(text: str) -> list[float]:
        return [float(x) for x in text.split(",")]

    add("--out", type=Path, required=True, help="a folder; the workdirs are in it")
    add("--objectives", type=listed, default=list(OBJECTIVES), help=f"of {', '.join(OBJECTIVES)} (default: all)")
    add("--tasks", type=listed, default=list(TASKS), help=f"of {', '.join(TASKS)} (default: all)")
    add("--seeds", type=integers, default=[0], help="(default: 0)")
    add("--size", default="tiny", choices=WIDER, help="of the backbone (default: %(default)s)")
    add("--steps", type=count, default=2500, help="of pretraining (default: %(default)s)")
    add("--batch", type=count, default=32, help="rows of 128 tokens a step (default: %(default)s)")
    add(
        "--peaks", type=numbers,
        help="learning rates of pretraining (default: one for all, by size and batch)",
    )  # fmt: skip
    add("--walk", metavar="TASK", help="try rates beyond --peaks, until the best for this task is not the last")
    add(
        "--equal", choices=EQUAL, default=EQUAL[0],
        help="tokens: --steps for each; compute: as many as take the FLOPs of --steps of mlm (default: %(default)s)",
    )  # fmt: skip
    add(
        "--pairs", type=int, default=200,
        help="minimal pairs of each paradigm of BLiMP, 0 to leave it out (default: %(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    for what, given, known in (("objectives", args.objectives, OBJECTIVES), ("tasks", args.tasks, TASKS)):
        if unknown := [x for x in given if x not in known]:
            parser.error(f"--{what}: {unknown[0]} is not one of {', '.join(known)}")
    if args.pairs < 0:
        parser.error(f"--pairs={args.pairs}: expected 0 or more of each paradigm")
    if args.walk is not None and args.walk not in args.tasks:
        parser.error(f"--walk: {args.walk} is not one of --tasks, {', '.join(args.tasks)}")
    root = os.environ.get("ROOTSTOCK_DATA", "")
    needed = ["pretrain", *(TASKS[task].data for task in args.tasks), *["blimp"] * (args.pairs > 0)]
    if missing := [x for x in dict.fromkeys(needed) if not (Path(root) / x).is_dir()]:
        where = f"ROOTSTOCK_DATA={root} has no" if root else "set ROOTSTOCK_DATA to a folder with"
        parser.error(f"{where} {', '.join(missing)}: see the README for what lies there")
    columns = _columns(args)
    print(f"| objective | peak | steps | FLOPs | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 4) + "|", flush=True)
    one, failures = flops("mlm", args.size), []
    for objective in args.objectives:
        ratio = flops(objective, args.size) / one
        steps = max(1, round(args.steps / ratio)) if args.equal == "compute" else args.steps
        rates, scores = list(args.peaks or [peak(args.size, args.batch)]), {}
        while rates:
            found, failed = row(args, objective, rate := rates.pop(0), steps)
            failures += failed
            first = [objective.replace("|", r"\|"), f"{rate:g}", str(steps), f"{ratio:.2f}"]
            cells = [
                _cell(x, 3 if column == "loss" else 1) if len(x) == len(args.seeds) else "failed"
                for column, x in found.items()
            ]
            print(f"| {' | '.join([*first, *cells])} |", flush=True)
            told = [x for x in found.get(args.walk, ()) if x is not None]
            scores[rate] = statistics.fmean(told) if len(told) == len(args.seeds) else -math.inf
            if args.walk and not rates:
                rates = beyond(scores)
    if failures:
        sys.exit(f"error: {len(failures)} unfinished:\n  " + "\n  ".join(failures))


if __name__ == "__main__":
    main()
