"""The times of a solver's steps, fitted to one flow."""

from collections.abc import Sequence
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._types import Cond, PRNGKey, VelocityField
from flowkit.solvers._fitting import (
    Budget,
    budget_of,
    minimize,
    Task,
    task_of,
    times_of,
)
from flowkit.solvers._grids import edm_grid, power_grid, shifted_grid
from flowkit.solvers._walk import walk


_SHIFTS = (1 / 3, 1 / 2, 2 / 3, 1.0, 3 / 2, 2.0, 3.0)


def fit_grid(
    flow: VelocityField,
    shape: Sequence[int],
    *,
    num_steps: int = 8,
    solver: dfx.AbstractSolver = dfx.Midpoint(),
    cond: Cond = None,
    cond_axes: int | None = 0,
    source: AbstractDistribution = Normal(),
    num_noises: int = 512,
    num_iterations: int = 30,
    batch_size: int | None = None,
    key: PRNGKey,
) -> Float[Array, " num_steps_and_1"]:
    r"""The grid on which a solver carries noise to where the flow does, with least error.

    ```python
    times = fk.solvers.fit_grid(flow, (2,), num_steps=8, key=fit_key)
    samples = fk.sample(flow, (2,), num_samples=1000, solver=dfx.Midpoint(),
                        stepsize_controller=dfx.StepTo(times), key=key)
    ```

    It begins with the best of nine grids: seven shifted ones, the quadratic one and that of
    EDM. From there, the Levenberg-Marquardt method minimizes the squared distance between
    $x_n$ and the end $x(1)$ of an accurate solve, as a function of the increments of the
    times. Judge the result on fresh noise, which `fk.sample` draws from its own key.

    Much of the mean square may come from a few paths that turn sharply. The fit therefore
    draws 16 times as many noises as it needs. Those that the solver takes to different ends
    on two grids are kept more often, and weigh less (priority sampling). Noises that start
    with an error above a tenth of the standard deviation of the data count less, too: most
    of them end at another mode, which hardly any grid mends.

    **Arguments:**

    - `flow`, `shape`, `cond`, `cond_axes`, `source`: as in `fk.sample`; `cond` has a row for
      each of the `num_noises`.
    - `num_steps`, `solver`: how many steps of which Diffrax solver, an explicit one.
    - `num_noises`: how many noises the grid is fitted on; more for errors below 1e-3, which
      come from fewer paths.
    - `num_iterations`: the maximum number of iterations of the method.
    - `batch_size`: how many noises go through the flow at a time, by default fewer the more
      entries a sample has.
    - `key`: the key of the noises.

    **Returns:** the times, from 0 to the end of the flow, for `diffrax.StepTo`.

    **Reference:** Duffield, Lund and Thorup, Priority sampling for estimation of arbitrary
    subset sums, Journal of the ACM 54 (2007).
    """
    num_steps = as_size("num_steps", num_steps)
    if isinstance(solver, dfx.AbstractImplicitSolver):
        raise ValueError(
            f"`solver` {type(solver).__name__} is implicit; give an explicit one, such as "
            "`diffrax.Midpoint()`."
        )
    budget = budget_of(num_iterations, batch_size)
    options: Any = {"cond": cond, "cond_axes": cond_axes, "source": source}
    task = task_of(flow, shape, num_noises, solver, num_steps, **options, key=key)
    logits = grid_logits(task, solver, num_steps, budget)
    return times_of(logits, task.t_end)


def grid_logits(
    task: Task,
    solver: dfx.AbstractSolver,
    num_steps: int,
    budget: Budget,
) -> Float[Array, " num_steps"]:
    """The logits of the increments of the best times."""

    def walk_of(logits):
        times = times_of(logits, task.t_end)
        return lambda *start: walk(solver, times, *start)

    increments = jnp.diff(jnp.stack(_first_grids(num_steps)))
    return minimize(task, walk_of, jnp.log(increments), budget)


def _first_grids(num_steps: int) -> list[Array]:
    grids = [shifted_grid(num_steps, shift) for shift in _SHIFTS]
    grids.append(power_grid(num_steps))
    # EDM has no grid of one step.
    return grids if num_steps == 1 else [*grids, edm_grid(num_steps)]
