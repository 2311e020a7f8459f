"""What a run says: a progress bar on a terminal, plain lines elsewhere, every number to JSONL and TensorBoard."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train import flops
from train.data.table import table
from train.stage import Stage


class Log:
    """Of one stage, in its folder. Only the first process of several writes.

    A resumed run appends to `metrics.jsonl`; steps that an interrupted run had logged past its last checkpoint come
    twice, the later line being the one that counts.
    """

    def __init__(self, folder: Path, stage: Stage, flops_a_step: Callable[[], int]):
        self.stage, self.folder = stage, folder
        self.writes = jax.process_index() == 0
        rows = table(stage.rows)
        segments = rows.read(np.arange(min(1024, len(rows))))["segments"]
        self.tokens = stage.batch * segments.shape[1] * float((segments > 0).mean())
        peak = flops.peak(stage.mesh.devices.flat[0].device_kind, stage.backbone.config.dtype)
        self.peak = peak and peak * stage.mesh.size
        self.flops = flops_a_step() if self.peak else 0
        self.bar: Any = None
        if not self.writes:
            return
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.file = open(folder / "metrics.jsonl", "a")  # noqa: SIM115  (open as long as the run)
        self.board = SummaryWriter(str(folder))

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.writes:
            return
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def begin(self, step: int) -> None:
        """Starts the clock, and on a terminal the bar."""
        self.clock, self.at = time.perf_counter(), step
        if self.writes and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.stage.name, total=self.stage.steps, completed=step, note="")

    def steps(self, numbers: list[int], reports: list[dict], schedule) -> None:
        """Records the metrics of finished steps."""
        elapsed = time.perf_counter() - self.clock
        rate = (numbers[-1] - self.at) / elapsed
        speed = {"tokens_per_second": rate * self.tokens, "steps_per_second": rate}
        if self.peak:
            speed["fraction_of_peak"] = rate * self.flops / self.peak
        self.clock, self.at = time.perf_counter(), numbers[-1]
        if not self.writes:
            return
        for n, report in zip(numbers, reports, strict=True):
            line = {k: float(v) for k, v in report.items()} | {"learning_rate": float(schedule(n - 1))}
            self._write(n, line | (speed if n == numbers[-1] else {}))
        last = reports[-1]
        note = f"loss {float(last['loss']):.4f}  {_short(speed['tokens_per_second'])} tokens/s"
        if self.peak:
            note += f"  {speed['fraction_of_peak']:.0%} of peak"
        if self.bar:
            self.bar.update(self.task, completed=numbers[-1], note=note)
        else:
            left = (self.stage.steps - numbers[-1]) / rate
            self.say(f"{self.stage.name} {numbers[-1]}/{self.stage.steps}  {note}  {_clock(left)} left")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Records an evaluation."""
        if self.writes:
            self._write(step, metrics)
            found = "  ".join(f"{k} {v:.4f}" for k, v in metrics.items())
            self.say(f"{self.stage.name} {step}/{self.stage.steps}  {found}")
        # not the training's time
        self.clock = time.perf_counter()

    def evaluated(self, step: int) -> dict[str, float]:
        """What evaluations of this step have logged, whichever run they were of, by names such as "dev/loss"."""
        file = self.folder / "metrics.jsonl"
        found: dict[str, float] = {}
        for line in map(json.loads, file.read_text().splitlines()) if file.is_file() else ():
            if line["step"] == step:
                found |= {k: math.nan if v is None else v for k, v in line.items() if "/" in k}
        return found

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        # JSON has no nan or infinity
        tidy = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self.file.write(json.dumps({"step": step} | tidy) + "\n")
        self.file.flush()
        for name, value in metrics.items():
            if math.isfinite(value):  # the board warns of others on standard error
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
        if self.writes:
            self.file.close()
            self.board.close()


def curve(folder: Path, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a metric that a stage logged in its folder, as "loss" or "dev/accuracy", to be plotted.

    Of a step that was logged twice the later line counts; one where the metric was not finite is left out. Raises
    ValueError for a metric that is not there, naming those that are.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"no {file}: expected the folder of a stage that was trained, WORKDIR/STAGE")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = {line["step"]: line[name] for line in lines if name in line}
    if not found:
        there = sorted({key for line in lines for key in line} - {"step"})
        raise ValueError(f"{file} has no metric {name!r}; it has {', '.join(there) or 'none yet'}")
    points = sorted((step, value) for step, value in found.items() if value is not None)
    return [step for step, _ in points], [value for _, value in points]


def _short(x: float) -> str:
    return f"{x / 1e6:.2f}M" if x >= 1e6 else f"{x / 1e3:.1f}k" if x >= 1e3 else f"{x:.0f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
