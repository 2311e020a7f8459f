"""One toy run, trained once: an mlm stage and a classifier of pairs, from files written for it."""

import importlib.util
import json
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from train import build

CONFIG = """
import ml_collections

def get_config():
    config = ml_collections.ConfigDict()
    documents = dict(factory="train.data.source:jsonl", path={data!r})
    config.stages = ("pretrain", "finetune")
    config.tokenizer = dict(factory="train.data.tokenizer:train_sentencepiece", source=documents, size=40,
                            byte_fallback=False)
    config.backbone = dict(size="tiny", D=32, F=64, max_length=64, scan=True)
    common = dict(optimizer=dict(factory="train.optimizer:adamw"), batch=8, seed=3, log_every=1,
                  schedule=dict(factory="train.schedule:linear", peak=1e-3))
    config.pretrain = dict(
        objective=dict(factory="objectives.mlm:mlm", rate=0.3),
        data=dict(factory="train.data.rows:pack_documents", source=documents, length=32, segments=4),
        steps=4, **common)
    pairs = dict(factory="train.data.rows:label_examples", length=32, classes=("no", "yes"), truncate=True,
                 source=dict(documents, pair="pair", label="label"))
    config.finetune = dict(
        objective=dict(factory="objectives.classify:classify", classes=2), data=pairs, evals=dict(dev=pairs),
        best="dev/accuracy", carry=dict(stage="pretrain"), steps=3, **common)
    return config
"""
WORDS = ["good", "bad", "film", "plot", "actor", "scene", "story", "music", "never", "always", "quite", "rather"]


class Toy(NamedTuple):
    """A workdir, the config file it was trained from, the config, the records of its data."""

    workdir: Path
    file: Path
    config: dict
    records: list[dict]


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Toy:
    from train.__main__ import run

    folder = tmp_path_factory.mktemp("toy")
    rng = random.Random(0)
    records = [
        {"text": " ".join(rng.choices(WORDS, k=rng.randint(2, 8))) + ".", "pair": rng.choice(WORDS),
         "label": rng.choice(["no", "yes"])} for _ in range(43)
    ]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    file = folder / "toy.py"
    file.write_text(CONFIG.format(data=str(folder / "data.jsonl")))
    spec = importlib.util.spec_from_file_location("toy_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = build.plain(module.get_config())
    run(config, folder / "run")
    return Toy(folder / "run", file, config, records)
