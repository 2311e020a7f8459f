"""What a config can get wrong, said before anything compiles."""

import functools
import importlib
import json
import linecache
import os
import sys

import jax
import numpy as np
import pytest
from toys import config_of, pack, write_reviews
from vocabularies import BERT, WORDS

from model.backbone import backbone
from model.config import sized
from objectives.choose import choose
from objectives.classify import classify
from objectives.contrastive import contrastive
from objectives.mlm import mlm
from objectives.pairs import nsp, sop
from objectives.tag import tag
from objectives.types import Objective, Sums, Term
from train import build, checks
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
            dict(factory="objectives.rtd:rtd", generator="big"),
            r"pretrain.objective.generator='big': objectives.rtd:rtd takes dict\[str, .*Any\] \| None",
        ),
        (
            "pretrain.objective",
            dict(factory="objectives.seq2seq:translate"),
            r"seq2seq reads types, and these rows hold .* names the column of its second text by pair=\.$",
        ),
        (
            "pretrain.objective",
            dict(factory="objectives.contrastive:contrastive", positives="group"),
            "contrastive reads group, and these rows hold .* records of several texts",
        ),
        (
            "pretrain.objective",
            dict(mixture=dict(mlm=dict(factory="objectives.mlm:mlm", weight=0))),
            "pretrain.objective.mixture.mlm has weight=0: expected a number above 0",
        ),
        (
            "pretrain.objective",
            dict(mixture=dict(mlm=dict(factory="objectives.mlm:mlm", weight=True))),
            "mlm has weight=True: expected a number above 0",
        ),
        ("pretrain.objective", dict(mixture=(1, 2)), r"mixture=\(1, 2\): expected sections by name"),
        (
            "pretrain.objective",
            dict(mixture=dict(a=dict(factory="objectives.mlm:mlm", name="b", weight=1.0))),
            "mixture.a has name='b': a part is called as its key is",
        ),
        (
            "pretrain.objective",
            dict(
                mixture=dict(
                    mlm=dict(factory="objectives.mlm:mlm", weight=1.0),
                    nsp=dict(factory="objectives.pairs:nsp", weight=1.0),
                )
            ),
            "pretrain.data: nsp reads types",
        ),
        ("pretrain.objective", dict(factory="objectives.seq2seq:bart", span=20), "bart span=20: rows of 32 tokens"),
        (
            "pretrain",
            dict(
                objective=dict(factory="objectives.seq2seq:span_corruption", span=20, sentinels=8), backbone=dict(V=48)
            ),
            "span_corruption span=20: rows of 32 tokens have 10 in spans at rate=0.3",
        ),
        (
            "pretrain.objective",
            dict(factory="objectives.seq2seq:bart", permute=1.0, sentence=50),
            "spans of 50 tokens that change places do not fit rows of 32",
        ),
        (
            "pretrain.objective",
            dict(factory="objectives.denoise:denoise", mask=0.0, replace=0.0, shuffle=0.0),
            "hides nothing and moves nothing",
        ),
        (
            "pretrain.objective",
            dict(factory="objectives.mlm:mlm", unit="ngram", ngrams=((5,) * 33,)),
            "the shortest of the n-grams has 33 tokens, and a row has 32",
        ),
        ("pretrain.objective.rate", None, r"rate=None: objectives.mlm:mlm takes float \| Sequence\[float\]"),
        ("pretrain.objective.span", "3", "objective.span='3': objectives.mlm:mlm takes float"),
        ("pretrain.mesh", 8, "pretrain.mesh=8: train.build:Spec takes str"),
        ("backbone.layers", 1.5, "backbone.layers=1.5: model.config:BackboneConfig takes int"),
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
        (
            "pretrain.objective",
            dict(mixture=dict(mlm=dict(factory="objectives.mlm:mlm", weight=1)), alternate="no"),
            "objective.alternate='no': objectives.mixture:mix takes bool",
        ),
        ("pretrain.objective.name", "tokens", "the name 'tokens' is that of something else"),
        ("pretrain.objective.name", "loss", "the name 'loss' is that of something else"),
        ("pretrain.objective.name", "my mlm", "has a blank or a slash in it"),
        ("pretrain.objective.capacity", 0.0, "mlm capacity=0.0 is a share"),
        (
            "pretrain.objective",
            dict(factory="objectives.mlm:mlm", unit="span", span=50),
            "pretrain.data: mlm span=50 words do not fit rows of 32 tokens",
        ),
        (
            "pretrain",
            dict(objective=dict(factory="objectives.pairs:nsp"), data=dict(factory="train.data.rows:pair_sentences")),
            "nsp changes the second spans .* hold one pair",
        ),
        (
            "pretrain.objective",
            dict(factory="objectives.contrastive:contrastive", scores="mrr"),
            r"pretrain.objective.scores='mrr': objectives.contrastive:contrastive takes tuple\[str, ...\]",
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
        ("pretrain.steps", -5, "pretrain.steps=-5 must be at least 0"),
        ("pretrain.batch", 0, "pretrain.batch=0 must be at least 1"),
        ("pretrain.best", "dev/loss", "must be a metric of one of its evals"),
        ("pretrain.patience", 3, "patience=3 waits"),
        ("pretrain.patience", 0, "pretrain.patience=0 must be at least 1"),
        ("pretrain.keep", 0, "pretrain.keep=0 must be at least 1"),
        ("pretrain.log_every", 0, "pretrain.log_every=0 must be at least 1"),
        ("pretrain.save_every", 0, "pretrain.save_every=0 must be at least 1"),
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
            "multilabel reads any number of classes .* are a class each",
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


@pytest.mark.parametrize(
    "classes, says",
    [
        (("neg", "pos"), r"classes=\('neg', 'pos'\): objectives.classify:classify takes int"),
        (2.0, "finetune.objective.classes=2.0: objectives.classify:classify takes int"),
    ],
)
def test_classes_of_another_type(folder, tmp_path, classes, says):
    with pytest.raises(ValueError, match=says):
        build.stage(changed(config_of(folder), "finetune.objective.classes", classes), "finetune", tmp_path)


def test_labels_of_an_eval(folder, tmp_path):
    """Said before training, not after it."""
    config = config_of(folder)
    short = dict(config["pretrain"]["data"], length=8)
    spans = changed(config_of(folder), "pretrain.objective", dict(factory="objectives.mlm:mlm", unit="span", span=10))
    spans["pretrain"]["evals"] = dict(short=short)
    with pytest.raises(ValueError, match=r"pretrain\.evals\.short: mlm span=10 words do not fit rows of 8 tokens"):
        build.stage(spans, "pretrain", tmp_path / "spans")
    (tmp_path / "s.csv").write_text("text\n" + "a film\n" * 100 + "a film " * 30)
    source = dict(factory="train.data.source:csv", path=str(tmp_path / "s.csv"))
    spans["finetune"] |= dict(
        objective=dict(factory="objectives.mlm:mlm", unit="span", span=31), layout="padded", evals={}, best=None,
        data=dict(factory="train.data.rows:label_examples", source=source, length=32, truncate=True, classes=None),
    )  # fmt: skip
    build.stage(spans, "finetune", tmp_path / "spans")
    with pytest.raises(ValueError, match=r"finetune\.data: mlm span=31 words do not fit rows of (8|16|24) tokens"):
        build.stage(changed(spans, "finetune.layout", "bucketed"), "finetune", tmp_path / "spans")
    config["finetune"]["evals"]["dev"] |= dict(classes=None, source=dict(factory="train.data.source:csv", path="n.csv"))
    (tmp_path / "n.csv").write_text("text,label\na,0.5\nb,1\n")
    config["finetune"]["evals"]["dev"]["source"] |= dict(path=str(tmp_path / "n.csv"), label="label")
    with pytest.raises(ValueError, match=r"finetune\.evals\.dev: classify reads classes, and these labels are numbers"):
        build.stage(config, "finetune", tmp_path / "work")


@pytest.mark.parametrize("make", ["seq2seq:translate", "pairs:sop"])
def test_pairs_of_which_none_has_a_second_text(tmp_path, make):
    (tmp_path / "p.csv").write_text("text,pair\n" + "a film,\n" * 20)
    write_reviews(tmp_path / "reviews.tsv")
    source = dict(factory="train.data.source:csv", path=str(tmp_path / "p.csv"), pair="pair")
    data = dict(factory="train.data.rows:label_examples", source=source, length=32, classes=None)
    config = config_of(tmp_path)
    config["pretrain"] |= dict(objective=dict(factory=f"objectives.{make}"), data=data)
    with pytest.raises(ValueError, match="reads pairs, and in the 20 rows looked at each second text is empty"):
        build.stage(config, "pretrain", tmp_path / "work")


def test_contents_that_train_nothing_or_are_none_of_the_models(vocab):
    bb = backbone(sized("tiny", V=61, D=16, heads=2, types=2, max_length=64))
    rows = pack([[5, 0, 9], [1]], 48, 3)
    look = lambda objective, classes=None, rows=rows, bb=bb: checks.contents(
        bb, objective, rows, "dev", [classes] if not isinstance(classes, list) else classes
    )
    with pytest.raises(ValueError, match="dev: these rows have types up to 2, and the backbone embeds types=2"):
        look(classify(bb, vocab, classes=3), 3, rows=rows | {"types": 2 * rows["types"]})
    one = backbone(sized("tiny", V=61, D=16, heads=2, types=1, max_length=64))  # as RoBERTa, which reads pairs too
    for bb in (one, backbone(sized("tiny", V=61, D=16, heads=2, max_length=64))):
        look(classify(bb, vocab, classes=3), 3, bb=bb)
    with pytest.raises(ValueError, match="dev: these rows have class 2, counted from 0, and classify has 2 classes"):
        look(classify(bb, vocab, classes=2), 2, bb=bb)
    with pytest.raises(ValueError, match="dev: these rows have class 2, counted from 0, and tag has 2 classes"):
        look(tag(bb, vocab, classes=("a", "b")), ("a", "b"), bb=bb)
    with pytest.raises(ValueError, match="dev: choose chooses the texts that have a label above 0"):
        look(choose(bb, vocab), rows=rows | {"labels": 0 * rows["labels"]}, bb=bb)
    with pytest.raises(
        ValueError, match=r"dev: nsp changes the second spans .* each pair with one has a row to itself"
    ):
        look(nsp(bb, vocab), rows=pack([[5], [1], [2]], 48, 3), bb=bb)
    apart = (rows["types"] == 0) & (np.roll(rows["types"], -1, 1) == 1)
    once = np.where(apart, vocab.sep, rows["tokens"])
    look(sop(bb, vocab), rows=rows | {"tokens": once}, bb=bb)
    with pytest.raises(ValueError, match=r"dev: sop changes the order of spans .* prepare them by .*pair_sentences"):
        look(sop(bb, vocab), rows=rows | {"tokens": np.where(np.roll(apart, -1, 1), vocab.sep, once)}, bb=bb)
    near = contrastive(bb, vocab, positives="group")
    look(near, rows=rows, bb=bb)
    with pytest.raises(
        ValueError, match=r"dev: contrastive draws a text near .* no group has a second that is not emp"
    ):
        cut = np.where((rows["positions"] > 1) & (rows["segments"] > 1), 0, rows["segments"])
        look(near, rows=rows | {"segments": cut}, bb=bb)
    alike = rows | {"labels": np.ones_like(rows["labels"])}
    with pytest.raises(
        ValueError, match=r"dev: contrastive correlates its numbers with labels, .* these are all alike"
    ):
        checks.contents(bb, contrastive(bb, vocab, scores=("spearman",)), alike, "dev", [None], scored=True)


def _nothing(backbone, vocab, *, sizes: list[int] = None, texts: "B L D" = (), rate: float = 0.1):  # noqa: F722, RUF013
    raise AssertionError("not called")


@pytest.mark.parametrize("keys", [dict(sizes=[1, 2]), dict(sizes=None), dict(texts=3), dict(rate=np.float32(0.5))])
def test_values_that_fit_their_annotations_or_have_none_to_fit(keys):
    build.bind(build.plain(dict(factory=_nothing) | keys), "here", "backbone", "vocab")


def test_a_factory_that_takes_any_key():
    def any_key(backbone, vocab, **how):
        return how

    section = dict(factory=any_key, rate=0.2)
    assert build.bind(section, "here", "backbone", "vocab") == (any_key, dict(rate=0.2))
    assert build.call(section, "here", backbone=1, vocab=2) == dict(rate=0.2)


def test_a_list_of_other_things():
    with pytest.raises(ValueError, match=r"here.sizes=\('a',\): .*:_nothing takes list\[int\]"):
        build.bind(build.plain(dict(factory=_nothing, sizes=["a"])), "here", "backbone", "vocab")


def _objective(**changes):
    """A factory of an objective with one thing wrong."""

    def wrong(backbone, vocab, name="wrong"):
        def loss(params, encode, batch, key, step):
            x = encode(batch, key).hidden @ params[name]["w"]
            real = (batch["segments"] > 0).astype(np.float32)
            return Sums({name: Term((x * real).sum(), real.sum())})

        parts = dict(
            loss=loss, predict=lambda params, encode, batch, key=None: {}, axes={"w": ("embed",)},
            init=lambda key: {"w": jax.numpy.zeros(backbone.config.D)},
        )  # fmt: skip
        return Objective(name, **parts | {k: make(loss, name) for k, make in changes.items()})

    return wrong


def _a_scalar(loss, name):
    return lambda *given: loss(*given).terms[name].sum


def _by_row(loss, name):
    return lambda *given: Sums({name: Term(jax.numpy.zeros(4), 1.0)})


def _no_term(loss, name):
    return lambda *given: Sums({name: 0.0})


def _weighed_by_params(loss, name):
    def other(params, *given):
        (term,) = loss(params, *given).terms.values()
        return Sums({name: term._replace(weight=term.weight + params[name]["w"].sum())})

    return other


def _reads_what_is_not(loss, name):
    def predict(params, encode, batch, key=None):
        raise ValueError("predict is traced too")

    return predict


@pytest.mark.parametrize(
    "changes, says",
    [
        ({}, None),
        (dict(loss=_a_scalar), "wrong: its loss is a .*; expected objectives.types.Sums"),
        (dict(loss=_by_row), r"wrong: its term 'wrong' has arrays of shape \(4,\); expected sums"),
        (dict(loss=_no_term), "wrong: its term 'wrong' is no objectives.types.Term"),
        (dict(loss=_weighed_by_params), "the weight of a term depends on params, and must on the batch alone"),
        (dict(predict=_reads_what_is_not), "pretrain.data: predict is traced too"),
        (
            dict(says=lambda *_: "mask"),
            "wrong says 'mask', by which its .* prediction and .*, and there is no pred.* and no prob",
        ),
        (dict(says=lambda *_: "masks"), "wrong says 'masks'; expected one of '', 'pieces', 'class'"),
        (dict(axes=lambda *_: {}), r"wrong: init makes w \(16,\), and axes names none"),
        (dict(join=lambda loss, name: lambda params, outputs, batch: outputs), r"has a join, and its loss gives "),
    ],
)
def test_an_objective_of_ones_own(folder, tmp_path, changes, says):
    config = changed(config_of(folder), "pretrain.objective", dict(factory=_objective(**changes)))
    if says is None:
        build.stage(config, "pretrain", tmp_path)
        return
    with pytest.raises(ValueError, match=says):
        build.stage(config, "pretrain", tmp_path)


def test_a_factory_of_other_parameters(folder, tmp_path):
    config = changed(config_of(folder), "pretrain.objective", dict(factory=lambda b, v: None))
    with pytest.raises(ValueError, match=r"called with backbone and vocab, by these names, and takes no backbone"):
        build.stage(config, "pretrain", tmp_path)


def test_an_edited_objective_is_another(tmp_path, monkeypatch):
    """By its import path as by itself, comments aside; one that has only moved is the same."""
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()

    def of(module: str, body: str):
        (tmp_path / f"{module}.py").write_text(f"def mine(backbone, vocab):\n    {body}\n")
        linecache.checkcache()
        sys.modules.pop(module, None)
        made = build.spec(dict(
            stages=("a",), tokenizer={}, a=dict(
                objective=dict(factory=f"{module}:mine"), data={}, optimizer={}, schedule={}, batch=1, steps=1
            ),
        ), "a")  # fmt: skip
        return build.identity_of(made)["objective"]["factory"]

    first = of("my_one", "return 1")
    assert first == of("my_two", "return 1") == of("my_three", "return 1  # one")
    assert first != of("my_four", "return 2")


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


def test_the_shapes_of_a_batch_whose_factory_is_a_function(folder, vocab):
    config = config_of(folder)
    shapes = build.example_batch(build.spec(config, "pretrain"), "pretrain", vocab)
    config["pretrain"]["data"]["factory"] = build.load(config["pretrain"]["data"]["factory"])
    assert build.example_batch(build.spec(config, "pretrain"), "pretrain", vocab) == shapes


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
    late = changed(config, "pretrain.schedule", dict(factory="train.schedule:linear", peak=1.0, warmup=99))
    with pytest.raises(ValueError, match="warmup=99"):
        run(late, tmp_path / "fork", "pretrain", tmp_path / "run")
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
    assert was.startswith("mine (source ")
    assert made(defined(MINE)).identity["objective"]["factory"] == was
    assert made(defined(MINE.replace("0.3", "0.4"))).identity["objective"]["factory"] != was
    exec(MINE, names := {"__name__": "typed"})  # a function whose source is not kept has its name
    assert made(names["mine"]).identity["objective"]["factory"] == "typed:mine"
    assert mine.identity | dict(objective=0) == made("objectives.mlm:mlm").identity | dict(objective=0)


def test_rows_and_views_may_be_functions_too(folder, tmp_path):
    config = changed(config_of(folder), "pretrain.data.factory", pack_documents)
    stage = build.stage(changed(config, "pretrain.view", build.training.identity), "pretrain", tmp_path)
    assert stage.identity["data"]["factory"] == "train.data.rows:pack_documents"  # ours, as by its path
    assert stage.view is build.training.identity
    by_path = build.stage(config_of(folder), "pretrain", tmp_path).rows
    np.testing.assert_array_equal(stage.rows.read(np.arange(9))["tokens"], by_path.read(np.arange(9))["tokens"])


def test_simulated_devices_have_their_threads_and_order_before_they_are_made(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("NPROC")
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    found = []
    told = lambda: (os.environ.get("NPROC"), os.environ["XLA_FLAGS"])
    monkeypatch.setattr(jax, "process_count", lambda: found.append(told()) or 1)
    with pytest.raises(ValueError, match="warmup=99"):
        run(changed(config_of(folder), "pretrain.schedule", dict(factory="train.schedule:linear", peak=1.0, warmup=99)),
            tmp_path)  # fmt: skip
    assert found[0] == ("64", "--xla_one=1 --xla_cpu_enable_concurrency_optimized_scheduler=false")


def test_best_is_a_metric_before_anything_is_trained(tmp_path):
    write_reviews(tmp_path / "reviews.tsv")
    config = config_of(tmp_path)
    for best, says in (
        ("dev/acuracy", r"finetune\.best='dev/acuracy' is no metric .*did you mean 'dev/accuracy'\? They are dev/loss"),
        ("-dev/bleu", r"finetune\.best='-dev/bleu' is no metric .*BLEU and SQuAD's scores are of `launch.predict"),
    ):
        config["finetune"]["best"] = best
        with pytest.raises(ValueError, match=says):
            build.stage(config, "finetune", tmp_path / "work")
    for best in ("dev/matthews", "-dev/classify"):
        config["finetune"]["best"] = best
        assert build.stage(config, "finetune", tmp_path / "work").best == best


def test_a_command_line_turns_epochs_into_steps(folder):
    """Where no key can be taken away, 0 is as if it were absent."""
    config = config_of(folder)
    config["finetune"] |= dict(epochs=0.0, steps=100)
    made = build.spec(config, "finetune")
    assert (made.epochs, made.steps) == (None, 100)


def _twice(params):
    return jax.tree.map(lambda x: 2 * x, params)


def test_a_view_that_what_moves_params_by_itself_would_not_see(tmp_path):
    write_reviews(tmp_path / "reviews.tsv")
    config = config_of(tmp_path, view=_twice)
    assert build.stage(config, "pretrain", tmp_path / "work").view is _twice
    config["pretrain"]["objective"] = dict(factory="objectives.data2vec:data2vec", top=2)
    with pytest.raises(
        ValueError, match=r"pretrain\.view=.*test_build:_twice: data2vec moves params by itself \(after\)"
    ):
        build.stage(config, "pretrain", tmp_path / "work")
