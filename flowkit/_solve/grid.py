"""Steps to given times, without the checks of Diffrax, which call Python while a program runs.

Such a call costs time in every solve, and a program that holds one cannot be exported.
"""

import dataclasses
from typing import Any

import diffrax as dfx
import numpy as np
from jaxtyping import Array

from flowkit._solve.options import Solve
from flowkit._types import is_traced, Scalar


class Grid(dfx.StepTo):
    """`diffrax.StepTo` for times that go from one end of the solve to the other."""

    def wrap(self, direction: Any) -> "Grid":
        return Grid(self.ts * direction)

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> tuple[Array, int]:
        del terms, t0, t1, y0, dt0, args, func, error_order
        # The end of the first step, and the position of the second one's.
        return self.ts[1], 2


def checked(options: Solve, t0: Scalar, t1: Scalar) -> Solve:
    """The options of a solve between two times, whose grid, if it has one, is checked here."""
    controller = options.controller
    if not isinstance(controller, dfx.StepTo):
        return options

    num_steps = len(controller.ts) - 1
    if num_steps > options.max_steps:
        raise ValueError(
            f"`max_steps` is {options.max_steps}, and the grid of `stepsize_controller` has "
            f"{num_steps} steps; give as many."
        )
    if is_traced(controller.ts, t0, t1):
        return options
    grid = checked_now(controller, float(t0), float(t1))
    return dataclasses.replace(options, controller=grid)


def checked_now(
    controller: dfx.AbstractStepSizeController | None, t0: float, t1: float
) -> dfx.AbstractStepSizeController | None:
    """The controller, as a `Grid` if it steps to given times, which must be known."""
    if not isinstance(controller, dfx.StepTo):
        return controller

    times = np.asarray(controller.ts)
    steps = np.diff(times) if t0 < t1 else -np.diff(times)
    ends = np.array([t0, t1], times.dtype)
    # Written so that a time that is NaN fails.
    if not (np.all(steps > 0) and np.all(times[[0, -1]] == ends)):
        change = "increase" if t0 < t1 else "decrease"
        # A grid for samples, given to a solve from data to noise.
        backward = np.all(steps < 0) and np.all(times[[-1, 0]] == ends)
        advice = "; give `times[::-1]`" if backward else ""
        raise ValueError(
            f"`stepsize_controller` StepTo must have times that {change} from {t0:g} to "
            f"{t1:g}, where this solve begins and ends (a `fk.Flow` ends at its `t_end`), got "
            f"{times}{advice}."
        )
    return Grid(controller.ts)
