"""The demo's report and picture, of stages as they are logged; that it trains is what `make demo` shows."""

import json

from launch.demo import accuracies, picture, report

STAGES = ["pretrain", "pretrained_0", "scratch_0", "pretrained_1", "scratch_1"]


def test_report_and_picture(tmp_path):
    for i, stage in enumerate(STAGES):
        (tmp_path / stage).mkdir()
        lines = [{"step": 1, "loss": 2.0, "mlm": 1.5, "mlm_bag": 0.5}, {"step": 1, "test/accuracy": 0.7 + i / 100}]
        (tmp_path / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arms = accuracies(tmp_path, STAGES)
    assert {arm: [round(x, 6) for x in scores] for arm, scores in arms.items()} == {
        "pretrained": [71.0, 73.0],
        "scratch": [72.0, 74.0],
    }
    text = report({"pretrained_0": {"data": {"source": {"limit": 500}}}}, arms, 82.6)
    assert "from 500 labels: accuracy on 2,000 unseen, 2 seeds" in text
    assert "| pretrained | 72.0 % | 71.0, 73.0 |" in text
    assert "Pretraining is worth -1.0 points (by seed: -1.0, -1.0)." in text
    picture(tmp_path, STAGES, arms, 82.6, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
