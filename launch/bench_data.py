"""Times the way of the data: texts to rows, rows to batches, labelled texts to steps that compute no padding."""

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LENGTHS = (128, 512)


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def preparing(source: Any, tokenizer: Any, rounds: int, folder: Path) -> Iterator[dict]:
    """Prepare beside SentencePiece (or whichever tokenizer) alone and beside Hugging Face `datasets.map` with two
    workers, which neither reads the files nor packs: seconds in turn, and ratios of each round.
    """
    from train.data.prepare import prepare
    from train.data.rows import pack_documents

    texts = [record.text for record in source]
    tokens = 0

    def alone() -> None:
        nonlocal tokens
        tokens = sum(len(ids) for i in range(0, len(texts), 256) for ids in tokenizer.encode(texts[i : i + 256]))

    def ours(length: int) -> None:
        shutil.rmtree(folder / "rows", ignore_errors=True)
        prepare(
            folder / "rows", source, tokenizer, functools.partial(pack_documents, length=length), {"length": length}
        )

    mapped = _map(texts, tokenizer, folder)
    found = []
    for _ in range(rounds):
        limit = seconds(alone)
        times = {f"prepare_{length}": seconds(functools.partial(ours, length)) for length in LENGTHS}
        found.append({"tokenizer_alone": limit, **times} | ({"datasets_map": seconds(mapped)} if mapped else {}))
    middle = {name: statistics.median(round[name] for round in found) for name in found[0]}
    line: dict[str, Any] = {"what": "prepare", "tokens": tokens, **{f"{k}_s": round(v, 2) for k, v in middle.items()}}
    for length in LENGTHS:
        name = f"prepare_{length}"
        line[f"{name}_tokens_s"] = round(tokens / middle[name])
        line[f"{name}_of_limit"] = round(statistics.median(x["tokenizer_alone"] / x[name] for x in found), 2)
        if mapped:
            line[f"{name}_of_map"] = round(statistics.median(x["datasets_map"] / x[name] for x in found), 2)
    yield line


def _map(texts: list[str], tokenizer: Any, folder: Path) -> Callable[[], Any] | None:
    try:
        import datasets
    except ImportError:
        return None
    from train.data.tokenizer import save

    datasets.disable_progress_bars()
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    given = datasets.load_dataset(
        "json", data_files=str(folder / "texts.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    encode = functools.partial(_encode, file=str(save(tokenizer, folder)))
    return lambda: given.map(encode, batched=True, num_proc=2, load_from_cache_file=False, remove_columns=["text"])


@functools.cache  # once in each process
def _loaded(file: str) -> Any:
    from train.data.tokenizer import load

    return load(file)


def _encode(batch: dict, file: str) -> dict:
    return {"ids": [ids.tolist() for ids in _loaded(file).encode(batch["text"])]}


def loading(source: Any, tokenizer: Any, folder: Path, batch: int = 32) -> Iterator[dict]:
    """Rows a second from shards to the device, what that is of a step at BERT's tiny size, and the first batch."""
    import jax

    from launch.bench import Bench
    from train import sharding
    from train.data.loader import Loader
    from train.data.prepare import prepare
    from train.data.rows import pack_documents
    from train.data.table import Shards

    where = sharding.rows(sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}))
    for length in LENGTHS:
        at = folder / f"rows{length}"
        prepare(at, source, tokenizer, functools.partial(pack_documents, length=length), {"length": length})
        table = Shards(at)
        loader = Loader(table, batch)
        jax.block_until_ready(loader.device(0, where))
        reads = [seconds(functools.partial(loader.read, n)) for n in range(1, 200)]
        firsts = {}
        for n in (0, 1_000_000):  # from opening the folder
            opened = [seconds(functools.partial(_first, at, batch, n, where)) for _ in range(5)]
            firsts[f"first_batch_at_{n}_s"] = round(statistics.median(opened), 3)
        bench = Bench("tiny", batch, length, "float32", 30522, time.perf_counter())
        step = statistics.median([bench.take() for _ in range(12)][2:])
        read = statistics.median(reads)
        yield {
            "what": "loader", "length": length, "rows": len(table), "padding": round(table.report["padding"], 4),
            "read_s": round(read, 5), "rows_s": round(batch / read), "tiny_step_s": round(step, 3),
            "share_of_step": round(read / step, 4), **firsts,
        }  # fmt: skip


def _first(folder: Path, batch: int, n: int, where: Any) -> Any:
    from train.data.loader import Loader
    from train.data.table import Shards

    return Loader(Shards(folder), batch).device(n, where)


