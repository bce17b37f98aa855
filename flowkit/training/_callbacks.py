"""Functions called during training, whose results join the history."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import numpy as np

from flowkit.training._state import TrainState
from flowkit.training._step import METRICS


class Every(eqx.Module):
    """A callback that `fit` calls before the first step, each time `n` more steps are done, and at the end.

    `function(state, step)` returns `None`, or a dict of numbers or arrays that join the history under its
    names. `state` is a copy that may be kept. The call before the first step shows a mistake in the callback
    at once, and records what the untrained model does. With several steps per call it comes at the end of the
    call in which a multiple of `n` was reached.
    """

    n: int
    function: Callable[..., Any]

    def __check_init__(self):
        if self.n < 1:
            raise ValueError(
                f"`n` must be at least 1, got {self.n}: the callback is called every `n` steps."
            )


def passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in `(before, now]`."""
    return now // every > before // every


def call(
    function: Callable[..., Any], state: TrainState, step: int
) -> dict[str, np.ndarray]:
    """What the callback reports, on the host."""
    report = function(state, step)
    if report is None:
        return {}
    if not isinstance(report, Mapping) or not all(
        isinstance(name, str) for name in report
    ):
        raise ValueError(
            f"`callbacks`: {function} must return None or a dict of named values, got {type(report)}."
        )
    taken = sorted(set(report) & set(METRICS))
    if taken:
        raise ValueError(
            f"`callbacks`: {function} returns {taken}, which training records itself; rename them."
        )
    return {name: np.asarray(value) for name, value in report.items()}
