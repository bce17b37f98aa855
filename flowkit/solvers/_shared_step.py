"""One step size for a whole batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from flowkit._solve.batching import AbstractBatching, Rows, statistics, Stats
from flowkit._solve.ode import end_state, solve
from flowkit._solve.options import Solve
from flowkit._types import Cond, Scalar


class SharedStep(AbstractBatching):
    """One ODE for the whole batch, with one step size.

    The tolerance holds for the root mean square over all samples, so a single one may have
    a larger error, and each depends on its neighbors. The steps are fewer than those of the
    slowest sample alone.
    """

    def solve(
        self, rows: Rows, times: tuple[Array, Array], options: Solve
    ) -> tuple[PyTree[Array], Stats]:
        velocity = _Together(rows)
        solution = solve(velocity, rows.starts, None, times, options)
        stats = statistics(solution, options.solver)
        repeat = lambda leaf: jnp.broadcast_to(leaf, (len(rows), *jnp.shape(leaf)))
        return end_state(solution), jax.tree.map(repeat, stats)


class _Together(eqx.Module):
    """The velocities of all rows as one velocity."""

    rows: Rows

    def __call__(self, t: Scalar, x: PyTree[Array], cond: Cond = None) -> PyTree[Array]:
        del cond
        rows = self.rows
        one = lambda x, cond, extra: rows.velocity_of(extra)(t, x, cond)
        return rows.vmap(one, x)
