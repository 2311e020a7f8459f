"""What a config can get wrong, said before anything compiles."""

import functools
import json
import linecache
import os

import jax
import numpy as np
import pytest
from toys import config_of, write_reviews
from vocabularies import BERT, WORDS

from objectives.mlm import mlm
from train import build
from train.__main__ import run
from train.data import tokenizer as tokenizers
from train.data.loader import Loader
from train.data.rows import pack_documents


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    write_reviews(folder / "reviews.tsv")
    return folder


def merged(old, new):
    return {k: merged(old.get(k), new.get(k, old.get(k))) for k in old | new} if isinstance(old, dict) else new


def changed(config: dict, path: str, value) -> dict:
    *keys, last = path.split(".")
    at = config
    for key in keys:
        at = at[key]
    at[last] = merged(at[last], value) if path == "pretrain" else value
    return config


@pytest.mark.parametrize(
    "path, value, says",
    [
        ("pretrain.objective.rte", 0.1, r"no key 'rte'; did you mean 'rate'\?"),
        ("pretrain.batch_size", 8, r"no key 'batch_size'; did you mean 'batch'\?"),
        ("pretrain.backbone", dict(depth=3), "no key 'depth'"),
        ("stage", "x", r"no key 'stage'; did you mean 'stages'\?"),
        ("pretrain.objective", dict(rate=0.1), "needs a factory"),
        ("pretrain.objective", dict(factory="objectives.mlm:mml"), "no such factory as 'objectives.mlm:mml'"),
        ("pretrain.objective", dict(factory="objectives.classify:classify"), "lacks classes"),
        (
            "pretrain.objective",
            dict(factory=mlm, rte=1),
            r"\(objectives.mlm:mlm\) has no key 'rte'; did you mean 'rate'",
        ),
        (
            "pretrain.objective",
            dict(factory=functools.partial(mlm, rate=0.3)),
            "neither a function nor its import path",
        ),
        (
            "pretrain.objective",
            dict(factory="objectives.classify:classify", classes=2),
            "pretrain.data: classify reads labels, and these rows hold example, positions",
        ),
        ("pretrain.objective", dict(factory="objectives.pairs:sop"), "data: sop reads types, and these rows hold"),
        ("pretrain.objective", dict(factory="objectives.rtd:rtd", generator=dict(D=32)), "larger than its backbone"),
        (
            "pretrain.objective",
            dict(
                mixture=dict(
                    rtd_mlm=dict(factory="objectives.mlm:mlm", weight=1),
                    rtd=dict(factory="objectives.rtd:rtd", weight=1),
                )
            ),
            "mixture tell of rtd_mlm twice",
        ),
        ("pretrain.objective.name", "tokens", "the name 'tokens' is that of something else"),
        ("pretrain.objective.name", "my mlm", "has a blank or a slash in it"),
        ("pretrain.objective.capacity", 0.0, "mlm capacity=0.0 is a share"),
        (
            "pretrain.objective",
            dict(factory="objectives.mlm:mlm", unit="span", span=50),
            "pretrain: mlm span=50 words do not fit rows of 32 tokens",
        ),
        (
            "pretrain",
            dict(objective=dict(factory="objectives.pairs:nsp"), data=dict(factory="train.data.rows:pair_sentences")),
            "nsp changes the second spans .* hold one pair",
        ),
        (
            "pretrain.objective",
            dict(factory="objectives.contrastive:contrastive", scores="mrr"),
            "the score 'm' is unknown; there are accuracy",
        ),
        (
            "backbone.max_length",
            16,
            r"pretrain.data: its longest text has \d+ tokens, and the backbone has max_length=16: make the rows",
        ),
        ("backbone.heads", 3, "D=16 must be divisible by heads=3"),
        ("pretrain.mesh", "data=3", "needs 3 devices, and there are 8"),
        ("pretrain.mesh", "model=8", "'model=8' must be one of data, fsdp, tensor"),
        ("pretrain.batch", 10, "batch of 10 rows does not divide into 1 microbatches over 4 devices"),
        ("pretrain.epochs", 2, "either steps or epochs"),
        ("pretrain.best", "dev/loss", "must be a metric of one of its evals"),
        ("pretrain.patience", 3, "patience=3 waits"),
        ("pretrain.learned", (("backbone/lyers/.*", False),), "matches no parameter"),
        ("pretrain.learned", (("backbone/layers/.*", (True,)),), "gives 1 values, one a layer"),
        ("pretrain.schedule", dict(factory="train.schedule:linear", peak=1.0, warmup=99), "warmup=99 must lie"),
        ("pretrain.data.source.path", "gone.tsv", "gone.tsv"),
        ("tokenizer.size", 4000, "size"),
    ],
)
def test_said_before_anything_runs(folder, tmp_path, path, value, says):
    with pytest.raises(ValueError, match=says):
        build.stage(changed(config_of(folder), path, value), "pretrain", tmp_path)


