"""Times the pretraining step at BERT's sizes: everything that a real step does, on random ids."""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from typing import Any

STARTED = time.perf_counter()
SIZES = {"tiny": 32, "mini": 32, "small": 16, "base": 8}  # rows a batch


def stage_of(size: str, batch: int, length: int, dtype: str, vocab_size: int) -> Any:
    """A Stage of masked language modelling on random ids, over all the devices there are."""
    import jax
    import numpy as np

    from model.backbone import backbone
    from model.config import sized
    from objectives.mlm import mlm
    from objectives.types import Vocab
    from train import build, optimizer, schedule, sharding
    from train import step as training
    from train.stage import Stage

    vocab = Vocab(vocab_size, 0, 1, 2, 3, 4, tuple(range(5)), np.ones(vocab_size, bool), "random")
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    sharding.check_rows(batch, 1, dict(mesh.shape))
    config = sized(size, V=vocab_size, max_length=max(512, length), dtype=dtype)
    bb = backbone(config, sharding.constrainer(mesh))
    objective = mlm(bb, vocab)
    rates = schedule.linear(100_000, peak=1e-4)
    rng = np.random.default_rng(0)
    n = 4 * batch
    rows = dict(
        tokens=rng.integers(min(1000, vocab_size // 2), vocab_size, (n, length), np.int32),
        segments=np.ones((n, length), np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (n, 1)),
        example=np.stack([np.zeros(n), np.arange(n)], -1).astype(np.uint32)[:, None],
    )
    return Stage(
        name="bench", backbone=bb, objective=objective, vocab=vocab, rows=rows, batch=batch, steps=10**9,
        optimizer=optimizer.adamw(training.axes(bb, objective), rates), schedule=rates,
        learned=jax.tree.map(lambda _: True, build.shapes(bb, objective)), mesh=mesh,
    )  # fmt: skip


class Bench:
    """A step that can be taken again and again, begun as `train.loop.fit` begins it, with the facts of its first."""

    def __init__(self, size: str, batch: int, length: int, dtype: str, vocab: int, started: float):
        import jax

        from model import random
        from train import loop, sharding
        from train.data.loader import prefetch

        stage = stage_of(size, batch, length, dtype, vocab)
        like, loader = loop.shapes(stage), loop.loader_of(stage)
        lowered = loop.lowered_step(stage, like, loader.shapes(0))

        def compiled():
            begun = time.perf_counter()
            return lowered.compile(), round(time.perf_counter() - begun, 2)

        compiling = loop.in_background(compiled)
        self.state = loop.first_state(stage, like)
        self.batches = prefetch(loader, 0, stage.steps, sharding.rows(stage.mesh))
        self.key = random.key(stage.seed)
        self.compiled, compile_s = compiling.result()
        self.take()
        stats = jax.devices()[0].memory_stats() or {}
        self.facts = dict(
            size=size, batch=batch, length=length, dtype=dtype, device=jax.devices()[0].device_kind,
            devices=stage.mesh.size, jax=jax.__version__, parameters=sum(x.size for x in jax.tree.leaves(like.params)),
            compile_s=compile_s,
            first_s=round(time.perf_counter() - started, 2), gflop_step=round(loop.flops_a_step(stage, like) / 1e9, 2),
            temporary_gb=round(self.compiled.memory_analysis().temp_size_in_bytes / 2**30, 3),
        )  # fmt: skip
        if "peak_bytes_in_use" in stats:
            self.facts["device_gb"] = round(stats["peak_bytes_in_use"] / 2**30, 2)

    def take(self) -> float:
        """Takes a step and waits for it; its seconds."""
        import jax

        begun = time.perf_counter()
        _, batch = next(self.batches)
        self.state, sums = self.compiled(self.state, batch, self.key)
        jax.block_until_ready((self.state, sums))
        return time.perf_counter() - begun

    def finish(self, seconds: list[float]) -> dict:
        from train import flops

        if seconds:
            median = statistics.median(seconds)
            self.facts["step_s"] = round(median, 4)
            self.facts["tokens_s"] = round(self.facts["batch"] * self.facts["length"] / median)
            self.facts["gflop_s"] = round(self.facts["gflop_step"] / median, 1)
            if peak := flops.peak(self.facts["device"], self.facts["dtype"]):
                self.facts["fraction_of_peak"] = round(self.facts["gflop_s"] * 1e9 / peak / self.facts["devices"], 3)
        self.facts["rss_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        return self.facts


def serve(bench: Bench) -> None:
    """The line protocol of an interleaved comparison: `s` takes a step, `q` prints the facts and ends."""
    bench.take()
    print("READY", flush=True)
    seconds = []
    for line in sys.stdin:
        if line.strip() == "q":
            break
        before = sum(os.times()[:2])
        seconds.append(bench.take())
        print(seconds[-1], sum(os.times()[:2]) - before, flush=True)
    print(json.dumps(bench.finish(seconds)), flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.bench", description=__doc__,
        epilog="example: python -m launch.bench --size=tiny,base --dtype=bfloat16 --length=512 --batch=64 --out=b.json",
    )  # fmt: skip
    add = parser.add_argument
    add("--size", default=",".join(SIZES), help="sizes of model.config.SIZES, split by commas (default: %(default)s)")
    add("--batch", type=int, help="rows a batch (default: 32 at tiny and mini, 16 at small, 8 above)")
    add("--length", type=int, default=128, help="tokens a row (default: %(default)s)")
    add("--vocab", type=int, default=30522, help="vocabulary (default: %(default)s)")
    add("--dtype", default="float32", help="of the computation (default: %(default)s)")
    add("--steps", type=int, default=10, help="timed steps, after two to warm up (default: %(default)s)")
    add("--out", help="write the table as JSON to this file")
    add("--serve", action="store_true", help="step on every line `s` of standard input, print facts on `q`")
    args = parser.parse_args(argv)
    for what, given, least in (("batch", args.batch, 1), ("length", args.length, 1), ("vocab", args.vocab, 6)):
        if given is not None and given < least:
            parser.error(f"--{what}={given}: expected at least {least}")
    from train import command

    command.start_quickly()
    try:
        _measure(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _measure(args: argparse.Namespace) -> None:
    table = []
    started = STARTED
    for size in args.size.split(","):
        batch = SIZES.get(size, 8) if args.batch is None else args.batch
        bench = Bench(size, batch, args.length, args.dtype, args.vocab, started)
        if args.serve:
            serve(bench)
            return
        for _ in range(2):
            bench.take()
        table.append(bench.finish([bench.take() for _ in range(args.steps)]))
        print("  ".join(f"{k} {v}" for k, v in table[-1].items()), flush=True)
        started = time.perf_counter()
    if args.out:
        with open(args.out, "w") as file:
            json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
