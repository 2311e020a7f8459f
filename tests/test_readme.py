"""The README's objective, as it stands there, trains through the loop."""

import dataclasses
import re
from pathlib import Path

import jax
import optax
from toys import config_of, write_reviews

from train import build, checkpoint, loop

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_objective_in_the_readme(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    names: dict = {}
    exec(blocks[0], names)
    assert len(blocks[0].splitlines()) < 45
    write_reviews(tmp_path / "reviews.tsv")
    stage = build.stage(config_of(tmp_path), "pretrain", tmp_path)
    objective = names["swapped"](stage.backbone, stage.vocab)
    stage = dataclasses.replace(
        stage,
        name="swapped",
        objective=objective,
        optimizer=optax.adam(1e-3),
        schedule=lambda step: 1e-3,
        steps=3,
        learned=jax.tree.map(lambda _: True, build.shapes(stage.backbone, objective)),
    )
    state = loop.fit(stage, tmp_path)
    assert int(state.step) == 3
    assert checkpoint.steps_in(tmp_path / "swapped" / "checkpoints") == [3]
