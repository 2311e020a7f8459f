"""The benchmark of a step: a row of facts, and what it refuses."""

import json

import pytest

from launch.bench import main


def test_a_row_of_facts(tmp_path, capsys):
    out = tmp_path / "bench.json"
    main(["--size=tiny", "--batch=8", "--length=16", "--vocab=100", "--steps=2", f"--out={out}"])
    (row,) = json.loads(out.read_text())
    assert (row["size"], row["batch"], row["length"], row["devices"]) == ("tiny", 8, 16, 8)
    assert row["tokens_s"] == pytest.approx(8 * 16 / row["step_s"], rel=0.01)
    assert row["gflop_step"] > 0
    assert f"tokens_s {row['tokens_s']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argument, says", [("--size=tinny", "tinny"), ("--batch=12", "does not divide"), ("--dtype=float8", "float8")]
)
def test_what_cannot_be_is_one_line(argument, says):
    with pytest.raises(SystemExit, match=f"error: .*{says}"):
        main(["--size=tiny", "--length=16", "--vocab=100", argument])


def test_numbers_that_are_too_small(capsys):
    with pytest.raises(SystemExit):
        main(["--batch=0"])
    assert "--batch=0: expected at least 1" in capsys.readouterr().err
