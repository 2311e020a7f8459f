"""Published checkpoints into workdirs and back, and what was trained here into Hugging Face's layout."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toys import WORDS, write_published

from launch import convert, predict
from model.config import sized
from model.published import weights
from train import build, checkpoint
from train.__main__ import run as train
from train.data import tokenizer
from train.data.answers import answer_windows
from train.data.source import Record


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published") / "bert", "bert-formaskedlm")


def test_what_was_imported_leaves_bit_for_bit(published, tmp_path):
    convert.main(["import", f"--source={published}", f"--out={tmp_path / 'run'}"])
    convert.main(["export", f"--checkpoint={tmp_path / 'run' / 'import'}", f"--out={tmp_path / 'out'}"])
    want, got = (load_file(folder / "model.safetensors") for folder in (published, tmp_path / "out"))
    assert {name: x.tobytes() for name, x in want.items()} == {name: x.tobytes() for name, x in got.items()}
    assert json.loads((published / "config.json").read_text()) == json.loads((tmp_path / "out/config.json").read_text())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "run" / "tokenizer.json").read_bytes()


def test_an_imported_model_fills_masks(published, tmp_path):
    origin = convert.import_(published, tmp_path)
    assert origin["published"]["dtypes"].keys() == load_file(published / "model.safetensors").keys()
    trained = predict.load(tmp_path, "import")
    (said,) = predict.predict(trained, [Record("the film was [MASK] .", None, None, "here")])
    assert said["prediction"][0].keys() == {"piece", "probability"}


def test_an_imported_tagger_tags_words(tmp_path):
    folder, names = write_published(tmp_path / "bert", "bert-fortokenclassification"), ("NOUN", "VERB")
    told = json.loads((folder / "config.json").read_text()) | {"id2label": {"1": names[1], "0": names[0]}}
    (folder / "config.json").write_text(json.dumps(told))
    convert.import_(folder, tmp_path / "run")
    trained = predict.load(tmp_path / "run", "import")
    assert trained.objective.classes == names
    (said,) = predict.predict(trained, [Record("the film was great", None, None, "here")])
    assert [one["word"] for one in said["prediction"]] == ["the", "film", "was", "great"]
    assert {one["tag"] for one in said["prediction"]} <= set(names)


def test_an_imported_model_answers_questions_by_the_best_of_all_windows(tmp_path):
    """Against every pair of tokens in every window, laid out by hand."""
    convert.import_(write_published(tmp_path / "bert", "bert-forquestionanswering"), tmp_path / "run")
    trained = predict.load(tmp_path / "run", "import")
    trained.made.data.update(length=24, stride=7, question=4)
    rng = np.random.default_rng(0)
    records = [
        Record(" ".join(rng.choice(WORDS, 3)), "  ".join(rng.choice(WORDS, n)), None, f"f:{n}") for n in (5, 40, 16, 31)
    ]
    said = list(predict.predict(trained, records))
    (out,) = trained.params["answer"].values()
    for record, one in zip(records, said, strict=True):
        asked, context = trained.tokenizer.encode([record.text, record.pair])
        found = {}
        for start in range(0, len(context), 7):
            window = context[start : start + 24 - 6]
            tokens = np.array([2, *asked, 3, *window, 3])[None]
            batch = dict(
                tokens=tokens, segments=np.ones_like(tokens), positions=np.arange(tokens.size)[None],
                types=(np.arange(tokens.size) >= 5)[None].astype(np.int32), example=np.zeros((1, 1, 2), np.uint32),
            )  # fmt: skip
            hidden = trained.backbone.encode(trained.params["backbone"], batch).hidden[0]
            logits = (np.asarray(hidden) @ np.asarray(out["kernel"]) + np.asarray(out["bias"]))[5:-1]
            for i, j in np.ndindex(len(window), len(window)):
                if i <= j < i + 30:
                    found[start + i, start + j, start] = logits[i, 0] + logits[j, 1]
            if start + len(window) == len(context):
                break
        first, last, _ = max(found, key=found.__getitem__)
        assert one["prediction"] == "  ".join(record.pair.split()[first : last + 1])
        assert one["score"] == pytest.approx(max(found.values()), abs=1e-4)
    with pytest.raises(ValueError, match="here: import answers a question from a text: give it as the pair"):
        list(predict.predict(trained, [Record("the", None, None, "here")]))


def test_questions_without_an_answer(tmp_path):
    """Where [CLS] is the likelier, by the least of all windows, nothing is said."""
    convert.import_(write_published(tmp_path / "bert", "bert-forquestionanswering"), tmp_path / "run")
    trained = predict.load(tmp_path / "run", "import")
    trained.made.data.update(length=24, stride=7, question=4)
    rng = np.random.default_rng(0)
    records = [Record("the film", " ".join(rng.choice(WORDS, n)), None, "f:1") for n in (1, 1, 1, 2, 20, 30)]
    plain = list(predict.predict(trained, records))
    may = dict(trained.made.objective, unanswerable=True)
    trained = trained._replace(
        objective=build.load(may.pop("factory"))(trained.backbone, trained.tokenizer.vocab, **may)
    )
    encode = partial(trained.backbone.encode, trained.params["backbone"])
    said = []
    for record, always, may in zip(records, plain, predict.predict(trained, records), strict=True):
        windows = answer_windows([record], trained.tokenizer, 24, stride=7, question=4).arrays
        margin = always["score"] - float(trained.objective.predict(trained.params, encode, windows)["null"].min())
        assert may["score"] == pytest.approx(margin, abs=1e-4)
        assert may["prediction"] == (always["prediction"] if margin >= 0 else "")
        said.append(may["prediction"] != "")
    assert any(said) and not all(said)


def test_a_discriminator_is_trained_on_and_leaves_as_it_came(tmp_path):
    """At a rate of zero, after a step: what was carried is in its place, and so is what is exported."""
    published = write_published(tmp_path / "electra", "electra-forpretraining")
    convert.import_(published, tmp_path / "run")
    (tmp_path / "texts.csv").write_text("text\n" + "the film was good and the cast great\n" * 32)
    source = dict(factory="train.data.source:csv", path=str(tmp_path / "texts.csv"))
    stage = dict(
        objective=dict(factory="objectives.rtd:rtd", generator=dict(D=4, F=8)), batch=8, steps=1, mesh="data=8", 
        data=dict(factory="train.data.rows:pack_documents", source=source, length=16),
        carry=dict(checkpoint=str(tmp_path / "run" / "import"),
                   rules=(("(backbone/.*)", r"\1"), ("(rtd/(?:transform|out)/.*)", r"\1"))),
        optimizer=dict(factory="train.optimizer:adamw"),
        schedule=dict(factory="train.schedule:constant", peak=0.0),
    )  # fmt: skip
    config = dict(stages=("more",), tokenizer=dict(factory="train.data.tokenizer:load", path=str(tmp_path / "run")),
                  backbone=dict(checkpoint=str(tmp_path / "run" / "import")), more=stage)  # fmt: skip
    train(config, tmp_path / "more")
    convert.main(
        ["export", f"--checkpoint={tmp_path / 'more' / 'more'}", f"--out={tmp_path / 'out'}", "--family=electra"]
    )
    want, got = (load_file(folder / "model.safetensors") for folder in (published, tmp_path / "out"))
    assert want.keys() == got.keys()
    for name, x in want.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name)
    assert weights.read(tmp_path / "out").record["config"]["architectures"] == ["ElectraForPreTraining"]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_what_was_trained_here_is_read_again(toy, stage, tmp_path):
    convert.main(["export", f"--checkpoint={toy.workdir / stage}", f"--out={tmp_path / 'out'}"])
    params, origin, _ = checkpoint.read_params(toy.workdir / stage / "checkpoints")
    found = weights.read(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    theirs = found.record["config"]
    assert theirs["architectures"] == [
        {"pretrain": "BertForMaskedLM", "finetune": "BertForSequenceClassification"}[stage]
    ]
    assert theirs["pad_token_id"] == origin["special"]["pad"]
    if stage == "finetune":
        assert theirs["id2label"] == {"0": "no", "1": "yes"}
    assert (tmp_path / "out" / "tokenizer.model").is_file()
    facts = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (facts["mask_token"], facts["tokenizer_class"]) == ("[MASK]", "PreTrainedTokenizerFast")
    assert tokenizer.load(tmp_path / "out" / "tokenizer.json").vocab.size == origin["config"]["tokenizer"]["size"]
    with pytest.raises(ValueError, match="already; take another folder"):
        convert.export(toy.workdir / stage, tmp_path / "out")


def test_an_encoder_alone(toy, tmp_path):
    convert.main(["export", f"--checkpoint={toy.workdir / 'finetune'}", f"--out={tmp_path / 'out'}", "--heads="])
    found = weights.read(tmp_path / "out")
    assert found.params.keys() == {"backbone"}
    assert found.record["config"]["architectures"] == ["BertModel"]


@pytest.mark.parametrize(
    "objective, message",
    [
        (dict(factory="objectives.classify:classify", pooling="mean"), "which has pooling='mean'"),
        (dict(factory="objectives.classify:classify", activation="relu"), "which has activation='relu'"),
        (dict(factory="objectives.classify:multilabel", activation="relu"), "which has activation='relu'"),
        (dict(factory="objectives.mlm:mlm", softcap=30.0, name="classify"), "which has softcap=30.0"),
        (dict(mixture=dict(classify=dict(factory="objectives.mlm:mlm", softcap=30.0, weight=1.0))), "softcap=30.0"),
    ],
)
def test_a_head_that_the_family_has_otherwise(toy, tmp_path, monkeypatch, objective, message):
    params, origin, step = checkpoint.read_params(toy.workdir / "finetune" / "checkpoints")
    origin["config"]["finetune"]["objective"] = objective
    monkeypatch.setattr(checkpoint, "read_params", lambda *a: (params, origin, step))
    with pytest.raises(ValueError, match=message):
        convert.export(toy.workdir / "finetune", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--family=t5"], "t5: there is no such encoder with"),
        (["--heads=mlm"], "has no head mlm; it has classify"),
        (["--step=77"], "no checkpoint of step 77"),
    ],
)
def test_exports_that_cannot_be(toy, tmp_path, arguments, message):
    given = ["export", f"--checkpoint={toy.workdir / 'finetune'}", f"--out={tmp_path / 'out'}", *arguments]
    with pytest.raises(SystemExit, match=message):
        convert.main(given)
    assert not (tmp_path / "out").exists()


def test_imports_that_cannot_be(published, tmp_path):
    run = tmp_path / "run"
    convert.import_(published, run)
    with pytest.raises(SystemExit, match="holds a checkpoint already"):
        convert.main(["import", f"--source={published}", f"--out={run}"])
    (published / "vocab.txt").rename(tmp_path / "vocab.txt")
    try:
        with pytest.raises(SystemExit, match=r"has no tokenizer\.json, vocab\.txt, spm\.model or spiece\.model"):
            convert.main(["import", f"--source={published}", f"--out={tmp_path / 'other'}"])
        with pytest.raises(ValueError, match=r"spm\.model is neither a SentencePiece model nor"):
            (published / "spm.model").write_bytes(b"half of it")
            convert.import_(published, tmp_path / "other")
        trained = tokenizer.train_sentencepiece(
            [Record(" ".join(WORDS), None, None, "here")] * 9, 36, byte_fallback=False
        )
        (published / "spm.model").write_bytes(trained.file[1])
        convert.import_(published, tmp_path / "by spm")
        assert tokenizer.load(tmp_path / "by spm").vocab.fingerprint == trained.vocab.fingerprint
        more = (tmp_path / "vocab.txt").read_text() + "\n".join(f"w{i}" for i in range(40))
        (published / "vocab.txt").write_text(more)
        with pytest.raises(SystemExit, match=rf"the tokenizer has {25 + 40} ids, and the model embeddings of 40"):
            convert.main(["import", f"--source={published}", f"--out={tmp_path / 'other'}"])
    finally:
        (tmp_path / "vocab.txt").replace(published / "vocab.txt")
        (published / "spm.model").unlink()
    assert len(WORDS) == 20 and not (tmp_path / "other").exists()


def test_outputs_of_a_classifier(published, tmp_path):
    """One number is a regression, several that do not exclude each other have a probability each."""
    heads = {"one": dict(id2label={"0": "LABEL_0"}), "many": dict(problem_type="multi_label_classification")}
    for name, config in heads.items():
        folder = write_published(tmp_path / name, "bert-forsequenceclassification")
        if name == "one":
            held = load_file(folder / "model.safetensors")
            held |= {key: held[key][:1].copy() for key in ("classifier.weight", "classifier.bias")}
            save_file(held, folder / "model.safetensors")
        told = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(told))
        convert.import_(str(folder), str(tmp_path / "run" / name))
    trained = predict.load(tmp_path / "run" / "one", "import")
    (said,) = predict.predict(trained, [Record("the film was good", None, None, "here")])
    assert isinstance(said["prediction"], float)
    trained = predict.load(tmp_path / "run" / "many", "import")
    (said,) = predict.predict(trained, [Record("the film was good", None, None, "here")])
    assert said["prediction"] == [name for name, p in said["probabilities"].items() if p >= 0.5]
    assert abs(sum(said["probabilities"].values()) - 1) > 1e-3, "no softmax"


def test_tokenizers_are_not_overwritten(toy, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer_config.json").write_text("mine")
    with pytest.raises(ValueError, match=r"holds tokenizer_config\.json already; take another folder"):
        convert.export(toy.workdir / "finetune", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tokenizer_config.json"]
    with pytest.raises(SystemExit, match="model_type 'gpt2'; known are bert"):
        convert.main(["export", f"--checkpoint={toy.workdir / 'finetune'}", f"--out={tmp_path / 'b'}", "--family=gpt2"])


def test_options_that_are_one_function_are_one():
    mlm = dict(factory="objectives.mlm:mlm")
    gelu, relu = sized("tiny", V=9), sized("tiny", V=9, mlp="relu")
    assert convert._named("mlm", mlm, "roberta", gelu) == ("mlm", {})  # the layers' activation is the family's
    with pytest.raises(ValueError, match="roberta's mlm is not mlm's, which has activation='relu'"):
        convert._named("mlm", mlm, "roberta", relu)
    with pytest.raises(ValueError, match="bert's mlm is not mlm's, which has activation='relu'"):
        convert._named("mlm", mlm | dict(activation="relu"), "bert", gelu)
    classify = dict(factory="objectives.classify:classify", classes=2, activation="gelu", norm=True, pooling="mean")
    assert convert._named("classify", classify, "modernbert", gelu) == ("classify", {"classifier_pooling": "mean"})
    several = classify | dict(factory="objectives.classify:multilabel")
    told = {"classifier_pooling": "mean", "problem_type": "multi_label_classification"}
    assert convert._named("classify", several, "modernbert", gelu) == ("classify", told)
    tag = dict(factory="objectives.tag:tag", classes=("NOUN", "VERB"))
    named, told = convert._named("tag", tag, "bert", gelu)
    assert named == "tag" and told["id2label"] == {"0": "NOUN", "1": "VERB"}


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config.json", dict(id2label=["no", "yes"]), r"id2label=\['no', 'yes'\]; expected names by number"),
        ("config.json", dict(id2label={"no": 0}), "expected names by number"),
        ("config.json", dict(problem_type="regression"), "problem_type='regression' of 2 numbers"),
        ("config.json", dict(tokenizer_class="BertJapaneseTokenizer"), "a vocab.txt of a BertJapaneseTokenizer"),
        ("tokenizer_config.json", dict(split_by_punct=True), "rules that are not built here"),
        ("tokenizer_config.json", dict(word_tokenizer_type="mecab"), "rules that are not built here"),
        ("tokenizer_config.json", [], "is a list; expected an object"),
        ("added_tokens.json", {"[NEW]": 40, "[MASK]": 4}, r"adds tokens to its vocabulary \(\[NEW\]\)"),
        (
            "tokenizer_config.json",
            dict(added_tokens_decoder={"40": dict(content="[NEW]")}),
            r"adds tokens to its vocabulary \(\[NEW\]\)",
        ),
    ],
)
def test_facts_beside_the_weights_that_would_change_what_is_read(tmp_path, file, content, message):
    folder = write_published(tmp_path / "bert", "bert-forsequenceclassification")
    given = json.loads((folder / file).read_text()) | content if file == "config.json" else content
    (folder / file).write_text(json.dumps(given))
    with pytest.raises(SystemExit, match=message):
        convert.main(["import", f"--source={folder}", f"--out={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_case_than_is_said(published, tmp_path):
    folder = write_published(tmp_path / "bert", "bert-formaskedlm")
    (folder / "tokenizer.json").write_bytes(convert._tokenizer(published).file[1])
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(do_lower_case=False)))
    with pytest.raises(ValueError, match=r"lowercase=True, and .* do_lower_case=False"):
        convert.import_(folder, tmp_path / "run")


def test_a_t5_s_sentencepiece_model_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="t5")))
    (tmp_path / "spiece.model").write_bytes(b"pieces, and no sentinels")
    with pytest.raises(ValueError, match=r"a T5's spiece\.model, which lacks its 100 sentinels: put its tokenizer"):
        convert._tokenizer(tmp_path)


def test_params_in_float64_are_not_narrowed(published, tmp_path):
    with pytest.raises(SystemExit, match="JAX_ENABLE_X64=1"):
        convert.main(["import", f"--source={published}", f"--out={tmp_path / 'run'}", "--param_dtype=float64"])
    assert not (tmp_path / "run").exists()
