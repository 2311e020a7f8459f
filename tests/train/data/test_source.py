"""Records of every format, the filters, and an error for each thing a file can have wrong."""

import dataclasses
import gzip
import itertools
import json
import os

import pytest
import zstandard

from train.data import source


def write(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
CSV = 'text,label,source\n"a ""b"",\nc",1,x\n\nd,0,y\n'

RECORDS = {
    # format: (content, factory, [(text, pair, label, row), ...])
    "file": ("one\n\ntwo\n", lambda p: source.text(p), [("one\n\ntwo", None, None, 1)]),
    "line": ("one\n \n two\n", lambda p: source.text(p, "line"), [("one", None, None, 1), ("two", None, None, 3)]),
    "block": (
        "\n\nfirst\nof two\n \nsecond",
        lambda p: source.text(p, "block"),
        [("first\nof two", None, None, 3), ("second", None, None, 6)],
    ),
    "jsonl": (
        '{"q": "a", "p": "b", "y": 1}\n\n{"q": "c", "p": "d", "y": 2.5}\n',
        lambda p: source.jsonl(p, text="q", pair="p", label="y"),
        [("a", "b", "1", 1), ("c", "d", "2.5", 3)],
    ),
    "csv": (CSV, lambda p: source.csv(p, label="label"), [('a "b",\nc', None, "1", 2), ("d", None, "0", 5)]),
    "where": (CSV, lambda p: source.csv(p, where={"source": "y", "label": 0}), [("d", None, None, 5)]),
    "semicolon": (
        "text;label\n'a';\"1;2\"\n",
        lambda p: source.csv(p, label="label", delimiter=";"),
        [("'a'", None, "1;2", 2)],
    ),
    "tsv": (
        'text\tpair\r\n"a\tb "c"\r\n',
        lambda p: source.csv(p, pair="pair", delimiter="\t"),
        [('"a', 'b "c"', None, 2)],
    ),
    "no header": (
        "id\t1\t\tfirst\nid\t0\t*\tsecond\n",
        lambda p: source.csv(p, text=3, label=1, delimiter="\t", header=False, where={2: "*"}),
        [("second", None, "0", 2)],
    ),
    "long field": ("text\n" + "x" * 200_000, lambda p: source.csv(p), [("x" * 200_000, None, None, 2)]),
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("end", COMPRESS)
def test_records(tmp_path, name, end):
    content, factory, expected = RECORDS[name]
    path = write(tmp_path, f"a{end}", COMPRESS[end](content.encode()))
    records = factory(path)
    assert list(records) == [source.Record(*fields, f"{path}:{row}") for *fields, row in expected]
    assert list(records) == list(records), "iterable again"


def test_several_files_are_read_in_order_and_once(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path, f"{name}.txt", name)
    records = source.text((f"{tmp_path}/c.txt", f"{tmp_path}/*.txt"))
    assert [record.text for record in records] == ["c", "a", "b"]


def test_two_files_line_by_line(tmp_path):
    for name, text in {"a.en": "one\n\ntwo\n", "a.de": "eins\n\nzwei", "b.v1.en": "x\n", "b.v1.de": "y\n"}.items():
        write(tmp_path, f"{name}.gz", COMPRESS[".gz"](text.encode()))
    found = source.parallel(f"{tmp_path}/*.en.gz", "en", "de")
    assert [r[:3] for r in found] == [("one", "eins", None), ("two", "zwei", None), ("x", "y", None)]
    assert [r.where.rpartition("/")[2] for r in found] == ["a.en.gz:1", "a.en.gz:3", "b.v1.en.gz:1"]
    before = found.fingerprint
    write(tmp_path, "b.v1.de.gz", COMPRESS[".gz"](b"z\n"))
    assert source.parallel(f"{tmp_path}/*.en.gz", "en", "de").fingerprint != before


@pytest.mark.parametrize(
    "mine, theirs, message",
    [
        ("a\nb\n", "a\n", "a.en:2: .*a.de has only 1 lines; expected a line for each"),
        ("a\n", "a\nb\n", "a.de:2: .*a.en has only 1 lines"),
        ("a\n\n", "a\nb\n", "a.en:2: blank here or in .*a.de; expected text in both"),
        ("a\n", None, "a.en: its partner .*a.de is not there"),
        ("a\n", b"\xff\n", "a.de:1: byte 0xff at column 1 is not UTF-8"),
    ],
)
def test_two_files_that_do_not_match(tmp_path, mine, theirs, message):
    path = write(tmp_path, "a.en", mine)
    if theirs is not None:
        write(tmp_path, "a.de", theirs)
    with pytest.raises(ValueError, match=message):
        list(source.parallel(path, "en", "de"))
    with pytest.raises(ValueError, match=r"expected a name with \.fr in it, whose partner has \.de there"):
        list(source.parallel(path, "fr", "de"))


JSONL = {"text": "t", "label": "y"}
ERRORS = {
    "no file": (None, lambda p: source.text(p), "no such file"),
    "empty file": ("", lambda p: source.text(p), r"no record kept of 0 in .*a with where=\{\}, split=None"),
    "only a header": ("text,label\n", lambda p: source.csv(p), "no record kept of 0"),
    "nothing kept": (
        CSV,
        lambda p: source.csv(p, where={"source": "z"}),
        r"no record kept of 2 .*where={'source': 'z'}",
    ),
    "not utf8": (b"text,label\na,1\n\xff,0\n", lambda p: source.csv(p), "a:3: byte 0xff at column 1 is not UTF-8"),
    "too few fields": (
        "text,label\na,1\nb\n",
        lambda p: source.csv(p),
        r"a:3: found 1 fields, expected 2 \(text, label\)",
    ),
    "too many fields": (
        "text\tl\na\tb\tc\n",
        lambda p: source.csv(p, delimiter="\t"),
        "a:2: found 3 fields, expected 2",
    ),
    "stray quote": ('text,label\na,1\n"b"c,1\n', lambda p: source.csv(p), "a:3: broken row .*',' expected after"),
    "open quote": ('text,label\na,1\n"b,1\nc,2\n', lambda p: source.csv(p), "a:3: broken row .*unexpected end of data"),
    "no column": (
        "text,label\na,1\n",
        lambda p: source.csv(p, text="txt"),
        "a:2: no column 'txt'; columns found: text, label",
    ),
    "no where column": (
        "text\na\n",
        lambda p: source.csv(p, where={"kind": "x"}),
        "no column 'kind'; columns found: text",
    ),
    "no numbered column": (
        "a,b\n",
        lambda p: source.csv(p, text=2, header=False),
        "no column '2'; columns found: 0, 1",
    ),
    "no key": ('{"t": "a"}\n', lambda p: source.jsonl(p), "a:1: no column 'text'; columns found: t"),
    "not json": (
        '{"text": "a"}\n{"text": \n',
        lambda p: source.jsonl(p),
        r"a:2: not JSON \(.*\); expected one object a line",
    ),
    "not an object": ("[1]\n", lambda p: source.jsonl(p), "a:1: found a JSON list, expected one object a line"),
    "null": ('{"text": null}\n', lambda p: source.jsonl(p), "a:1: column 'text' holds null, expected text or a number"),
    "deep": ('{"text": ' + "[" * 200_000, lambda p: source.jsonl(p), r"a:1: not JSON \(.*recursion"),
    "half a surrogate pair": (
        '{"text": "fine \\ud83d\\ude00"}\n{"text": "\\ud83d"}\n',
        lambda p: source.jsonl(p),
        r"a:2: column 'text': character 1 is '\\ud83d', half a surrogate",
    ),
    "not utf8 in a header": (b"t\xe4xt\na\n", lambda p: source.csv(p), "a:1: byte 0xe4 at column 2 is not UTF-8"),
    "nested": ('{"text": {"b": 1}}\n', lambda p: source.jsonl(p), "a:1: column 'text' holds {\"b\": 1}, expected text"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(tmp_path, name):
    content, factory, message = ERRORS[name]
    path = str(tmp_path / "a") if content is None else write(tmp_path, "a", content)
    records = factory(path)  # lazy: a plan is made where there is no data
    with pytest.raises(ValueError, match=message):
        list(records)


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_truncated_stream(tmp_path, end):
    whole = COMPRESS[end]("\n".join(json.dumps({"text": str(i**3)}) for i in range(50_000)).encode())
    path = write(tmp_path, f"a.jsonl{end}", whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"a\.jsonl\{end}:\d+: broken or truncated"):
        list(source.jsonl(path))
    other = write(tmp_path, "b.jsonl", '{"text": "other"}')
    records = source.jsonl((path, other), on_error="skip")
    found = texts(records)
    assert found == [str(i**3) for i in range(len(found) - 1)] + ["other"], (
        "what came before the break, and other files"
    )
    assert len(found) > 10_000
    assert records.skipped == {path: 1}


SKIPPED = {
    # format: (content, factory, records left: (text, row), rows skipped)
    "line": (b"a\n\xff\nc\n", lambda p: source.text(p, "line", on_error="skip"), [("a", 1), ("c", 3)], 1),
    "block": (b"a\nb\xff\nc\n\nd\n", lambda p: source.text(p, "block", on_error="skip"), [("d", 5)], 1),
    "jsonl": (
        b'{"text": "a"}\n{"text": \n\xff\n[]\n{"t": "e"}\n{"text": null}\n{"text": "g"}\n',
        lambda p: source.jsonl(p, on_error="skip"),
        [("a", 1), ("g", 7)],
        5,
    ),
    "csv": (
        b'text,y\na,1\nb\n"c"c,1\n"d\xff\nd",1\n"e\ne",1\nf,1\n"g,1\nh,1\n',
        lambda p: source.csv(p, on_error="skip"),
        [("a", 2), ("e\ne", 7), ("f", 9)],
        4,  # the last with all that follows its open quote
    ),
    "tsv": (
        b"text\ty\na\t1\nb\n\xff\t1\nd\t1\n",
        lambda p: source.csv(p, delimiter="\t", on_error="skip"),
        [("a", 2), ("d", 5)],
        2,
    ),
    "a row left out anyway": (
        b'{"text": "a", "y": 1}\n{"text": null, "y": 2}\n',
        lambda p: source.jsonl(p, where={"y": 1}, on_error="skip"),
        [("a", 1)],
        0,
    ),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_rows_with_errors_are_skipped_and_counted(tmp_path, name):
    content, factory, expected, skipped = SKIPPED[name]
    path = write(tmp_path, "a", content)
    records = factory(path)
    for _ in range(2):
        assert [(r.text, r.where) for r in records] == [(text, f"{path}:{row}") for text, row in expected]
        assert records.skipped.total() == records.skipped[path] == skipped, "of one reading"


def test_skipping_everything_says_what_was_wrong_first(tmp_path):
    path = write(tmp_path, "a", "text\na\nb\n")
    with pytest.raises(
        ValueError, match=r"no record kept of 2 \(2 skipped, the first: .*a:2: no column 'txt'; columns"
    ):
        list(source.csv(path, text="txt", on_error="skip"))


def test_an_empty_document_is_a_record_but_not_in_plain_text(tmp_path):
    assert texts(source.jsonl(write(tmp_path, "a", '{"text": ""}\n{"text": "b"}\n'))) == ["", "b"]
    assert texts(source.text(write(tmp_path, "b", "\n\nb\n"), "line")) == ["b"]


def test_a_document_of_50_mb_on_one_line(tmp_path):
    long = "wide words " * 5_000_000
    path = write(tmp_path, "a.jsonl.zst", zstandard.compress(json.dumps({"text": long}).encode() + b'\n{"text": "b"}'))
    assert [len(record.text) for record in source.jsonl(path)] == [55_000_000, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": (0.5, 0.5)}, r"split=\(0.5, 0.5\): expected fractions \(lo, hi\) with 0 <= lo < hi <= 1"),
        ({"split": (0.5, 1.1)}, "expected fractions"),
        ({"split": (0.5,)}, "expected fractions"),
        ({"limit": 0}, "limit=0: expected at least 1 record"),
        ({"on_error": "count"}, 'on_error=\'count\': expected "raise" or "skip"'),
        ({"unit": "page"}, 'unit=\'page\': expected "file", "line" or "block"'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        source.text("anywhere", **arguments)


@pytest.fixture
def numbers(tmp_path):
    return source.text(write(tmp_path, "numbers", "\n".join(f"n {i}" for i in range(2000))), "line")


def texts(records):
    return [record.text for record in records]


def test_splits_are_disjoint_complete_and_of_the_size_asked_for(numbers):
    cuts = (0, 0.1, 0.5, 1)
    parts = [texts(dataclasses.replace(numbers, split=part)) for part in itertools.pairwise(cuts)]
    assert sorted(itertools.chain(*parts)) == sorted(texts(numbers))
    for part, share in zip(parts, (0.1, 0.4, 0.5), strict=True):
        assert abs(len(part) - 2000 * share) < 4 * (2000 * share * (1 - share)) ** 0.5  # four standard deviations


def test_a_split_depends_on_the_text_alone(tmp_path, numbers):
    other = source.text(write(tmp_path, "other", "\n".join(f"  n \t {i}" for i in reversed(range(0, 2000, 2)))), "line")
    left = set(texts(dataclasses.replace(numbers, split=(0, 0.5))))
    for record in dataclasses.replace(other, split=(0, 0.5)):
        assert " ".join(record.text.split()) in left


def test_limit_is_a_sample_in_order_that_grows(numbers):
    small, large = (texts(dataclasses.replace(numbers, limit=limit)) for limit in (50, 100))
    assert len(small) == 50
    assert len(large) == 100
    assert set(small) < set(large)
    assert large == [text for text in texts(numbers) if text in set(large)]
    places = [int(text.split()[1]) for text in large]
    assert 800 < sum(places) / 100 < 1200, "not the first ones"
    half = dataclasses.replace(numbers, split=(0, 0.5))
    assert max(map(texts(half).index, texts(dataclasses.replace(half, limit=50)))) > 500, "independent of the split"


def test_limit_above_the_number_of_records_keeps_all(numbers):
    assert texts(dataclasses.replace(numbers, limit=10**6)) == texts(numbers)


def test_unique_drops_copies_of_text_and_pair(tmp_path):
    path = write(tmp_path, "a.tsv", "text\tpair\na\tb\na\tc\na\tb\nd\tb\n")
    rows = [r.where.rsplit(":", 1)[1] for r in source.csv(path, pair="pair", delimiter="\t", unique=True)]
    assert rows == ["2", "3", "5"]
    assert [r.text for r in source.csv(path, delimiter="\t", unique=True)] == ["a", "d"]


def test_fingerprint_follows_bytes_and_arguments_but_not_the_place(tmp_path):
    def fingerprint(folder, content=CSV, **arguments):
        (tmp_path / folder).mkdir(exist_ok=True)
        return source.csv(write(tmp_path / folder, "a.csv", content), **arguments).fingerprint

    same = fingerprint("one")
    assert same == fingerprint("two") == fingerprint("two", on_error="skip")
    changes = [{"split": (0, 0.5)}, {"limit": 1}, {"unique": True}, {"label": "label"}, {"where": {"label": 1}}]
    others = [fingerprint("one", **arguments) for arguments in changes] + [fingerprint("one", CSV + "e,1,x\n")]
    assert len({same, *others}) == len(others) + 1


def test_numbers_in_where_mean_their_text(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a", "y": 1}\n{"text": "b", "y": "1"}\n{"text": "c", "y": true}\n')
    assert texts(source.jsonl(path, where={"y": 1})) == texts(source.jsonl(path, where={"y": "1"})) == ["a", "b"]


GLUE = "$ROOTSTOCK_DATA/glue"


@pytest.mark.skipif("ROOTSTOCK_DATA" not in os.environ, reason="ROOTSTOCK_DATA is unset")
@pytest.mark.parametrize(
    ("records", "count", "labels"),
    [
        (lambda: source.csv(f"{GLUE}/CoLA/train.tsv", 3, None, 1, "\t", header=False), 8551, {"0", "1"}),
        (lambda: source.csv(f"{GLUE}/MRPC/train.tsv", "#1 String", "#2 String", "Quality", "\t"), 3668, {"0", "1"}),
        (lambda: source.csv(f"{GLUE}/WNLI/dev.tsv", "sentence1", "sentence2", "label", "\t"), 71, {"0", "1"}),
    ],
)
def test_glue(records, count, labels):
    found = list(records())
    assert len(found) == count
    assert {record.label for record in found} == labels
