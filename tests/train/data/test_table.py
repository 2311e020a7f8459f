"""Tables: what is stored comes back the same, and a mixture gives every table its share and every row its turn."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbers_as_text import Numbers

from train.data import shards
from train.data.loader import Loader
from train.data.rows import label_examples, pack_documents
from train.data.source import Record
from train.data.table import Filled, Memory, Mixture, Shards


def documents(sizes, first=10):
    return [Record(" ".join(str(first + i) for i in range(n)), None, "1.5", f"here:{k}") for k, n in enumerate(sizes)]


def stored(folder, *made):
    shards.begin(folder, shards.key_of({"of": "a test"}))
    for number, rows in enumerate(made):
        facts = {"rows": len(rows), "length": 12, "examples": rows.report.get("pieces", 1)}
        counts = {name: rows.report[name] for name in ("tokens", "rows")}
        shards.write(folder, shards.name(0, number), rows.stored, facts | {"report": counts})
    shards.end_part(folder, 0, len(made), {})
    assert shards.finish(folder, 1)
    return Shards(folder)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 6))
def test_what_is_stored_comes_back(tmp_path_factory, sizes, segments):
    rows = pack_documents(documents(sizes), Numbers(), 12, segments)
    table = stored(tmp_path_factory.mktemp("shards") / "x", rows)
    whole = Memory(rows.arrays)
    assert len(table) == len(whole)
    if len(whole):
        pick = np.random.default_rng(0).integers(0, len(whole), 9)
        np.testing.assert_equal(table.read(pick), whole.read(pick))


def test_only_what_is_ours_is_swept_away(tmp_path):
    old = [tmp_path / "x" / name for name in (".git", ".00000-00000." + "a" * 32, ".key.json." + "b" * 32)]
    for path in old[:2]:
        path.mkdir(parents=True)
    old[2].write_text("{")
    for path in old:
        os.utime(path, (0, 0))
    stored(tmp_path / "x", pack_documents(documents([3]), Numbers(), 12, 4))
    assert [path.exists() for path in old] == [True, False, False]


def test_many_may_begin_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for n in range(40):
            list(pool.map(lambda _, n=n: shards.begin(tmp_path / str(n), shards.key_of({"a": 1})), range(8)))


def test_labels_and_types_come_back(tmp_path):
    pairs = [r._replace(pair="7 8") for r in documents([3, 1, 2])]
    rows = label_examples(pairs, Numbers(), 12, None, segments=2)
    np.testing.assert_equal(stored(tmp_path / "x", rows).read(np.arange(2)), Memory(rows.arrays).read(np.arange(2)))


def test_examples_are_numbered_over_all_shards(tmp_path):
    parts = [pack_documents(documents(sizes), Numbers(), 12, 4) for sizes in ([3, 30], [0], [5], [12, 1, 1])]
    table = stored(tmp_path / "x", *parts)
    found = table.read(np.arange(len(table)))
    there = np.stack([found["segments"].max(1) > slot for slot in range(4)], 1)
    assert table.longest == Memory(found).longest == 12
    assert Filled(Mixture([table, stored(tmp_path / "y", parts[2])], [1, 1]), 4).longest == 12
    assert stored(tmp_path / "y", parts[2]).longest == 7
    pieces = sum(part.report["pieces"] for part in parts)
    assert sorted(found["example"][there][:, 1]) == list(range(pieces))
    assert table.report == {
        "tokens": sum(part.report["tokens"] for part in parts), "rows": len(table),
        "padding": 1 - (found["segments"] > 0).mean(),
    }  # fmt: skip


def test_stored_rows_are_narrow(tmp_path):
    rows = pack_documents(documents([60] * 50), Numbers(), 64, 4)
    bytes_a_token = sum(x.nbytes for x in rows.stored.values()) / rows.arrays["tokens"].size
    assert bytes_a_token < 1.3  # ids below 256 here, and what a row says of itself


def tables(*sizes):
    return [
        Memory({"tokens": np.full((n, 3), 100 * k), "example": np.arange(2 * n).reshape(n, 1, 2)})
        for k, n in enumerate(sizes)
    ]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(0, 5), st.integers(0, 20),
)  # fmt: skip
def test_a_mixture_keeps_its_shares_and_every_row_comes_in_turn(parts, seed, cycles):
    sizes, weights = zip(*parts, strict=True)
    mixture = Mixture(tables(*sizes), [w / 10 for w in weights])
    cycle = sum(weights) // np.gcd.reduce(weights)
    whole = mixture.shuffled(np.arange((cycles + 3) * cycle), seed)
    np.testing.assert_equal(
        mixture.shuffled(np.arange(cycles * cycle, (cycles + 3) * cycle), seed), whole[cycles * cycle :]
    )
    number = np.searchsorted(np.cumsum(sizes), whole, side="right")
    for k, weight in enumerate(weights):
        share = weight // np.gcd.reduce(weights)
        assert ((number == k).reshape(-1, cycle).sum(1) == share).all()
        among_the_first = np.cumsum(number == k) - np.arange(1, len(whole) + 1) * share / cycle
        assert abs(among_the_first).max() < len(parts)
        # its rows come as they come alone
        mine = whole[number == k] - sum(sizes[:k])
        np.testing.assert_equal(mine, tables(*sizes)[k].shuffled(np.arange(len(mine)), seed))


def test_weights_that_are_no_round_numbers():
    mixture = Mixture(tables(1000, 1000), [123457, 789013])
    sequence = mixture.shuffled(np.arange(1000), 0)
    assert len(set(sequence)) == 1000
    assert abs((sequence < 1000).mean() - 123457 / (123457 + 789013)) < 0.002
    odd = Mixture(tables(30, 30), [0.00012345678901234567, 0.9998765432109877])
    assert (odd.shuffled(np.arange(10**6, 10**6 + 10**4), 0) < 30).sum() == 1


def test_a_mixture_of_one_is_that_one_and_rows_say_whose_they_are():
    (one,) = tables(17)
    np.testing.assert_equal(Loader(Mixture([one], [3]), 5, 1).index(7), Loader(one, 5, 1).index(7))
    batch = Loader(Mixture(tables(5, 50), [0.7, 0.3]), 40).read(3)
    assert (batch["example"][:, 0, 0] == batch["tokens"][:, 0] // 100).all()
    assert set(batch["example"][:, 0, 0]) == {0, 1}


def test_any_batch_of_a_mixture_is_as_quick_as_the_first():
    loader = Loader(Mixture(tables(50, 20), [0.9, 0.1]), 8)
    assert loader.read(10**12)["tokens"].shape == (8, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture([], []), "0 tables and 0 weights"),
        (lambda: Mixture([Mixture(tables(3), [1]), *tables(3)], [1, 1]), "a mixture may not hold a mixture"),
        (
            lambda: Mixture([*tables(3), Memory({"tokens": np.ones((2, 3)), "example": np.ones((2, 1, 2))})], [1, 1]),
            "float32",
        ),
        (lambda: Mixture(tables(3), [0]), "weights=.* expected numbers above zero"),
        (lambda: Mixture([*tables(3), Memory({"tokens": np.ones((2, 4))})], [1, 1]), "must be alike, and these have"),
    ],
)
def test_mixtures_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("damage", ["change", "truncate", "remove"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    table = stored(tmp_path / "x", pack_documents(documents([3, 4]), Numbers(), 12, 4))
    del table
    file = tmp_path / "x" / "00000-00000" / "tokens.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x55" if damage == "change" else content[:-4])
    if damage == "remove":
        file.unlink()
    with pytest.raises(ValueError, match=r"tokens\.npy is missing or not what was written; delete .* prepare again"):
        Shards(tmp_path / "x")


def test_folders_that_hold_no_finished_rows(tmp_path):
    with pytest.raises(ValueError, match="holds no prepared rows; expected a folder"):
        Shards(tmp_path)
    shards.begin(tmp_path / "x", shards.key_of({"a": 1}))
    with pytest.raises(ValueError, match="is not finished: run what prepares it again"):
        Shards(tmp_path / "x")
    with pytest.raises(ValueError, match=r"rows made from something else \(a differ\); take another folder"):
        shards.begin(tmp_path / "x", shards.key_of({"a": 2}))
    with pytest.raises(ValueError, match="is not empty and holds no prepared rows"):
        shards.begin(tmp_path, shards.key_of({"a": 2}))
    with pytest.raises(ValueError, match=r"the key of prepared rows must be JSON .*ndarray"):
        shards.key_of({"a": np.ones(3)})
