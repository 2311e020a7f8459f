"""Predictions come in the order of the texts, are those of each text alone, and carry the config's names of classes."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
import toys
from vocabularies import FAMILIES, published

from launch import predict as predicting
from launch.predict import evaluations, load, main, predict
from launch.texts import Masking, read, record
from model.backbone import backbone
from objectives.causal import causal
from objectives.choose import choose
from objectives.data2vec import data2vec
from objectives.diffusion import diffusion
from objectives.mixture import mix
from objectives.mlm import mlm
from objectives.pairs import sop
from objectives.rtd import rtd
from objectives.seq2seq import span_corruption, translate
from train import build
from train.data.rows import label_examples


@pytest.fixture(scope="module")
def finetuned(toy):
    return load(toy.workdir, "finetune")


@pytest.fixture(scope="module")
def pretrained(toy):
    return load(toy.workdir, "pretrain")


def outputs(trained, records):
    """The objective's own outputs, text by text, with no rows of padding."""

    @jax.jit
    def run(params, batch):
        return trained.objective.predict(params, partial(trained.backbone.encode, params["backbone"]), batch)

    for one in records:
        length = trained.made.data["length"]
        arrays = label_examples([one], Masking(trained.tokenizer), length, None, truncate=True).arrays
        yield arrays["tokens"][0], jax.device_get(run(jax.device_get(trained.params), arrays))


def test_classes_come_in_the_order_of_the_texts(toy, finetuned):
    records = [record(r["text"], r["pair"], "t") for r in toy.records[:19]]
    said = list(predict(finetuned, records))
    assert [(s["text"], s["pair"]) for s in said] == [(r.text, r.pair) for r in records]
    for one, (_, expected) in zip(said, outputs(finetuned, records), strict=True):
        shares = expected["probabilities"][0, 0]
        assert list(one["probabilities"]) == ["no", "yes"]
        np.testing.assert_allclose(list(one["probabilities"].values()), shares, atol=2e-6)
        assert one["prediction"] == ("no", "yes")[shares.argmax()]
    assert len({one["probabilities"]["no"] for one in said}) > 10, "texts must differ for their order to be seen"


def test_masks_are_filled(pretrained):
    records = [record(text, None, "t") for text in ("good [MASK].", "[MASK] never [MASK][MASK]", "the [MASK]")]
    said = list(predict(pretrained, records))
    assert [len(one["prediction"]) for one in said] == [1, 3, 1]
    mask = pretrained.tokenizer.vocab.mask
    for one, (tokens, expected) in zip(said, outputs(pretrained, records), strict=True):
        at = np.flatnonzero(tokens == mask)
        assert len(at) == len(one["prediction"])
        pieces = pretrained.tokenizer.pieces(expected["prediction"][0, at])
        assert [p["piece"] for p in one["prediction"]] == pieces
        found = [p["probability"] for p in one["prediction"]]
        np.testing.assert_allclose(found, expected["probability"][0, at], atol=2e-6)


