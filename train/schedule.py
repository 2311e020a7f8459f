"""Learning-rate schedules: (steps, **shape) -> a function of the step.

`warmup` and `decay` are numbers of steps, or shares of all steps where below 1. All rise linearly over the warmup.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

Schedule = Callable


def _count(name: str, value: float, steps: int) -> int:
    if value < 0 or value > steps:
        raise ValueError(f"schedule {name}={value} must lie between 0 and the run's {steps} steps (below 1: a share)")
    return round(value * steps) if value < 1 else int(value)


def _warm(peak: float, warmup: int, then: Schedule) -> Schedule:
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), then], [warmup]) if warmup else then


def constant(steps: int, *, peak: float, warmup: float = 0) -> Schedule:
    """The peak throughout."""
    return _warm(peak, _count("warmup", warmup, steps), optax.constant_schedule(peak))


def linear(steps: int, *, peak: float, warmup: float = 0.1, end: float = 0.0) -> Schedule:
    """Down a line from the peak to `end * peak` (Devlin et al. 2018)."""
    n = _count("warmup", warmup, steps)
    return _warm(peak, n, optax.linear_schedule(peak, peak * end, max(1, steps - n)))


def cosine(steps: int, *, peak: float, warmup: float = 0.1, end: float = 0.0) -> Schedule:
    """Down half a cosine from the peak to `end * peak` (Loshchilov & Hutter 2016, https://arxiv.org/abs/1608.03983)."""
    n = _count("warmup", warmup, steps)
    return _warm(peak, n, optax.cosine_decay_schedule(peak, max(1, steps - n), alpha=end))


def inverse_sqrt(steps: int, *, peak: float, warmup: float = 0.1) -> Schedule:
    """peak * sqrt(warmup / step) after the warmup (Vaswani et al. 2017, section 5.3)."""
    n = max(1, _count("warmup", warmup, steps))
    return _warm(peak, n, lambda step: peak * jnp.sqrt(n / (n + step)))


def warmup_stable_decay(
    steps: int, *, peak: float, warmup: float = 0.1, decay: float = 0.1, end: float = 0.0
) -> Schedule:
    """The peak, then 1 - sqrt to `end * peak` over the last `decay` steps (Hägele et al. 2024,
    https://arxiv.org/abs/2405.18392, equation 1)."""
    n, last = _count("warmup", warmup, steps), _count("decay", decay, steps)
    if n + last > steps:
        raise ValueError(f"warmup of {n} and decay of {last} steps do not fit into {steps} steps")

    def fall(step):
        return peak * (end + (1 - end) * (1 - jnp.sqrt(jnp.clip(step / max(1, last), 0, 1))))

    return _warm(peak, n, optax.join_schedules([optax.constant_schedule(peak), fall], [steps - n - last]))
