"""What fitting a sampler takes: noises, where the flow carries them, and least squares."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from flowkit._checks import as_size
from flowkit._distributions import AbstractDistribution
from flowkit._flow import bare
from flowkit._solve import resolve
from flowkit._solve.ode import end_of, end_state, solve
from flowkit._solve.options import DEFAULT_ADJOINT
from flowkit._solve.sample import as_batch
from flowkit._types import Cond, PRNGKey, VelocityField
from flowkit.solvers._hard_noises import hard_noises


_SMALLEST = 1e-3  # the smallest increment, relative to the mean one

_NUM_AT_A_TIME = 2**17
"""How many derivatives of ends in parameters are computed at a time by default.

More of them take more memory, and no less time on a CPU.
"""


_LARGE = 0.1
"""An error, in standard deviations of the ends, that the fit counts about half."""


class Task(eqx.Module):
    """Noises of a flow, where an accurate solve carries them, and what each weighs."""

    velocity: VelocityField
    starts: Float[Array, "noises ..."]
    ends: Float[Array, "noises ..."]
    weights: Float[Array, " noises"]
    cond: Cond
    t_end: float = eqx.field(static=True)
    cond_axes: int | None = eqx.field(static=True)

    @property
    def rows(self) -> tuple[Any, ...]:
        """What differs between noises: their starts, ends, weights and conditions."""
        rows = (self.starts, self.ends, self.weights)
        return rows if self.cond_axes is None else (*rows, self.cond)

    def miss(self, walk: Callable, row: tuple[Any, ...]) -> Float[Array, " entries"]:
        """How far `walk(velocity, start, cond)` ends from where it should, weighted."""
        start, end, weight, *cond = row
        found = walk(self.velocity, start, *(cond or [self.cond]))
        return jnp.sqrt(weight) * jnp.ravel(found - end)


def task_of(
    flow: VelocityField,
    shape: Sequence[int],
    num_noises: int,
    solver: dfx.AbstractSolver,
    num_steps: int,
    *,
    cond: Cond,
    cond_axes: int | None,
    source: AbstractDistribution,
    key: PRNGKey,
) -> Task:
    """Draws noises that are hard for a solver, and solves for their ends."""
    batch = as_batch(
        shape, num_noises, cond=cond, cond_axes=cond_axes, source=source, mask=None
    )
    velocity = eqx.nn.inference_mode(bare(flow))
    noises = hard_noises(velocity, batch, solver, num_steps, key)
    starts, cond, weights = noises
    ends = _ends(velocity, starts, cond, cond_axes)
    return Task(velocity, starts, ends, weights, cond, end_of(velocity), cond_axes)


@eqx.filter_jit
def _ends(velocity, starts, cond, cond_axes):
    # As accurate as float32 allows.
    controller = dfx.PIDController(rtol=1e-6, atol=1e-6)
    options = resolve(dfx.Tsit5(), None, controller, 4096, DEFAULT_ADJOINT, True)
    times = jnp.zeros((), starts.dtype), jnp.asarray(end_of(velocity), starts.dtype)
    one = lambda x, cond: end_state(solve(velocity, x, cond, times, options))
    return eqx.filter_vmap(one, in_axes=(0, cond_axes))(starts, cond)


class Budget(NamedTuple):
    """How many steps are taken, with how many noises in memory at a time."""

    num_iterations: int
    batch_size: int | None


def budget_of(num_iterations: int, batch_size: int | None) -> Budget:
    """The checked budget."""
    size = None if batch_size is None else as_size("batch_size", batch_size)
    return Budget(as_size("num_iterations", num_iterations), size)


@eqx.filter_jit
def minimize(
    task: Task,
    walk_of: Callable[[PyTree[Array]], Callable],
    starts: PyTree[Array],
    budget: Budget,
) -> PyTree[Array]:
    """The method of Levenberg and Marquardt for the squared distances at the end.

    It starts from the best of several sets of parameters, and returns the best set
    found.

    **Arguments:**

    - `walk_of(params)`: a function `(velocity, start, cond) -> end`.
    - `starts`: the parameters to choose from, in rows.
    """
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], starts))
    flat_starts = jax.vmap(lambda start: ravel_pytree(start)[0])(starts)
    batch_size = budget.batch_size or _fitting_size(task, flat_starts[0].size)
    misses = _misses_of(task, lambda flat: walk_of(unravel(flat)), batch_size)

    def error(flat):
        missed = misses(flat)
        return jnp.linalg.norm(_factors(task, missed) * missed)

    errors = jax.lax.map(error, flat_starts)
    best = jnp.nanargmin(errors)
    factors = _factors(task, misses(flat_starts[best]))
    # In units of the first error: the damping begins at 1, which would be much for less.
    scaled = lambda flat, unit: factors * misses(flat) / unit

    levenberg = optx.LevenbergMarquardt(rtol=1e-3, atol=1e-6)
    # Optimistix multiplies numbers by integers, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        solution = optx.least_squares(
            scaled,
            optx.BestSoFarLeastSquares(levenberg),
            flat_starts[best],
            errors[best],
            max_steps=budget.num_iterations,
            throw=False,
        )
    return unravel(solution.value)


def _factors(
    task: Task, missed: Float[Array, "noises entries"]
) -> Float[Array, "noises 1"]:
    """Near 1 for errors much smaller than the spread of the ends, small for larger ones.

    A noise that ends at another mode would outweigh all others, and is hardly ever mended
    without another one taking its place.
    """
    errors = jnp.mean(missed**2, axis=1, keepdims=True) / task.weights[:, None]
    variance = jnp.mean(jnp.var(task.ends, axis=0))
    # All ends may be the same.
    limit = jnp.where(variance > 0, _LARGE**2 * variance, jnp.inf)
    return jax.lax.rsqrt(1 + errors / limit)


def _fitting_size(task: Task, num_params: int) -> int:
    """How many noises are taken at a time by default."""
    number = _NUM_AT_A_TIME // (num_params * task.ends[0].size)
    # A power of two, since what is left over would be compiled once more.
    return 1 << max(number.bit_length() - 1, 0)


def _misses_of(task: Task, walk_of: Callable, batch_size: int) -> Callable:
    """All distances at the end, `(noises, entries)`, as a function of flat parameters."""
    miss = lambda flat, row: task.miss(walk_of(flat), row)

    def over_rows(fn):
        size = min(batch_size, len(task.starts))
        return jax.lax.map(fn, task.rows, batch_size=size)

    @jax.custom_jvp
    def misses(flat):
        return over_rows(lambda row: miss(flat, row))

    # The distances of different noises are independent, so the Jacobian is computed noise
    # by noise: in reverse mode at the cost of about two walks per entry, or in forward
    # mode at about one and a half per parameter.
    @misses.defjvp
    def derivative(primals, tangents):
        (flat,) = primals
        backward = 4 * task.ends[0].size < 3 * flat.size
        jacobian = (jax.jacrev if backward else jax.jacfwd)(miss)
        value_and_jacobian = lambda row: (miss(flat, row), jacobian(flat, row))
        values, matrix = over_rows(value_and_jacobian)
        return values, matrix @ tangents[0]

    return misses


def times_of(logits: Float[Array, " n"], t_end: Any = 1.0) -> Float[Array, " n_and_1"]:
    """Increasing times from 0 to `t_end`, whose increments are a softmax."""
    # No increment vanishes, however far a step of the fit goes.
    number = len(logits)
    shares = (1 - _SMALLEST) * jax.nn.softmax(logits) + _SMALLEST / number
    ends = jnp.cumsum(shares)
    times = jnp.concatenate([jnp.zeros_like(ends[:1]), ends])
    # Both ends are exact.
    return t_end * times.at[-1].set(1.0)
