"""Toys of several tests: rows, a recipe on made-up reviews, and the README's objective."""

import re
from functools import partial
from pathlib import Path

import jax
import numpy as np

from model import random
from model.types import Backbone
from objectives.types import Objective, Vocab
from train import step as training

V = 61
SPECIAL = (0, 1, 2, 3, 4)


def params_of(bb, objective=None, seed: int = 0):
    """Params of the tree's shapes, made on the host without a program: wide as if trained, no bias or scale alike."""
    make = bb.init if objective is None else partial(training.init, backbone=bb, objective=objective)
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        middle = float(jax.tree_util.keystr(path).endswith("['scale']"))
        return (middle + 0.2 * rng.standard_normal(x.shape)).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(make, random.generator(0)))


def pack(lengths: list[list[int]], length: int, segments: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows from a layout: for each row the numbers of the documents it holds.

    Document d has a length, tokens and labels that depend on d alone, so that two layouts of the same documents
    differ in nothing but where they lie. The documents of a row are a group.
    """
    B = len(lengths)
    out = dict(
        tokens=np.zeros((B, length), np.int32), segments=np.zeros((B, length), np.int32),
        positions=np.zeros((B, length), np.int32), types=np.zeros((B, length), np.int32),
        example=np.zeros((B, segments, 2), np.uint32), labels=np.zeros((B, segments), np.int32),
        group=np.zeros((B, segments), np.int32),
        tags=np.zeros((B, length), np.int32), answers=np.zeros((B, segments, 2), np.int32),
    )  # fmt: skip
    for b, documents in enumerate(lengths):
        at = 0
        for s, d in enumerate(documents):
            rng = np.random.default_rng((seed, d))
            n = int(rng.integers(5, 17))
            here = slice(at, at + n)
            out["tokens"][b, here] = [2, *rng.integers(5, V, n - 2), 3]
            out["segments"][b, here] = s + 1
            out["positions"][b, here] = np.arange(n)
            out["types"][b, here] = np.arange(n) >= n // 2
            out["example"][b, s] = (7, d)
            out["labels"][b, s] = rng.integers(0, 3)
            out["group"][b, s] = 1
            # new draws come last, so that those above stay as they were
            out["tags"][b, here] = [0, *rng.integers(0, 4, n - 2), 0]
            out["answers"][b, s] = np.sort(rng.integers(n // 2, n - 1, 2)) * rng.integers(0, 2)
            at += n
    return out


def readme() -> list[str]:
    """The README's Python, without the line that makes devices: tests have theirs."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    return [
        re.sub(r"^simulate\(.*\n", "", block, flags=re.M) for block in re.findall(r"```python\n(.*?)```", text, re.S)
    ]


def swapped(backbone: Backbone, vocab: Vocab, **hyperparameters) -> Objective:
    """The README's objective."""
    names: dict = {}
    exec(readme()[0], names)
    return names["swapped"](backbone, vocab, **hyperparameters)


WORDS = [
    "the", "a", "film", "story", "was", "is", "good", "bad", "great", "poor",
    "acting", "plot", "very", "not", "dull", "fun", "cast", "scene", "ending", "long",
]  # fmt: skip


def write_published(folder: Path, name: str) -> Path:
    """A published checkpoint of 40 embeddings, with a vocabulary of `WORDS`."""
    golden = Path(__file__).parent / "model" / "published" / "golden" / name
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((golden / file).read_bytes())
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    return folder


def write_reviews(path: Path, n: int = 300) -> None:
    rng = np.random.default_rng(0)
    rows = ["text\tlabel"]
    for _ in range(n):
        label = int(rng.integers(2))
        words = rng.choice(WORDS, int(rng.integers(4, 20))).tolist() + [("great", "dull")[label]] * 3
        rng.shuffle(words)
        rows.append(" ".join(words) + f"\t{('neg', 'pos')[1 - label]}")
    path.write_text("\n".join(rows) + "\n")


def config_of(folder: Path, **pretrain) -> dict:
    source = dict(factory="train.data.source:csv", path=str(folder / "reviews.tsv"), delimiter="\t")
    labelled = dict(factory="train.data.rows:label_examples", length=32, classes=("neg", "pos"), truncate=True)
    part = lambda lo, hi: dict(labelled, source=dict(source, label="label", split=(lo, hi)))
    common = dict(optimizer=dict(factory="train.optimizer:adamw"), batch=8, log_every=2)
    return dict(
        stages=("pretrain", "finetune"),
        tokenizer=dict(factory="train.data.tokenizer:train_sentencepiece", source=source, size=40, byte_fallback=False),
        backbone=dict(size="tiny", D=16, heads=2, F=32, max_length=64, scan=True),
        pretrain=dict(
            objective=dict(factory="objectives.mlm:mlm", rate=0.3),
            data=dict(factory="train.data.rows:pack_documents", source=source, length=32),
            schedule=dict(factory="train.schedule:constant", peak=3e-3), steps=8, save_every=4,
            mesh="data=2,tensor=2,fsdp=2",
            **common,
        ) | pretrain,
        finetune=dict(
            objective=dict(factory="objectives.classify:classify", classes=2, pooling="mean"),
            data=part(0.0, 0.8), evals=dict(dev=part(0.8, 1.0)), eval_every=20, best="dev/accuracy",
            schedule=dict(factory="train.schedule:constant", peak=3e-3), epochs=3, carry=dict(stage="pretrain"),
            **common,
        ),
    )  # fmt: skip
