"""What a run carries from step to step: arrays only."""

from typing import Any, NamedTuple

import jax


class TrainState(NamedTuple):
    """step int32 [], the whole params tree, and the optimizer's state for its learned leaves."""

    step: jax.Array
    params: Any
    opt_state: Any