@pytest.mark.parametrize("text", ["{}.", "{} rather", "rather {}", "{} {}", "rather"])
def test_a_text_with_masks_is_tokenized_as_without(toy, pretrained, text):
    tokenizer = pretrained.tokenizer
    words = {w for r in toy.records for w in r["text"].rstrip(".").split()} - {"rather"}
    word = next(w for w in sorted(words) if len(tokenizer.encode([w])[0]) == 1)
    (expected,) = tokenizer.encode([text.replace("{}", word)])
    (found,) = Masking(tokenizer).encode([text.replace("{}", "[MASK]")])
    np.testing.assert_array_equal(found, np.where(expected == tokenizer.encode([word])[0], 4, expected))
    assert (found == 4).sum() == text.count("{}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["the {} the", "the {}.", "the {},the {} {}", "the {}\n{}"])
def test_masks_in_texts_for_published_tokenizers(family, text):
    tokenizer = published(family)
    cat = tokenizer.encode(["the cat"])[0][-1]
    (expected,) = tokenizer.encode([text.replace("\n", " ").replace("{}", "cat")])
    (found,) = Masking(tokenizer).encode([text.replace("{}", "[MASK]")])
    np.testing.assert_array_equal(found, np.where(expected == cat, tokenizer.vocab.mask, expected))
    assert (found == tokenizer.vocab.mask).sum() == text.count("{}")


def trained_by(trained, factory, **arguments):
    """The stage with an objective in place of its own, as it begins."""
    objective = factory(trained.backbone, trained.tokenizer.vocab, **arguments)
    params = trained.params | {objective.name: objective.init(jax.random.key(1))}
    if objective.begin:
        params = objective.begin(params)
    return trained._replace(objective=objective, params=params)


def test_every_mask_is_filled(pretrained):
    """By words of a text that is else as it was; one seed draws alike, wherever a text stands, another otherwise."""
    trained = trained_by(pretrained, diffusion, steps=4)
    texts = ["good [MASK].", "[MASK] never [MASK][MASK] film", "the " + "[MASK] " * 9]
    records = [*(record(text, None, "t") for text in texts), record("bad [MASK]", "[MASK] plot", "t")]
    likeliest, *drawn = ([one["prediction"] for one in predict(trained, records, seed=s)] for s in (None, 1, 1, 2))
    for first, *other, pair in (likeliest, *drawn):
        assert first.startswith("good") and "never" in other[0] and other[0].endswith("film")
        assert pair[0].startswith("bad") and pair[1].endswith("plot")
        assert not any("[" in text for text in (first, *other, *pair))
    assert drawn[0] == drawn[1] != drawn[2]
    assert likeliest[2] != drawn[0][2] != drawn[2][2]
    assert next(predict(trained, records[:1]))["prediction"] == likeliest[0]
    with pytest.raises(ValueError, match=r"t: no \[MASK\] to fill"):
        list(predict(trained, [record("good film", None, "t")]))
    with pytest.raises(ValueError, match="pretrain draws nothing, and takes no seed"):
        list(predict(pretrained, records, seed=1))


@pytest.mark.parametrize("factory", [causal, rtd, partial(data2vec, top=2)], ids=["causal", "rtd", "data2vec"])
def test_arrays_of_tokens(pretrained, factory):
    """A number or a piece for each piece of the text, and none for padding."""
    trained = trained_by(pretrained, factory)
    records = [record(text, None, "t") for text in ("good film.", "the plot was never bad")]
    said = list(predict(trained, records))
    for one, (tokens, expected) in zip(said, outputs(trained, records), strict=True):
        pieces = trained.tokenizer.pieces(tokens[tokens > 0])
        assert one["pieces"] == pieces and pieces[0] == "[CLS]" and pieces[-1] == "[SEP]"
        assert one.keys() - {"text", "pieces"} == expected.keys()
        for name, x in expected.items():
            x = x[0, : len(pieces)]
            if x.dtype == np.int32:
                assert one[name] == trained.tokenizer.pieces(x)
            else:
                np.testing.assert_allclose(one[name], x, atol=5e-6)


def test_an_objective_of_ones_own_says_numbers(pretrained):
    """The README's, which knows nothing of this command; a text may hold a [MASK]."""
    trained = trained_by(pretrained, toys.swapped)
    records = [record(text, None, "t") for text in ("good film.", "the [MASK] was never bad")]
    for one, (tokens, expected) in zip(predict(trained, records), outputs(trained, records), strict=True):
        assert one["pieces"] == trained.tokenizer.pieces(tokens[tokens > 0])
        np.testing.assert_allclose(one["probability"], expected["probability"][0, : len(one["pieces"])], atol=5e-6)
    counted = trained.objective._replace(predict=lambda params, encode, batch, key=None: dict(length=batch["segments"]))
    said = next(predict(trained._replace(objective=counted), records))
    assert said["length"] == [1] * len(said["pieces"])


def test_one_of_a_mixture_predicts(pretrained):
    both = lambda bb, vocab: mix((1.0, mlm(bb, vocab)), (1.0, causal(bb, vocab)), backbone=bb)
    trained = trained_by(pretrained, both)
    trained = trained._replace(params=pretrained.params | trained.params["mixture"])
    records = [record("the [MASK] was bad", None, "t")]
    with pytest.raises(ValueError, match="a mixture of mlm, causal: say by --part which"):
        list(predict(trained, records))
    with pytest.raises(ValueError, match="--part=sop: pretrain trained mlm, causal"):
        predicting.part(trained, "sop")
    alone = trained_by(pretrained, mlm)._replace(params=trained.params)
    assert list(predict(predicting.part(trained, "mlm"), records)) == list(predict(alone, records))
    assert "pieces" in next(predict(predicting.part(trained, "causal"), records))


def test_one_of_several_is_chosen(finetuned):
    """As the softmax over its choices, each read with the question as a pair by itself."""
    trained = trained_by(finetuned, partial(choose, pooling="mean"))
    given = {"good film?": ["the plot", "never bad", "a film"], "bad": ["good", "film"]}
    rows = dict(length=96)  # longer than any text may be
    said = list(predict(trained, [record(q, None, "t", choices) for q, choices in given.items()], rows))
    for one, (question, choices) in zip(said, given.items(), strict=True):
        pairs = [record(question, choice, "t") for choice in choices]
        logits = np.array([found["logits"][0, 0] for _, found in outputs(trained, pairs)])
        shares = np.exp(logits) / np.exp(logits).sum()
        assert (one["text"], one["choices"]) == (question, choices)
        np.testing.assert_allclose(one["probabilities"], shares, atol=2e-6)
        assert one["prediction"] == choices[shares.argmax()]
    alone = next(predict(trained, [record("bad", None, "t", ["good", "film"])], rows))
    assert alone == said[1]
    for wrong in (record("bad", None, "t"), record("bad", "good", "t"), record("bad", None, "t", ["good"])):
        with pytest.raises(ValueError, match="t: finetune chooses among the texts in `choices`"):
            list(predict(trained, [wrong]))


def test_numbers_and_other_arrays(finetuned):
    row = {"segments": np.ones(4, int)}
    other = finetuned._replace(objective=finetuned.objective._replace(says=""))
    assert predicting._said(other, {"prediction": np.float32([2.5])}, row, None) == {"prediction": 2.5}
    assert predicting._said(other, {"embedding": np.ones((1, 2))}, row, None) == {"embedding": [1.0, 1.0]}


def test_texts_that_are_written(finetuned, monkeypatch):
    """Decoded without special ids; BLEU is sacrebleu's of what is said for each text."""
    tokenizer = Masking(finetuned.tokenizer, sentinels=2)
    writing = finetuned._replace(objective=finetuned.objective._replace(says="text"), tokenizer=tokenizer)
    (ids,) = tokenizer.encode(["good film"])
    found = {"prediction": np.array([[*ids, tokenizer.vocab.size + 1, *ids, 3, 0]]), "score": np.float32([-1.5])}
    wanted = {"prediction": "good film <extra_id_1> good film", "score": -1.5}
    assert predicting._said(writing, found, np.zeros(4), None) == wanted
    said = ["the cat sat on the mat", "a dog ran over the hill"]
    given = [record(text, pair, "t") for text, pair in (("a", said[0]), ("b", "a dog ran over the green hill"))]
    monkeypatch.setattr(predicting, "predict", lambda trained, records, section: ({"prediction": s} for s in said))
    # of 12 words 12 are right, of their pairs 9 of 10, threes 7 of 8, fours 5 of 6; 13 were wanted
    want = 100 * np.exp(1 - 13 / 12) * (9 / 10 * 7 / 8 * 5 / 6) ** 0.25
    np.testing.assert_allclose(predicting.bleu(writing, given), want, rtol=1e-6)


def test_sentinels_are_read_and_written(pretrained):
    """As ids after the tokenizer's, where T5's span corruption has put them; [MASK] stays one."""
    size = pretrained.tokenizer.vocab.size
    masks, sentinels = Masking(pretrained.tokenizer), Masking(pretrained.tokenizer, sentinels=3)
    text = "the {} was {} and {}{}"
    (plain,), (marked,) = (
        one.encode([text.format(*marks)])
        for one, marks in (
            (masks, ["[MASK]"] * 4),
            (sentinels, ["<extra_id_0>", "<extra_id_2>", "[MASK]", "<extra_id_1>"]),
        )
    )
    at = plain == pretrained.tokenizer.vocab.mask
    assert marked[at].tolist() == [size, size + 2, pretrained.tokenizer.vocab.mask, size + 1]
    np.testing.assert_array_equal(marked[~at], plain[~at])
    with pytest.raises(ValueError, match="<extra_id_3>: there are sentinels from <extra_id_0> to <extra_id_2> alone"):
        sentinels.encode(["<extra_id_3>"])
    (known,) = masks.encode(["<extra_id_0>"])
    assert known.max() < size, "of an objective without, it is text as any other"
    wider = backbone(dataclasses.replace(pretrained.backbone.config, V=size + 3))
    trained = pretrained._replace(backbone=wider)
    objective = span_corruption(wider, pretrained.tokenizer.vocab, sentinels=3, layers=1, name="t5", target_length=5)
    params = toys.params_of(wider, objective)
    trained = trained._replace(objective=objective, params=params)
    (said,) = predict(trained, [record("the <extra_id_0> was <extra_id_1>", None, "t")])
    assert said.keys() == {"text", "prediction", "score"}


def test_a_source_that_is_cut_is_told(pretrained, capsys):
    trained = trained_by(pretrained, translate, layers=1, source_length=6, target_length=4)
    for text, cut in (("good", False), ("the plot was never bad", True)):
        (said,) = predict(trained, [record(text, None, "t")])
        assert said.keys() == {"text", "prediction", "score"}
        warning = "warning: 1 of 1 texts were cut: pretrain reads no more than its source_length\n"
        assert capsys.readouterr().err == warning * cut


@pytest.mark.parametrize("separators", [1, 2])
def test_what_is_translated_is_read_as_in_training(pretrained, monkeypatch, separators):
    monkeypatch.setattr(type(pretrained.tokenizer), "separators", separators)
    trained = trained_by(pretrained, translate, layers=1, target_length=4)
    read = []

    def found(trained, arrays, seed):
        read.append(arrays)
        return iter([{"prediction": np.zeros((1, 4), int), "score": np.zeros(1)}])

    monkeypatch.setattr(predicting, "_found", found)
    list(predict(trained, [record("good film", None, "t")]))
    trained_on = label_examples([record("good film", "never bad", "t")], trained.tokenizer, 64, None).arrays
    one, other = (x["tokens"][(x["types"] == 0) & (x["segments"] > 0)].tolist() for x in (*read, trained_on))
    assert one == other and one.count(trained.tokenizer.vocab.sep) == separators


def test_what_a_mixture_writes_is_scored(finetuned, toy, monkeypatch):
    """As by its part alone."""
    writes = partial(translate, layers=1, target_length=4)
    both = lambda bb, vocab: mix((1.0, writes(bb, vocab)), (1.0, sop(bb, vocab)), backbone=bb)
    trained = trained_by(finetuned, both)
    trained = trained._replace(params=finetuned.params | trained.params["mixture"])
    scores = iter([61.0, 62.0])
    scored = []
    monkeypatch.setattr(predicting, "bleu", lambda trained, *_: scored.append(trained.objective.name) or next(scores))
    assert evaluations(trained, toy.workdir)["dev/seq2seq/bleu"] == 61.0
    assert evaluations(trained_by(finetuned, writes), toy.workdir)["dev/bleu"] == 62.0
    assert scored == ["seq2seq"] * 2


def test_spans_of_one_text_have_no_bleu(finetuned, toy):
    trained = trained_by(finetuned, partial(translate, layers=1, target_length=4))
    dev = trained.made.evals["dev"]
    source = {k: v for k, v in dev["source"].items() if k not in ("pair", "label")}
    spans = dict(factory="train.data.rows:pair_sentences", source=source, length=dev["length"])
    trained = trained._replace(made=dataclasses.replace(trained.made, evals={"dev": spans}))
    assert evaluations(trained, toy.workdir).keys() == {
        "dev/loss", "dev/seq2seq", "dev/seq2seq_accuracy", "dev/seq2seq_nll", "dev/seq2seq_surplus", "dev/seq2seq_lost",
    }  # fmt: skip


def test_arguments_of_the_objective_for_once(toy):
    trained = load(toy.workdir, "pretrain", changes=("unit=word", "rate=0.25"))
    assert trained.made.objective | dict(unit="word", rate=0.25) == trained.made.objective
    assert load(toy.workdir, "pretrain").made.objective != trained.made.objective
    parts = dict(mixture=dict(mlm=dict(rate=0.15), t5=dict(beams=1)), alternate=True)
    found = predicting._changed(parts, ["t5.beams=4", "t5.penalty=1.0"])
    assert found == dict(mixture=dict(mlm=dict(rate=0.15), t5=dict(beams=4, penalty=1.0)), alternate=True)
    with pytest.raises(ValueError, match=r"--set=tied=False: pretrain was trained with mlm/decoder absent, and so it"):
        load(toy.workdir, "pretrain", changes=("tied=False",))
    with pytest.raises(ValueError, match="did you mean 'rate'"):
        load(toy.workdir, "pretrain", changes=("rat=0.25",))
    for wrong in ("rate", "mlm.rate=1"):
        with pytest.raises(ValueError, match=f"--set={wrong}: expected KEY=VALUE"):
            load(toy.workdir, "pretrain", changes=(wrong,))
    with pytest.raises(ValueError, match=r"--set=beams=4: expected PART.KEY=VALUE, PART one of mlm, t5"):
        predicting._changed(parts, ["beams=4"])


def test_evaluations_are_those_of_training(toy, finetuned):
    lines = [json.loads(line) for line in (toy.workdir / "finetune/metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line["step"] == 3 and "dev/accuracy" in line)
    found = evaluations(finetuned, toy.workdir)
    assert finetuned.step == 3
    assert found.keys() | {"step"} == logged.keys()
    assert found == pytest.approx({k: v for k, v in logged.items() if k != "step"}, rel=1e-6)


def test_files_of_texts(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo, three \n")
    (tmp_path / "a.csv").write_text('id,text,pair\n1,"a, b",c\n')
    (tmp_path / "a.tsv").write_text("text\na b\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "pair": "b"}\n{"text": "c"}\n')
    found = {kind: [r[:3] for r in read(str(tmp_path / f"a.{kind}"))] for kind in ("txt", "csv", "tsv", "jsonl")}
    (tmp_path / "b.jsonl").write_text('{"text": "a", "choices": ["b", "c", "d"]}\n')
    assert read(str(tmp_path / "b.jsonl"))[0].more == ("b", "c", "d")
    assert found == {
        "txt": [("one", None, None), ("two, three", None, None)],
        "csv": [("a, b", "c", None)],
        "tsv": [("a b", None, None)],
        "jsonl": [("a", "b", None), ("c", None, None)],
    }


def test_the_command(toy, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": "film " * 40, "pair": "good"}, *({"text": r["text"], "pair": r["pair"]} for r in toy.records[:4])]
    texts.write_text("".join(json.dumps(r) + "\n" for r in rows))
    base = [f"--workdir={toy.workdir}", "--stage=finetune"]
    main([*base, f"--texts={texts}"])
    out, err = capsys.readouterr()
    assert [json.loads(line)["pair"] for line in out.splitlines()] == [r["pair"] for r in rows]
    assert "warning: 1 of 5 texts were cut to 32 tokens" in err
    main([*base, f"--texts={texts}", f"--out={tmp_path / 'out.jsonl'}"])
    assert (tmp_path / "out.jsonl").read_text() == out
    assert capsys.readouterr().out == ""
    masked = [f"--workdir={toy.workdir}", "--stage=pretrain"]
    with pytest.raises(SystemExit, match="no \\[MASK\\] to fill"):
        main([*masked, "--text=a film", f"--out={tmp_path / 'out.jsonl'}"])
    assert (tmp_path / "out.jsonl").read_text() == out, "what was there stays where all could not be written"
    with pytest.raises(SystemExit):
        main([*base, f"--texts={texts}", f"--out={texts}"])
    assert "is the file of texts itself" in capsys.readouterr().err
    main([*base, "--best", "--evaluate"])
    assert json.loads(capsys.readouterr().out).keys() >= {"stage", "step", "dev/loss", "dev/accuracy"}
    main([*base, "--step=3", "--text=good film", "--text=bad"])
    out, err = capsys.readouterr()
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["good film", "bad"]
    assert err == "warning: 2 of 2 texts have no pair, and finetune was trained on pairs\n"
    main([*base, "--text=good film", "--pair=bad", "--text=film", "--pair=good"])
    out, err = capsys.readouterr()
    assert [(one["text"], one["pair"]) for one in map(json.loads, out.splitlines())] == [
        ("good film", "bad"),
        ("film", "good"),
    ]
    assert not err
    with pytest.raises(SystemExit):
        main([*base, "--text=good film", "--text=bad", "--pair=film"])
    assert "1 of --pair and 2 of --text: each pair needs both" in capsys.readouterr().err


def other_tokenizer(toy, tmp_path):
    shutil.copytree(toy.workdir, tmp_path / "other")
    section = toy.config["tokenizer"] | {"size": 36}
    (tmp_path / "other/tokenizer.model").unlink()
    build.tokenizer(toy.config | {"tokenizer": section}, tmp_path / "other")
    return [f"--workdir={tmp_path / 'other'}", "--stage=finetune", "--text=a"]


def bare(toy, tmp_path):
    shutil.copytree(toy.workdir / "finetune", tmp_path / "bare/finetune")
    return [f"--workdir={tmp_path / 'bare'}", "--stage=finetune", "--text=a"]


def file(name, content, stage="finetune"):
    def arguments(toy, tmp_path):
        (tmp_path / name).write_text(content)
        return [f"--workdir={toy.workdir}", f"--stage={stage}", f"--texts={tmp_path / name}"]

    return arguments


def given(*arguments):
    return lambda toy, tmp_path: [f"--workdir={toy.workdir}", *arguments]


ERRORS = {
    "no stage": (given("--stage=x", "--text=a"), "no checkpoint of a stage 'x'; stages with one: finetune, pretrain"),
    "no best": (given("--stage=pretrain", "--best", "--text=a"), "no best checkpoint (its config sets no `best`)"),
    "no step": (given("--stage=finetune", "--step=2", "--text=a"), "no checkpoint of step 2; found [3]"),
    "no workdir": (lambda toy, tmp: ["--workdir=/no", "--stage=a", "--text=a"], "--workdir=/no: no such folder"),
    "no file": (given("--stage=finetune", "--texts=/no.txt"), "path '/no.txt': no such file"),
    "empty text": (given("--stage=finetune", "--text= "), "--text=' ': the text is empty"),
    "empty line": (file("a.txt", "one\n\ntwo\n"), "a.txt:2: the text is empty"),
    "empty pair": (file("a.jsonl", '{"text": "a", "pair": ""}'), "a.jsonl:1: the pair is empty"),
    "empty file": (file("a.txt", ""), "there is no text to predict for"),
    "no column": (file("a.csv", "txt\nbad\n"), "a.csv:2: no column 'text'; columns found: txt"),
    "a number": (file("a.jsonl", '{"text": 3}'), "a.jsonl:1: text is 3, expected text"),
    "no list": (
        file("a.jsonl", '{"text": "a", "choices": "b"}'),
        'a.jsonl:1: choices is "b", expected a list of texts',
    ),
    "empty choice": (
        file("a.jsonl", '{"text": "a", "choices": ["b", ""]}'),
        "a.jsonl:1: the text of choice 2 is empty",
    ),
    "choices": (file("a.jsonl", '{"text": "a", "choices": ["b"]}'), "choices, and finetune chooses among none"),
    "another kind": (file("a.pdf", "a"), "expected a name that ends in .txt, .jsonl, .csv or .tsv"),
    "no mask": (file("a.txt", "good film", "pretrain"), "a.txt:1: no [MASK] to fill; pretrain fills masks"),
    "no evals": (given("--stage=pretrain", "--evaluate"), "pretrain was trained without evals"),
    "no tokenizer": (bare, "has no tokenizer.model or tokenizer.json"),
    "another tokenizer": (other_tokenizer, "is not the tokenizer that finetune was trained with"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(toy, tmp_path, case):
    arguments, message = ERRORS[case]
    with pytest.raises(SystemExit) as stopped:
        main(arguments(toy, tmp_path))
    assert str(stopped.value).startswith("error: ")
    assert message in str(stopped.value)


@pytest.mark.parametrize("arguments", [[], ["--text=a", "--evaluate"], ["--text=a", "-"]])
def test_one_source_of_texts(toy, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([f"--workdir={toy.workdir}", "--stage=finetune", *arguments])
    assert stopped.value.code == 2
    assert "give one of --texts=FILE, --text=TEXT, - and --evaluate" in capsys.readouterr().err


def test_every_word_has_its_tag(toy, tmp_path):
    from train.__main__ import run

    words = "good\tA\nfilm\tN\n\nbad\tA\nplot\tN\n\nplot\tN\ngood\tA\n\nfilm\tN\nbad\tA\n"
    (tmp_path / "words.conll").write_text(words)
    (tmp_path / toy_file(toy)).write_bytes((toy.workdir / toy_file(toy)).read_bytes())
    data = dict(
        factory="train.data.words:tag_words", length=12, classes=("A", "N"),
        source=dict(factory="train.data.source:tagged", path=str(tmp_path / "words.conll")),
    )  # fmt: skip
    source = shutil.copytree(toy.workdir / "pretrain", tmp_path / "source")
    tag = toy.config["finetune"] | dict(
        objective=dict(factory="objectives.tag:tag", classes=("A", "N")), data=data, evals=dict(dev=data), steps=30,
        best="dev/tag_accuracy", schedule=dict(factory="train.schedule:constant", peak=1e-2), batch=8,
        carry=dict(checkpoint=str(source)), log_every=30,
    )  # fmt: skip
    config = dict(toy.config, stages=("tag",), tag=tag, backbone=dict(checkpoint=str(source)))
    for stage in ("pretrain", "finetune"):
        config.pop(stage)
    run(config, tmp_path)
    other = f"{tmp_path}/../{tmp_path.name}/source"  # the same folder by another name
    run(config | dict(backbone=dict(checkpoint=other), tag=tag | dict(carry=dict(checkpoint=other))), tmp_path)
    shutil.rmtree(source)  # a stage's checkpoint is all that predicts
    long = " ".join(["plot"] * 40)
    said = list(predict(load(tmp_path, "tag"), [record(text, None, "t") for text in ("good  plot", "film bad", long)]))
    assert said[0]["prediction"] == [dict(word="good", tag="A"), dict(word="plot", tag="N")]
    assert said[1]["prediction"] == [dict(word="film", tag="N"), dict(word="bad", tag="A")]
    assert 0 < len(said[2]["prediction"]) < 40, "words that were cut have no tag"


def toy_file(toy):
    from train.data.tokenizer import find

    return find(toy.workdir).name