@pytest.mark.parametrize(
    "path, value, says",
    [
        ("finetune.data.classes", ("neg", "positive"), "label 'pos' is not among"),
        (
            "finetune.objective.classes",
            3,
            r"finetune.objective has classes=3, and finetune.data has 2: neg, pos",
        ),
        (
            "finetune.objective",
            dict(factory="objectives.regress:regress"),
            "regress reads a number each, and these labels are classes",
        ),
        (
            "finetune.objective",
            dict(factory="objectives.classify:multilabel", classes=2),
            "classify reads any number of classes .* are a class each",
        ),
        ("finetune.data.truncate", False, "set truncate=True or length="),
        ("finetune.carry", dict(), "either stage or checkpoint"),
        ("finetune.carry", dict(stge="pretrain"), "did you mean 'stage'"),
    ],
)
def test_of_finetuning(folder, tmp_path, path, value, says):
    config = changed(config_of(folder), path, value)
    config["finetune"]["data"]["length"] = 16
    with pytest.raises(ValueError, match=says):
        build.stage(config, "finetune", tmp_path)


def test_no_such_stage(folder, tmp_path):
    with pytest.raises(ValueError, match="no stage 'tune'; its stages are pretrain, finetune"):
        build.stage(config_of(folder), "tune", tmp_path)


def half(config: dict, low: float, high: float) -> dict:
    data = config["pretrain"]["data"]
    return dict(data, source=dict(data["source"], split=(low, high)))


def test_a_mixture_and_rows_that_are_prepared_already(folder, tmp_path):
    alone = build.stage(config_of(folder), "pretrain", tmp_path)
    prepared = dict(prepared=str(alone.rows.folder))
    config = config_of(folder)
    parts = dict(all=dict(prepared, weight=0.75), half=dict(half(config, 0, 0.5), weight=0.25))
    stage = build.stage(changed(config, "pretrain.data", dict(mixture=parts)), "pretrain", tmp_path)
    numbers = np.concatenate([Loader(stage.rows, 8).index(n) for n in range(5)])
    assert (numbers < len(alone.rows)).sum() == 30
    assert (
        build.example_batch(build.spec(config, "pretrain"), "pretrain", stage.vocab).keys()
        == alone.rows.read(np.arange(1)).keys()
    )
    assert stage.identity != alone.identity


@pytest.mark.parametrize(
    "data, says",
    [
        (dict(), "pretrain.data lacks a source, or the folder of prepared rows, or a mixture"),
        (dict(mixture=dict(a=dict(prepared="x"))), r"pretrain\.data\.mixture\.a lacks a weight"),
        (dict(mixture=dict(a=dict(mixture={}, weight=1))), r"mixture\.a is a mixture itself"),
        (dict(prepared="gone"), "gone holds no prepared rows"),
        (dict(prepared="gone", length=3), "pretrain.data has no key 'length'"),
    ],
)
def test_data_that_cannot_be(folder, tmp_path, data, says):
    with pytest.raises(ValueError, match=says):
        build.stage(changed(config_of(folder), "pretrain.data", data), "pretrain", tmp_path)


def test_rows_of_another_tokenizer_are_refused(folder, tmp_path):
    alone = build.stage(config_of(folder), "pretrain", tmp_path / "one")
    other = changed(config_of(folder), "tokenizer.size", 45)
    with pytest.raises(ValueError, match=r"prepared with another tokenizer \(fingerprint .*Prepare again, or load"):
        build.stage(
            changed(other, "pretrain.data", dict(prepared=str(alone.rows.folder))), "pretrain", tmp_path / "two"
        )


def test_another_file_under_the_same_name_is_another_experiment(tmp_path):
    write_reviews(tmp_path / "reviews.tsv")
    before = build.stage(config_of(tmp_path), "pretrain", tmp_path / "work").identity
    with open(tmp_path / "reviews.tsv", "a") as file:
        file.write("one more good film\tpos\n")
    assert build.stage(config_of(tmp_path), "pretrain", tmp_path / "work").identity != before


def test_an_objective_is_what_its_files_hold(tmp_path, monkeypatch):
    write_reviews(tmp_path / "reviews.tsv")
    monkeypatch.setenv("LISTS", str(tmp_path))
    with_list = dict(factory="objectives.mlm:mlm", unit="ngram", ngrams="$LISTS/ngrams.txt")
    config = changed(config_of(tmp_path), "pretrain.objective", with_list)
    seen = []
    for ids in ("10 11", "10 11", "10 12"):
        (tmp_path / "ngrams.txt").write_text(ids)
        seen.append(build.stage(config, "pretrain", tmp_path / "work").identity["objective"]["ngrams"])
    assert seen[0] == seen[1] != seen[2]


