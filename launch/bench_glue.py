"""Finetunes on GLUE beside Hugging Face's Trainer: one checkpoint, the same batches, schedule and epochs."""

import argparse
import contextlib
import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_EXAMPLES = """examples:
  python -m launch.bench_glue --source=all-MiniLM-L6-v2 --out=runs/glue --steps=12          # examples/s, steps in turn
  python -m launch.bench_glue --source=all-MiniLM-L6-v2 --out=runs/glue --seeds=0,1,2       # scores on dev

Needs the extra `parity` (torch, transformers). The tasks are read from $ROOTSTOCK_DATA/glue. A side is `ours`,
`trainer`, which pads each batch to its longest text, or `trainer_128`, which pads every text to 128 tokens as the
run_glue.py of transformers does unless it is told otherwise. Scores go to OUT/scores.csv as they are found, and a
finetuning that stands there is not run again; one that was interrupted goes on where it was (ours) or begins anew.
"""
TASKS = ("CoLA", "MRPC", "RTE", "SST-2", "STS-B")
SIDES = ("ours", "trainer", "trainer_128")
_FIELDS = ("task", "side", "seed", "epochs", "metric", "score", "seconds")


def config_of(task: str, seed: int, epochs: float, out: Path) -> Any:
    """configs/finetune_glue.py for the checkpoint that `main` imports."""
    from configs.finetune_glue import get_config
    from train import checkpoint, tree

    shapes, _, _ = checkpoint.read_params(out / "import" / "checkpoints", place=lambda shapes: shapes)
    held = [path.removesuffix("/kernel") for path in tree.leaves(shapes) if path.endswith("pooler/kernel")]
    pooler = held[0] if held else "fresh"
    config = get_config(f"task={task},from={out},stage=import,pooler={pooler},seed={seed}")
    config.finetune.epochs = epochs
    return config


def ours(out: Path, task: str, seed: int, epochs: float) -> tuple[str, float]:
    """Finetunes here; the metric's name, and its value on dev after the last step."""
    from train.__main__ import compilation_cache, run

    compilation_cache()
    config = config_of(task, seed, epochs, out)
    metric, config.finetune.best = config.finetune.best, None
    workdir = out / f"{task}_{seed}"
    run(config, workdir)
    lines = map(json.loads, (workdir / "finetune" / "metrics.jsonl").read_text().splitlines())
    score = [line[metric] for line in lines if metric in line][-1]
    shutil.rmtree(workdir)
    return metric.removeprefix("dev/"), score


def stepper(out: Path, task: str, report: Callable[[float], None]) -> None:
    """Steps here, each when `report` returns from telling the seconds of the one before."""
    import jax

    from model import random
    from train import build, loop, sharding
    from train.__main__ import compilation_cache
    from train.data.loader import prefetch

    compilation_cache()
    stage = build.stage(build.plain(config_of(task, 0, 3, out)), "finetune", out / f"{task}_steps")
    like, loader, key = loop.shapes(stage), loop.loader_of(stage), random.key(0)
    state, compiled = loop.first_state(stage, like), {}
    for _, batch in prefetch(loader, 0, stage.steps, sharding.rows(stage.mesh)):
        shape = batch["tokens"].shape
        if shape not in compiled:
            compiled[shape] = loop.lowered_step(stage, like, batch).compile()
        begun = time.perf_counter()
        state, sums = compiled[shape](state, batch, key)
        jax.block_until_ready((state, sums))
        report(time.perf_counter() - begun)