def finetuning(file: str, tokenizer: Any, size: str, batch: int = 32, steps: int = 40) -> Iterator[dict]:
    """Examples a second of a classifier's whole step on SST-2, by layout, steps taken in turn."""
    import jax

    from model import random
    from model.backbone import backbone
    from model.config import sized
    from objectives.classify import classify
    from train import build, loop, optimizer, schedule, sharding
    from train import step as training
    from train.data import source
    from train.data.layout import LAYOUTS
    from train.data.loader import prefetch
    from train.data.rows import label_examples
    from train.data.table import Memory
    from train.stage import Stage

    given = source.csv(file, text="sentence", label="label", delimiter="\t", limit=20_000)
    table = Memory(label_examples(given, tokenizer, 128, ("0", "1"), truncate=True).arrays)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    bb = backbone(sized(size, V=tokenizer.vocab.size), sharding.constrainer(mesh))
    objective = classify(bb, tokenizer.vocab, classes=2, pooling="mean")
    rates = schedule.linear(100_000, peak=1e-4)
    stages = {
        name: Stage(
            name=name, backbone=bb, objective=objective, vocab=tokenizer.vocab, rows=table, batch=batch, steps=10**9,
            optimizer=optimizer.adamw(training.axes(bb, objective), rates), schedule=rates, mesh=mesh, layout=name,
            learned=jax.tree.map(lambda _: True, build.shapes(bb, objective)),
        )
        for name in LAYOUTS
    }  # fmt: skip
    like = loop.shapes(stages["padded"])
    states = {name: loop.first_state(stage, like) for name, stage in stages.items()}
    batches = {
        name: prefetch(loop.loader_of(stage), 0, steps + 8, sharding.rows(mesh)) for name, stage in stages.items()
    }
    compiled: dict[tuple, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    positions = dict.fromkeys(LAYOUTS, 0)
    for n in range(steps + 8):
        for name, stage in stages.items():
            _, rows = next(batches[name])
            shape = rows["tokens"].shape, rows["labels"].shape
            if shape not in compiled:
                compiled[shape] = loop.lowered_step(stage, like, rows).compile()
            begun = time.perf_counter()
            states[name], sums = compiled[shape](states[name], rows, random.key(0))
            jax.block_until_ready((states[name], sums))
            if n >= 8:
                times[name].append(time.perf_counter() - begun)
                positions[name] += rows["tokens"].size
    for name in LAYOUTS:
        yield {
            "what": "finetune", "size": size, "layout": name, "examples_s": round(batch * steps / sum(times[name])),
            "positions_a_batch": round(positions[name] / steps), "tokens_a_batch": round(batch * table.sizes.mean()),
            "times_padded": round(sum(times["padded"]) / sum(times[name]), 2),
        }  # fmt: skip


def memory(source: Any, tokenizer: Any, gigabytes: float, folder: Path) -> Iterator[dict]:
    """The peak memory of preparing so many gigabytes: the source again and again, every 50th word another."""
    from train.data.tokenizer import save

    file, size, again = folder / "large.jsonl", 0, 0
    with open(file, "w") as out:
        while size < gigabytes * 1e9:
            for record in source:
                words = record.text.split(" ")
                words[again % 50 :: 50] = [f"{word}{again}" for word in words[again % 50 :: 50]]
                size += out.write(json.dumps({"text": " ".join(words)}) + "\n")
                if size >= gigabytes * 1e9:
                    break
            again += 1
    command = [
        sys.executable, "-m", "train.data.prepare", f"--source=jsonl:{file}", f"--tokenizer={save(tokenizer, folder)}",
        "--length=512", f"--out={folder / 'large'}",
    ]  # fmt: skip
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise ValueError(f"preparing {file} failed; see above")
    peak = usage.ru_maxrss / 2**20
    took = time.perf_counter() - begun
    report = json.loads((folder / "large" / "manifest.json").read_text())["report"]
    yield {
        "what": "memory", "corpus_gb": round(size / 1e9, 2), "peak_gb": round(peak, 2), "seconds": round(took),
        "tokens": report["tokens"], "tokens_s": round(report["tokens"] / took),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.bench_data", description=__doc__,
        epilog="example: python -m launch.bench_data --source='jsonl:wiki.jsonl.gz' --tokenizer=runs/wiki "
        "--sst2=SST-2/train.tsv --gigabytes=1 --out=data.json",
    )  # fmt: skip
    add = parser.add_argument
    add("--source", required=True, help="FORMAT:PATH of texts, as for train.data.prepare")
    add("--tokenizer", required=True, help="a tokenizer's file, or a workdir that keeps one")
    add("--sst2", help="GLUE's SST-2 train.tsv: finetuning in each layout")
    add("--size", default="tiny", help="of the backbone that is finetuned (default: %(default)s)")
    add("--gigabytes", type=float, default=0, help="prepare a made-up corpus of this size, and tell the peak memory")
    add("--rounds", type=int, default=5, help="of preparing, its peers in turn (default: %(default)s)")
    add("--out", help="write the lines as JSON to this file")
    args = parser.parse_args()
    from train import command
    from train.data.prepare import parse_source
    from train.data.tokenizer import load

    command.start_quickly()
    try:
        source, tokenizer = parse_source(args.source), load(args.tokenizer)
        table = []
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            parts = [preparing(source, tokenizer, args.rounds, folder)] if args.rounds else []
            parts += [loading(source, tokenizer, folder)]
            parts += [finetuning(args.sst2, tokenizer, args.size)] if args.sst2 else []
            parts += [memory(source, tokenizer, args.gigabytes, folder)] if args.gigabytes else []
            for part in parts:
                for line in part:
                    table.append(line)
                    print("  ".join(f"{k} {v}" for k, v in line.items()), flush=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.out:
        Path(args.out).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