def test_a_tokenizer_is_kept_whatever_it_is(folder, tmp_path):
    """Found in its workdir ever after, options included; and from there by another workdir, and by a fork."""
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, *WORDS]))
    section = dict(factory="train.data.published:load_wordpiece", path=str(tmp_path / "vocab.txt"), lowercase=False)
    config = config_of(folder) | dict(tokenizer=section)
    made = build.tokenizer(config, tmp_path / "run")
    (tmp_path / "vocab.txt").unlink()
    again = build.tokenizer(config, tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["tokenizer.json"]
    assert again.vocab.fingerprint == made.vocab.fingerprint
    assert again.pieces(again.encode(["H h"])[0]) == ["H", "h"]
    there = dict(tokenizer=dict(factory="train.data.tokenizer:load", path=str(tmp_path / "run")))
    assert build.tokenizer(config | there, tmp_path / "other").file == made.file
    assert tokenizers.find(tmp_path / "other") == tmp_path / "other/tokenizer.json"
    with pytest.raises(ValueError, match="no key 'lower'; did you mean 'lowercase'"):
        run(config | dict(tokenizer=section | dict(lower=True)), tmp_path / "fork", "pretrain", tmp_path / "run")
    assert tokenizers.load(tmp_path / "fork").file == made.file


def test_a_plan_knows_a_loaded_tokenizer(folder, tmp_path):
    tokenizers.save(made := build.call(config_of(folder)["tokenizer"], "tokenizer"), tmp_path)
    section = dict(factory="train.data.tokenizer:load", path=str(tmp_path))
    assert build.stand_in_vocab(dict(tokenizer=section)).fingerprint == made.vocab.fingerprint


def defined(text: str, name: str = "mine"):
    """The function of a text, its source kept as a notebook keeps a cell's."""
    file = f"<cell {hash(text)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names: dict = {"__name__": "notebook"}
    exec(compile(text, file, "exec"), names)
    return names[name]


MINE = """
def mine(backbone, vocab, *, rate=0.3):
    from objectives.mlm import mlm
    return mlm(backbone, vocab, rate=rate)
"""


def test_a_function_stands_where_its_import_path_may(folder, tmp_path):
    def made(factory, **more):
        return build.stage(config_of(folder, objective=dict(factory=factory, **more)), "pretrain", tmp_path)

    mine = made(defined(MINE), rate=0.2)
    assert mine.objective.name == "mlm"
    written = json.loads(json.dumps(mine.provenance | dict(identity=mine.identity)))
    assert written["config"]["pretrain"]["objective"] == dict(factory="notebook:mine", rate=0.2)
    was = written["identity"]["objective"]["factory"]
    assert was.startswith("notebook:mine (source ")
    assert made(defined(MINE)).identity["objective"]["factory"] == was
    assert made(defined(MINE.replace("0.3", "0.4"))).identity["objective"]["factory"] != was
    exec(MINE, names := {"__name__": "typed"})  # a function whose source is not kept has its name
    assert made(names["mine"]).identity["objective"]["factory"] == "typed:mine"
    assert mine.identity | dict(objective=0) == made("objectives.mlm:mlm").identity | dict(objective=0)


def test_rows_and_views_may_be_functions_too(folder, tmp_path):
    config = changed(config_of(folder), "pretrain.data.factory", pack_documents)
    stage = build.stage(changed(config, "pretrain.view", build.training.identity), "pretrain", tmp_path)
    assert stage.identity["data"]["factory"].startswith("train.data.rows:pack_documents (source ")
    assert stage.view is build.training.identity
    by_path = build.stage(config_of(folder), "pretrain", tmp_path).rows
    np.testing.assert_array_equal(stage.rows.read(np.arange(9))["tokens"], by_path.read(np.arange(9))["tokens"])


def test_simulated_devices_have_their_threads_and_order_before_they_are_made(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("NPROC")
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    found = []
    told = lambda: (os.environ.get("NPROC"), os.environ["XLA_FLAGS"])
    monkeypatch.setattr(jax, "process_index", lambda: found.append(told()) or 0)
    with pytest.raises(ValueError, match="warmup=99"):
        run(changed(config_of(folder), "pretrain.schedule", dict(factory="train.schedule:linear", peak=1.0, warmup=99)),
            tmp_path)  # fmt: skip
    assert found[0] == ("64", "--xla_one=1 --xla_cpu_enable_concurrency_optimized_scheduler=false")
