"""How the solves of a batch share the device, and what each of them cost."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
from jaxtyping import Array, Int, PyTree

from flowkit._solve.ode import end_state, solve
from flowkit._solve.options import Solve
from flowkit._solve.watch import raise_unless_finished, time_reached
from flowkit._types import Cond


class Stats(eqx.Module):
    """What each sample cost; every field has one entry per sample."""

    evaluations: Int[Array, "*batch"] | None
    """Evaluations of the velocity field, counted from the solver's stages; `None` for solvers
    without a tableau."""
    accepted: Int[Array, "*batch"]
    """Accepted steps."""
    rejected: Int[Array, "*batch"]
    """Rejected steps."""
    result: dfx.RESULTS
    """How the solver ended. With adaptive steps it is `diffrax.RESULTS.dt_min_reached` where
    the velocity is not finite. A grid ends as usual there, so look at the values."""


class Rows(eqx.Module):
    """The solves of a batch, one per row.

    - `velocity_of`: `extra -> velocity field`, for one row.
    - `starts`, `cond`, `extra`: a row each; `cond` is shared by all if `cond_axes` is `None`.
    """

    velocity_of: Callable
    starts: PyTree[Array]
    cond: Cond
    extra: Any
    cond_axes: int | None = eqx.field(static=True)

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.starts)[0])

    def vmap(self, fn: Callable, *first: Any) -> Any:
        """`fn(*first, cond, extra)` for all rows; by default `first` are the starts."""
        first = first or (self.starts,)
        in_axes = (*(0 for _ in first), self.cond_axes, 0)
        return eqx.filter_vmap(fn, in_axes=in_axes)(*first, self.cond, self.extra)


class AbstractBatching(eqx.Module):
    """How the solves of a batch share the device."""

    @abc.abstractmethod
    def solve(
        self, rows: Rows, times: tuple[Array, Array], options: Solve
    ) -> tuple[PyTree[Array], Stats]:
        """The states of all rows at the second time, and what they cost."""


class Lockstep(AbstractBatching):
    """All samples step together, each with its own step size, until the last one is done.

    No sample depends on its neighbors. Those that are done wait for the slowest.
    """

    def solve(
        self, rows: Rows, times: tuple[Array, Array], options: Solve
    ) -> tuple[PyTree[Array], Stats]:
        # Failures are raised for the whole batch, where samples have numbers.
        quiet = dataclasses.replace(options, throw=False)

        def one(x, cond, extra):
            solution = solve(rows.velocity_of(extra), x, cond, times, quiet)
            stats = statistics(solution, options.solver)
            return end_state(solution), stats, time_reached(solution)

        ends, stats, reached = rows.vmap(one)
        if options.throw:
            max_steps = options.max_steps
            ends = raise_unless_finished(ends, stats.result, max_steps, reached)
        return ends, stats


def statistics(solution: dfx.Solution, solver: dfx.AbstractSolver) -> Stats:
    """What a solve of one example cost."""
    stats = solution.stats
    return Stats(
        evaluations_of(solver, stats["num_steps"]),
        stats["num_accepted_steps"],
        stats["num_rejected_steps"],
        solution.result,
    )


def evaluations_of(solver: dfx.AbstractSolver, attempted: Array) -> Array | None:
    """The evaluations in that many attempted steps, if the solver's stages are known."""
    if isinstance(solver, dfx.Euler):
        return attempted
    own_count = getattr(solver, "evaluations", None)
    if own_count is not None:
        return own_count(attempted)

    tableau = solver.tableau if isinstance(solver, dfx.AbstractERK) else None
    if not isinstance(tableau, dfx.ButcherTableau):
        return None

    stages = len(tableau.b_sol)
    if tableau.fsal:
        # The last stage of a first-same-as-last method is the first one of the next step.
        return (stages - 1) * attempted + 1
    return stages * attempted