def _trainer(source: Path, out: Path, task: str, seed: int, epochs: float, padded: bool, callbacks=()) -> Any:
    import torch
    import transformers

    from train import build

    section = build.plain(config_of(task, seed, epochs, out))["finetune"]
    classes = section["data"]["classes"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(classes or "1"))
    padding: dict[str, Any] = {"padding": "max_length"} if padded else {}

    class Examples(torch.utils.data.Dataset):
        def __init__(self, data: dict):
            from train.data import source as sources

            given = {k: v for k, v in data["source"].items() if k != "factory"}
            records = list(sources.csv(**given))
            pairs = None if records[0].pair is None else [r.pair for r in records]
            self.found = tokenizer([r.text for r in records], pairs, truncation=True, max_length=128, **padding)
            labels = [r.label or "" for r in records]
            self.labels = [classes.index(label) if classes else float(label) for label in labels]

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, i: int) -> dict:
            return {k: v[i] for k, v in self.found.items()} | {"labels": self.labels[i]}

    arguments = transformers.TrainingArguments(
        output_dir=str(out / "trainer"), per_device_train_batch_size=section["batch"], use_cpu=True,
        learning_rate=section["schedule"]["peak"], num_train_epochs=epochs, seed=seed, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    return transformers.Trainer(
        model, arguments, train_dataset=Examples(section["data"]), eval_dataset=Examples(section["evals"]["dev"]),
        data_collator=transformers.DataCollatorWithPadding(tokenizer), callbacks=list(callbacks),
    ), section["best"].removeprefix("dev/")  # fmt: skip


def theirs(source: Path, out: Path, task: str, seed: int, epochs: float, padded: bool) -> tuple[str, float]:
    """Finetunes by Trainer; the metric's name, and its value on dev after the last step."""
    from train.evaluate import score

    trainer, metric = _trainer(source, out, task, seed, epochs, padded)
    trainer.train()
    found = trainer.predict(trainer.eval_dataset)
    predictions = found.predictions.argmax(-1) if found.predictions.shape[1] > 1 else found.predictions[:, 0]
    return metric, score(metric, found.label_ids, predictions)


def their_stepper(source: Path, out: Path, task: str, padded: bool, report: Callable[[float], None]) -> None:
    """Trainer's steps, each when `report` returns from telling the seconds of the one before."""
    import transformers

    class Timed(transformers.TrainerCallback):
        begun = 0.0

        def on_step_begin(self, args, state, control, **kwargs):
            self.begun = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            report(time.perf_counter() - self.begun)

    _trainer(source, out, task, 0, 3, padded, [Timed()])[0].train()


def _child(args: argparse.Namespace) -> None:
    """One side, in a process of its own: a finetuning, or steps, one for each line of standard input."""
    task, seed, padded = args.tasks[0], args.seeds[0], args.side == "trainer_128"
    if not args.steps:
        begun = time.perf_counter()
        if args.side == "ours":
            metric, score = ours(args.out, task, seed, args.epochs)
        else:
            metric, score = theirs(args.source, args.out, task, seed, args.epochs, padded)
        print(json.dumps(dict(metric=metric, score=score, seconds=round(time.perf_counter() - begun))))
        return

    def report(seconds: float) -> None:
        print(json.dumps(seconds), flush=True)
        if not sys.stdin.readline().strip():
            sys.exit()

    if args.side == "ours":
        stepper(args.out, task, report)
    else:
        their_stepper(args.source, args.out, task, padded, report)


def _start(args: argparse.Namespace, side: str, task: str, seed: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch.bench_glue", f"--source={args.source}", f"--out={args.out}"]
    command += [f"--side={side}", f"--tasks={task}", f"--seeds={seed}", f"--epochs={args.epochs}"]
    command += [f"--steps={args.steps}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def speeds(args: argparse.Namespace, task: str) -> dict:
    """Examples a second of each side, and ratios. In each of three rounds the sides go in turn, each so many steps.

    Two before these are not counted. Where sides change at every step each finds its memory gone cold, and the faster
    loses more by it: a step of MRPC took .95 s here instead of .48.
    """
    children = {side: _start(args, side, task) for side in args.sides}

    def told(child: subprocess.Popen) -> float:
        line = _last(child)
        if line is None:
            raise RuntimeError(f"{task}: a side ended with exit code {child.wait()}")
        return line

    seconds: dict[str, list[float]] = {side: [] for side in children}
    for child in children.values():
        told(child)  # the first
    for _ in range(3):
        for side, child in children.items():
            taken = []
            for _ in range(2 + args.steps):
                print("s", file=child.stdin, flush=True)
                taken.append(told(child))
            seconds[side] += taken[2:]
    for child in children.values():
        print(file=child.stdin, flush=True)
        child.communicate()
    mean = {side: statistics.fmean(found) for side, found in seconds.items()}  # batches differ in length
    line: dict[str, Any] = {"task": task, "steps": args.steps}
    batch = config_of(task, 0, args.epochs, args.out).finetune.batch
    line |= {f"{side}_examples_s": round(batch / m, 1) for side, m in mean.items()}
    return line | {f"of_{side}": round(m / mean["ours"], 2) for side, m in mean.items() if side != "ours"}


def _last(child: subprocess.Popen) -> Any:
    """What the next line that is JSON says; what a library prints before is left out."""
    assert child.stdout is not None
    for line in child.stdout:
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(line)
    return None


def scores(args: argparse.Namespace) -> None:
    """Runs what is not in OUT/scores.csv yet, and prints means and spreads of what is."""
    file = args.out / "scores.csv"
    if not file.exists():
        file.write_text(",".join(_FIELDS) + "\n")
    for seed in args.seeds:
        for task in args.tasks:
            for side in args.sides:
                row = dict(task=task, side=side, seed=str(seed), epochs=str(args.epochs))
                with file.open() as lines:
                    if any(row.items() <= there.items() for there in csv.DictReader(lines)):
                        continue
                child = _start(args, side, task, seed)
                found = _last(child)
                if child.wait() or found is None:
                    raise RuntimeError(f"{side} on {task}: exit code {child.returncode}")
                with file.open("a") as lines:
                    csv.DictWriter(lines, _FIELDS).writerow(row | found)
                print(row | found, flush=True)
    with file.open() as lines:
        table = list(csv.DictReader(lines))
    for task in args.tasks:
        for side in SIDES:
            mine = [100 * float(x["score"]) for x in table if (x["task"], x["side"]) == (task, side)]
            if mine:
                spread = f" ± {statistics.stdev(mine):.1f}" if len(mine) > 1 else ""
                print(
                    f"{task:6} {side:12} {statistics.fmean(mine):.1f}{spread}  ({', '.join(f'{x:.1f}' for x in mine)})"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.bench_glue", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    listed = lambda text: text.split(",")
    add("--source", type=Path, required=True, help="a published checkpoint, a folder in Hugging Face's layout")
    add("--out", type=Path, required=True, help="a folder for what is imported, and for scores.csv")
    add("--tasks", type=listed, default=list(TASKS), help=f"split by commas, of {', '.join(TASKS)} (default: all)")
    add("--sides", type=listed, default=["ours", "trainer"], help=f"of {', '.join(SIDES)} (default: the first two)")
    add("--seeds", type=lambda text: [int(x) for x in text.split(",")], default=[0], help="of the scores (default: 0)")
    add("--epochs", type=float, default=3.0, help="of the scores (default: %(default)s)")
    add(
        "--steps",
        type=int,
        default=0,
        help="time so many steps of each side, in each of three rounds, instead of finding scores",
    )
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    from train import command

    command.start_quickly()
    for what, given, there in (("tasks", args.tasks, TASKS), ("sides", args.sides, SIDES)):
        if unknown := [x for x in given if x not in there]:
            parser.error(f"--{what}: {unknown[0]} is not one of {', '.join(there)}")
    if args.side:
        return _child(args)
    kept = args.out / "source.txt"
    if not kept.exists():
        from launch.convert import import_

        import_(args.source, args.out)
        kept.write_text(f"{args.source.resolve()}\n")
    if kept.read_text().strip() != str(args.source.resolve()):
        parser.error(f"--out={args.out} is of {kept.read_text().strip()}: take another for {args.source}")
    if args.steps:
        for task in args.tasks:
            print(json.dumps(speeds(args, task)), flush=True)
    else:
        scores(args)
    return None


if __name__ == "__main__":
    main()
