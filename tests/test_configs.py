"""Every file in configs/ builds, plans and takes a step, at toy size and on toy text."""

import gzip
import importlib
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
    for split in ("train", "dev"):
        text = "sentence1\tsentence2\tscore\n" + "".join(lines)
        (folder / "glue" / "STS-B" / f"{split}.tsv").write_text(text)
    chosen = [dict(question=t[:6], choices=[t[6:9], t[9:12], t[12:15]], label=i % 3) for i, t in enumerate(texts)]
    ranked = [line | dict(label=[0, 2, int(line["label"] == 0)]) for line in chosen]
    (folder / "ranked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ranked))
    labels = ("a", "b+c", "")
    (folder / "several.csv").write_text("text,label\n" + "".join(f"{t},{labels[i % 3]}\n" for i, t in enumerate(texts)))
    few = lambda text, split: text.split()[: 4 if split == "dev" else None]  # of what is scored nothing is cut
    (folder / "wnut17").mkdir()
    for split in ("train", "dev"):
        tagged = ("\n".join(f"{w}\t{'B-person' if i % 2 else 'O'}" for i, w in enumerate(few(t, split))) for t in texts)
        (folder / "wnut17" / f"{split}.conll").write_text("\n\n".join(tagged) + "\n")
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
                words = enumerate(few(text, split), 1)
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


_IMPORTED = "from={imported},stage=import,"
ARGUMENTS = {
    "contrastive_stsb": _IMPORTED,
    "finetune_choice": _IMPORTED + "train={data}/choices.jsonl,dev={data}/choices.jsonl",
    "finetune_classification": "from={pretrained},train={data}/labelled.csv,dev={data}/labelled.csv,length=24",
    "finetune_glue": _IMPORTED + "task=RTE,pooler=pooler",
    "finetune_squad": _IMPORTED + "data={data}/squad",
    "finetune_tag": _IMPORTED + "task=EWT",
}


def config_of(name: str, arguments: str = "", **folders: Path) -> dict:
    get_config = importlib.import_module(f"configs.{name}").get_config
    return build.plain(get_config(arguments.format(**folders)) if arguments else get_config())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_builds_plans_and_steps(file, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_DATA", str(data))
    if file.stem == "finetune_classification":
        pretraining = next(f for f in CONFIGS if f.stem == "pretrain_bert_base")
        first = shrunk(config_of(pretraining.stem))
        first |= dict(stages=("pretrain",), pretrain=first.pop("short"))
        first.pop("long")
        run(first, tmp_path / "pretrained")
    arguments = ARGUMENTS.get(file.stem, "")
    if "{imported}" in arguments:
        convert.import_(write_published(tmp_path / "bert", "bert-model"), tmp_path / "imported")
    folders = dict(imported=tmp_path / "imported", pretrained=tmp_path / "pretrained", data=data)
    config = config_of(file.stem, arguments, **folders)
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


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("contrastive_stsb", _IMPORTED + "close={data}/glue/STS-B/dev.tsv"),
        ("finetune_choice", _IMPORTED + "train={data}/ranked.jsonl,dev={data}/ranked.jsonl,most=3,rank=ndcg@10"),
        (
            "finetune_classification",
            _IMPORTED + "train={data}/several.csv,dev={data}/several.csv,classes=a|b|c,separator=+",
        ),
        ("finetune_glue", _IMPORTED + "task=STS-B"),
        ("finetune_tag", _IMPORTED + "task=WNUT,frozen=yes"),
    ],
)
def test_what_else_a_config_offers_builds(name, arguments, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_DATA", str(data))
    convert.import_(write_published(tmp_path / "bert", "bert-model"), tmp_path / "imported")
    config = shrunk(config_of(name, arguments, imported=tmp_path / "imported", data=data))
    (stage,) = build.stages(config)
    made = build.stage(config, stage, tmp_path / "run")
    assert len(made.rows) and made.best  # which is a metric of its evaluations, or it would not be built


def test_a_translator_grows_on_what_was_pretrained_with_a_decoder(data, tmp_path, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_DATA", str(data))
    first = shrunk(config_of("compare_objectives", "objective=t5"))
    run(first, tmp_path / "t5")
    config = shrunk(config_of("translate_multi30k", "from={t5}", t5=tmp_path / "t5"))
    config["translate"]["schedule"]["peak"] = 0.0
    trained = loop.fit(build.stage(config, "translate", tmp_path / "run"), tmp_path / "run").params
    held, _, _ = checkpoint.read_params(tmp_path / "t5/pretrain/checkpoints")
    jax.tree.map(np.testing.assert_array_equal, trained, held)


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
