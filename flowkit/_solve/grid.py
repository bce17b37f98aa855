"""Steps to given times, without the checks of Diffrax, which call Python while a program runs.

Such a call costs time in every solve, and a program that holds one cannot be exported.
"""

from typing import Any

import diffrax as dfx
import numpy as np
from jaxtyping import Array


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


def checked_now(
    controller: dfx.AbstractStepSizeController | None, t_end: float
) -> dfx.AbstractStepSizeController | None:
    """The controller, as a `Grid` if it steps to given times, which are checked here.

    **Arguments:** `t_end`: where the solve ends, which begins at 0.
    """
    if not isinstance(controller, dfx.StepTo):
        return controller

    times = np.asarray(controller.ts)
    ends = np.array([0, t_end], times.dtype)
    if np.any(np.diff(times) <= 0) or np.any(times[[0, -1]] != ends):
        raise ValueError(
            "`stepsize_controller` StepTo must have times that increase from 0 to the end of "
            f"the flow, {t_end}, got {times}."
        )
    return Grid(controller.ts)
