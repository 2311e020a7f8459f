"""Objectives side by side: each pretrained by configs/compare_objectives.py, finetuned on GLUE, asked about BLiMP."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

_EXAMPLES = """examples:
  python -m launch.compare --out=runs/compare --objectives=mlm,causal,hybrid,rtd
  python -m launch.compare --out=runs/compare --objectives=mlm,causal --tasks=CoLA,RTE --seeds=0,1,2 --pairs=200

Every training is a command of its own, which is printed, and goes on where it was: run it again after an interruption,
or with more objectives, tasks and seeds. The table has the mean over seeds, and the deviation where there are several.
"""
TASKS = ("SST-2", "CoLA", "MRPC", "RTE")


def _run(*command: str) -> None:
    print(" ".join(["python", *command]), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *command], stdout=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}")


def _last(folder: Path, suffix: str) -> float:
    """The last value logged of a metric whose name ends so."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [value for line in lines for name, value in line.items() if name.endswith(suffix)][-1]


def pretrain(out: Path, objective: str, how: str) -> Path:
    """A workdir with the objective's stage `pretrain`; all of them share tokenized rows."""
    workdir = out / objective
    workdir.mkdir(parents=True, exist_ok=True)
    (out / "data").mkdir(exist_ok=True)
    if not (workdir / "data").exists():
        os.symlink("../data", workdir / "data")
    config = f"--config=configs/compare_objectives.py:objective={objective},{how}"
    _run("-m", "train", f"--workdir={workdir}", config)
    return workdir


def finetune(workdir: Path, task: str, seed: int, epochs: float, peak: float) -> float:
    """The task's metric on dev after the last step, of 100."""
    folder = workdir / f"{task}_{seed}"
    config = f"--config=configs/finetune_glue.py:task={task},from={workdir},stage=pretrain,seed={seed}"
    more = [f"--config.finetune.epochs={epochs}", f"--config.finetune.schedule.peak={peak}"]
    _run("-m", "train", f"--workdir={folder}", config, *more)
    from configs.finetune_glue import TASKS as metrics

    return 100 * _last(folder / "finetune", f"dev/{metrics[task][-1]}")


def blimp(workdir: Path, pairs: int) -> float | None:
    """The mean accuracy, of 100; None for an objective without a likelihood."""
    from launch.predict import load

    if load(workdir, "pretrain").objective.likelihood is None:
        return None
    file = workdir / f"blimp_{pairs}.json"
    if not file.exists():
        _run("-m", "launch.blimp", f"--workdir={workdir}", "--stage=pretrain", f"--pairs={pairs}", f"--out={file}")
    return 100 * json.loads(file.read_text())["mean"]


def main(argv: list[str] | None = None) -> None:
    from configs.compare_objectives import OBJECTIVES

    parser = argparse.ArgumentParser(
        prog="python -m launch.compare", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add, listed = parser.add_argument, lambda text: text.split(",")
    add("--out", type=Path, required=True, help="a folder; each objective's workdir is in it")
    add("--objectives", type=listed, default=list(OBJECTIVES), help=f"of {', '.join(OBJECTIVES)} (default: all)")
    add("--tasks", type=listed, default=list(TASKS), help=f"of GLUE (default: {','.join(TASKS)})")
    add("--seeds", type=listed, default=["0"], help="of the finetunings (default: 0)")
    add("--size", default="tiny", help="of the backbone (default: %(default)s)")
    add("--steps", type=int, default=2500, help="of pretraining (default: %(default)s)")
    add("--epochs", type=float, default=3.0, help="of finetuning (default: %(default)s)")
    add("--peak", type=float, default=1e-3, help="finetuning's learning rate (default: %(default)s)")
    add("--pairs", type=int, default=200, help="minimal pairs of each paradigm of BLiMP (default: %(default)s)")
    args = parser.parse_args(argv)
    if unknown := [x for x in args.objectives if x not in OBJECTIVES]:
        parser.error(f"--objectives: {unknown[0]} is not one of {', '.join(OBJECTIVES)}")
    print("| objective | " + " | ".join([*args.tasks, "BLiMP"]) + " |")
    print("|---" * (len(args.tasks) + 2) + "|", flush=True)
    for objective in args.objectives:
        workdir = pretrain(args.out, objective, f"size={args.size},steps={args.steps}")
        cells = []
        for task in args.tasks:
            found = [finetune(workdir, task, int(seed), args.epochs, args.peak) for seed in args.seeds]
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.fmean(found):.1f}{spread}")
        likelier = blimp(workdir, args.pairs)
        cells.append("" if likelier is None else f"{likelier:.1f}")
        print(f"| {objective} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
