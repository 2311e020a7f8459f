"""What a run has logged, read again."""

import json

import pytest

from train.log import curve


def test_a_curve_by_step_the_later_line_counting(tmp_path):
    lines = [
        dict(step=1, loss=3.0, learning_rate=0.1),
        dict(step=2, loss=2.0, learning_rate=0.1),
        {"step": 2, "dev/loss": 9.0},
        dict(step=3, loss=None),  # was not finite
        dict(step=4, loss=7.0),
        dict(step=2, loss=2.5),  # resumed at step 1
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curve(tmp_path, "loss") == ([1, 2, 4], [3.0, 2.5, 7.0])
    assert curve(tmp_path, "dev/loss") == ([2], [9.0])
    with pytest.raises(ValueError, match="no metric 'acuracy'; it has dev/loss, learning_rate, loss"):
        curve(tmp_path, "acuracy")
    with pytest.raises(ValueError, match="expected the folder of a stage"):
        curve(tmp_path / "gone", "loss")
