"""The doctor: finds what is planted in a corpus, says what must not be trained on, and leaves it at that."""

import json

import numpy as np
import pytest

from train.data import doctor, prepare, shards
from train.data.source import Record
from train.data.tokenizer import save, train_sentencepiece

WORDS = [
    "river", "stone", "light", "winter", "garden", "paper", "music", "window", "summer", "engine", "forest", "letter",
    "silver", "market", "captain",
]  # fmt: skip


def text(seed, n=40):
    rng = np.random.default_rng(seed)
    return " ".join(f"{a}{b}" for a, b in zip(rng.choice(WORDS, n), rng.choice(WORDS, n), strict=True))


CLEAN = [text(seed) for seed in range(60)]
WRONG = {
    "duplicates": (CLEAN[:40] + CLEAN[:20], "33.3% of the documents are copies"),
    "near_duplicates": ([t + end for t in CLEAN[:20] for end in ("", " and so on")], "of the others are nearly copies"),
    "mojibake": (
        CLEAN[:50] + ["the filmâ€™s naÃ¯ve cafÃ© " + t for t in CLEAN[50:]],
        "of the texts are wrongly decoded",
    ),
    "control": (CLEAN[:50] + [t + "\x07" for t in CLEAN[50:]], "hold control or unassigned characters"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece([Record(t, None, None, "") for t in CLEAN], size=330)


@pytest.fixture
def prepared(tmp_path, tokenizer):
    """A function: texts -> (folder of their rows, the --source that names them)."""

    def of(texts):
        (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
        given, file = f"jsonl:{tmp_path}/texts.jsonl", save(tokenizer, tmp_path)
        prepare._texts(given, str(file), 64, 4, str(tmp_path / "rows"), {})
        return tmp_path / "rows", given

    return of


def examined(folder, tokenizer, given=None, **more):
    return doctor.examine(folder, tokenizer, given and prepare.parse_source(given), **more)


def test_nothing_is_wrong_with_a_clean_corpus(prepared, tokenizer):
    folder, given = prepared(CLEAN)
    for source in (given, None):
        report = examined(folder, tokenizer, source)
        assert report["wrong"] == []
        assert report["texts"]["duplicates"] == report["texts"]["near_duplicates"] == 0
        assert report["scripts"] == {"latin": 1.0}
    assert report["rows"]["tokens"] == report["manifest"]["tokens"] > 1000
    sizes = report["rows"]["lengths"]
    assert sum(int(n) * count for n, count in sizes.items()) == report["rows"]["tokens"]
    assert sum(sizes.values()) == report["manifest"]["pieces"]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_planted_is_found(prepared, tokenizer, name):
    texts, says = WRONG[name]
    folder, given = prepared(texts)
    report = examined(folder, tokenizer, given)
    assert report["texts"][name] > doctor.LIMITS[name]
    assert [problem for problem in report["wrong"] if says in problem], report["wrong"]
    assert len(report["wrong"]) == 1


def test_bytes_scripts_and_lines_are_counted(prepared, tokenizer):
    line = "all rights reserved by the owner"
    folder, given = prepared([*CLEAN[:20], *(f"{t}\n{line}\n" for t in CLEAN[20:30]), "жизнь и судьба " * 20])
    report = examined(folder, tokenizer, given)
    assert report["rows"]["byte_fallback"] > 0.05
    assert 0 < report["scripts"]["cyrillic"] < 0.1
    assert report["most"]["repeated_lines"][0] == (line, 10)


def test_an_evaluation_set_in_the_corpus(prepared, tokenizer):
    folder, given = prepared(CLEAN)
    fresh = [text(seed) for seed in range(1000, 1018)]
    against = [Record(t, None, None, f"e:{row}") for row, t in enumerate([*fresh, *CLEAN[:2], "too short"], 1)]
    report = examined(folder, tokenizer, given, against=against)
    assert report["texts"]["evaluation"] == 20
    assert report["texts"]["leaked"] == 0.1
    assert {where for where, _ in report["most"]["leaked"]} == {"e:19", "e:20"}
    assert "10.0% of the evaluation texts are in the corpus" in report["wrong"][0]


def test_near_copies_are_found_in_a_sample(prepared, tokenizer):
    """Half of the texts are nearly copies of the other half, and a sample holds both or neither."""
    texts = [text(seed, 60) for seed in range(200)]
    folder, given = prepared(texts + [t + " and so on" for t in texts])
    report = examined(folder, tokenizer, given, sample=80)
    assert report["texts"]["looked_at"] == 80
    assert 0.3 < report["texts"]["near_duplicates"] <= 0.5


def test_what_a_sample_of_the_rows_cannot_tell_is_not_told(prepared, tokenizer):
    folder, _ = prepared(CLEAN)
    assert not {"duplicates", "near_duplicates"} & examined(folder, tokenizer, sample=5)["texts"].keys()
    with pytest.raises(ValueError, match=r"compared with all texts: give the source, or a sample of all \d+ rows"):
        examined(folder, tokenizer, sample=5, against=[Record(CLEAN[0], None, None, "e:1")])


def test_texts_without_spaces_are_compared_and_short_ones_are_named(prepared, tokenizer):
    chinese = "今天天气很好我们一起去公园里散步看花"
    folder, given = prepared([*CLEAN[:20], chinese])
    report = examined(folder, tokenizer, given, against=[Record(chinese, None, None, "e:1")])
    assert report["texts"]["leaked"] == 1
    report = examined(folder, tokenizer, given, against=[Record("too short", None, None, "e:1")])
    assert "most evaluation texts have fewer than 8 words" in report["wrong"][0]


def test_ids_outside_of_the_vocabulary_and_damaged_files(prepared, tokenizer):
    folder, _ = prepared(CLEAN)
    file = next(folder.glob("*/tokens.npy"))
    tokens = np.load(file)
    tokens[0, 1] = 40_000
    np.save(file, tokens)
    with pytest.raises(ValueError, match=r"tokens\.npy is missing or not what was written"):
        examined(folder, tokenizer)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["files"]["tokens"]["checksum"] = shards._checksum(file)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = examined(folder, tokenizer)
    assert report["rows"]["outside_vocabulary"] == 1
    assert report["wrong"][0].startswith("1 ids are outside of the vocabulary")


def test_another_tokenizer_is_refused(prepared, tokenizer):
    folder, _ = prepared(CLEAN)
    with pytest.raises(ValueError, match=r"was prepared with another tokenizer .* give the one it was prepared with"):
        examined(folder, train_sentencepiece([Record(t, None, None, "") for t in CLEAN], size=320))


def test_the_command(prepared, tmp_path, capsys):
    folder, given = prepared([*WRONG["duplicates"][0], *(f"{t}\nthe lemma $\\begin{{x$ again" for t in CLEAN[50:52])])
    with pytest.raises(SystemExit) as ended:
        doctor.main([str(folder), f"--source={given}"])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "duplicates" in said
    assert "32.3% of the documents are copies" in said.replace("\n", " ")
    assert json.loads((folder / "doctor.json").read_text())["texts"]["duplicates"] == pytest.approx(20 / 62)
    assert (folder / "doctor.png").stat().st_size > 10_000
    with pytest.raises(SystemExit) as ended:
        doctor.main([str(tmp_path)])
    assert "holds no prepared rows" in ended.value.code
