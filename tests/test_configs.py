"""Every file in configs/ builds, plans and takes a step, at toy size and on toy text."""

import gzip
import importlib.util
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import WORDS, write_published

from launch import convert
from launch.plan import plan
from train import build, checkpoint, loop, tree
from train.__main__ import run

CONFIGS = sorted(p for p in (Path(__file__).parents[1] / "configs").glob("*.py") if p.stem != "__init__")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder like $ROOTSTOCK_DATA, with a few dozen texts in each file."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(5, 60)))) for _ in range(60)]
    (folder / "pretrain").mkdir()
    for name in ("wiki_train", "wiki_valid", "books_train"):
        with gzip.open(folder / "pretrain" / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": t}) + "\n" for t in texts)
    table = "text,label\n" + "".join(f"{t},{i % 2}\n" for i, t in enumerate(texts))
    (folder / "labelled.csv").write_text(table)
    (folder / "multi30k").mkdir()
    for split, end in itertools.product(("train", "val"), ("en", "de")):
        with gzip.open(folder / "multi30k" / f"{split}.{end}.gz", "wt") as file:
            file.writelines(f"{t[:30].strip()}\n" for t in texts)
    (folder / "glue" / "RTE").mkdir(parents=True)
    lines = [f"{i}\t{t[:30]}\t{t[30:60]}\t{'not_' * (i % 2)}entailment\n" for i, t in enumerate(texts)]
    for split in ("train", "dev"):
        (folder / "glue" / "RTE" / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "".join(lines))
    (folder / "glue" / "STS-B").mkdir()
    lines = [f"{t[:20]}\t{t[20:40]}\t{i % 6}.0\n" for i, t in enumerate(texts)]
    (folder / "glue" / "STS-B" / "dev.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(lines))
    chosen = [dict(question=t[:6], choices=[t[6:9], t[9:12], t[12:15]], label=i % 3) for i, t in enumerate(texts)]
    (folder / "choices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chosen))
    (folder / "squad").mkdir()
    asked = lambda t: {"question": t[:9], "answers": [{"text": t[20:24], "answer_start": 20}]}
    paragraphs = [{"context": t, "qas": [asked(t)]} for t in texts if len(t) > 24]
    for split in ("train", "dev"):
        (folder / "squad" / f"{split}-v1.1.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    (folder / "ud_ewt").mkdir()
    for split in ("train", "dev"):
        with gzip.open(folder / "ud_ewt" / f"{split}.conllu.gz", "wt") as file:
            for text in texts:
                words = enumerate(text.split(), 1)
                file.writelines(f"{i}\t{w}\t_\t{('NOUN', 'VERB')[i % 2]}" + "\t_" * 6 + "\n" for i, w in words)
                file.write("\n")
    return folder


def shrunk(config: dict) -> dict:
    """The same config with everything that takes time made small."""
    for name in build.stages(config):
        stage = config[name]
        for part in (stage["data"], *stage.get("evals", {}).values()):
            part["length"] = min(part["length"], 24)
            if part["factory"].endswith(":answer_windows"):
                part["question"] = 8
            if str(part["source"]["path"]).startswith("package:"):
                part["source"]["limit"] = 24
        stage |= dict(
            batch=8,
            steps=1,
            epochs=None,
            microbatches=min(2, stage.get("microbatches", 1)),
            mesh="data=2,fsdp=2,tensor=2",
        )
        stage["schedule"] |= dict(warmup=0)
        stage["mesh"] = "data=1,fsdp=2,tensor=4" if stage["microbatches"] == 2 else stage["mesh"]
    if "size" in config["tokenizer"]:
        config["tokenizer"] |= dict(size=40, byte_fallback=False)
        source = config["tokenizer"]["source"]
        if str(source["path"]).startswith("package:"):  # real text has more characters than the toys'
            source["limit"] = 24
            config["tokenizer"]["size"] = 300
    if "size" in config["backbone"]:
        config["backbone"] |= dict(D=16, heads=4, F=16, layers=2, dtype="float32", scan=True)
    return config


def config_of(file: Path, data: Path, tmp_path: Path) -> dict:
    specification = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if file.stem == "finetune_glue":
        return build.plain(module.get_config(f"task=RTE,from={tmp_path / 'imported'},stage=import,pooler=pooler"))
    if file.stem == "contrastive_stsb":
        return build.plain(module.get_config(f"from={tmp_path / 'imported'},stage=import"))
    if file.stem == "finetune_tag":
        return build.plain(module.get_config(f"task=EWT,from={tmp_path / 'imported'},stage=import"))
    if file.stem == "finetune_choice":
        chosen = ",".join(f"{split}={data / 'choices.jsonl'}" for split in ("train", "dev"))
        return build.plain(module.get_config(f"from={tmp_path / 'imported'},stage=import,{chosen}"))
    if file.stem == "finetune_squad":
        return build.plain(module.get_config(f"data={data / 'squad'},from={tmp_path / 'imported'},stage=import"))
    if file.stem != "finetune_classification":
        return build.plain(module.get_config())
    table = data / "labelled.csv"
    return build.plain(module.get_config(f"from={tmp_path / 'pretrained'},train={table},dev={table},length=24"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_builds_plans_and_steps(file, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_DATA", str(data))
    if file.stem == "finetune_classification":
        pretraining = next(f for f in CONFIGS if f.stem == "pretrain_bert_base")
        first = shrunk(config_of(pretraining, data, tmp_path))
        first |= dict(stages=("pretrain",), pretrain=first.pop("short"))
        first.pop("long")
        run(first, tmp_path / "pretrained")
    if file.stem in ("finetune_glue", "finetune_tag", "finetune_squad", "finetune_choice", "contrastive_stsb"):
        convert.import_(write_published(tmp_path / "bert", "bert-model"), tmp_path / "imported")
    config = config_of(file, data, tmp_path)
    if of_checkpoint := "size" not in config["backbone"]:  # the checkpoint is a toy
        config = shrunk(config)
    for name in build.stages(config):
        assert plan(config, name, "data=8" if of_checkpoint else "tensor=16")["totals"]["parameters"] > 1000
    config = shrunk(config)
    # arms that differ in seed alone are one
    names = [n for n in build.stages(config) if not n.endswith(("_1", "_2"))]
    for name in names:
        state = loop.fit(build.stage(config, name, tmp_path / "run"), tmp_path / "run")
        assert int(state.step) == 1
        assert checkpoint.steps_in(tmp_path / "run" / name / "checkpoints") == [1]


def test_every_config_documents_its_run():
    for file in CONFIGS:
        first = file.read_text().partition('"""\n\nimport')[0]
        assert "python -m " in first or "make " in first, file


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_squad_goes_on_from_a_published_head(family, data, tmp_path):
    convert.import_(write_published(tmp_path / "qa", f"{family}-forquestionanswering"), tmp_path / "imported")
    module = importlib.import_module("configs.finetune_squad")
    config = module.get_config(f"data={data / 'squad'},from={tmp_path / 'imported'},stage=import,head=yes")
    config.finetune.schedule.peak = 0.0  # the params stay what they were taken for
    config = shrunk(build.plain(config))
    trained = loop.fit(build.stage(config, "finetune", tmp_path / "run"), tmp_path / "run").params["answer"]
    held, _, _ = checkpoint.read_params(tmp_path / "imported" / "import" / "checkpoints")
    assert len(tree.leaves(held["answer"])) == {"bert": 2, "modernbert": 4}[family]
    jax.tree.map(np.testing.assert_array_equal, trained, held["answer"])
