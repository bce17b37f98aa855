r"""Solving $dx/dt = v(t, x)$ for one example, through Diffrax."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_call, check_example, check_time
from flowkit._flow import bare, Flow, standardize
from flowkit._masks import has_parameter, zero_masked
from flowkit._solve.grid import checked, Grid
from flowkit._solve.options import (
    compiled,
    DEFAULT_ADJOINT,
    DEFAULT_SOLVER,
    resolve,
    Solve,
)
from flowkit._solve.watch import nan_if_failed, raise_failures, watched
from flowkit._types import (
    Cond,
    FloatArray,
    is_traced,
    Mask,
    numbers_as_arrays,
    Scalar,
    VelocityField,
)


def integrate(
    velocity: VelocityField,
    x0: FloatArray,
    cond: Cond = None,
    *,
    t0: Scalar = 0.0,
    t1: Scalar = 1.0,
    mask: Mask | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    saveat: dfx.SaveAt = dfx.SaveAt(t1=True),
    max_steps: int = 4096,
    adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
    throw: bool = True,
) -> dfx.Solution:
    """Moves one example along a velocity field from `t0` to `t1`, in either direction.

    ```python
    solution = fk.integrate(flow, x0, num_steps=20, solver=fk.RK4())
    x1 = solution.ys[-1]
    ```

    The network runs in inference mode. A second call with another tolerance, end or start
    compiles nothing. This is the bare ODE: `fk.sample` adds the jump to the data with which a
    `fk.Target()` flow ends, and the units of a `fk.Standardized` flow.

    **Arguments:**

    - `velocity`: the field, `(t, x, cond) -> dx`, with the shape of `x`.
    - `x0`: the starting point, of any shape. Move a batch with `jax.vmap`.
    - `cond`: the condition, passed to the velocity.
    - `t0`, `t1`: times in [0, 1]; `t1 < t0` runs backwards.
    - `mask`: the valid points, `(n,)`; all others stay at zero.
    - `solver`: any Diffrax solver, or `fk.RK4()`.
    - `num_steps`: the number of steps of a uniform grid, with any solver. Any other grid is
        `diffrax.StepTo(ts)`.
    - `stepsize_controller`: by default adaptive, with relative and absolute tolerance 1e-5.
        In float32, tolerances below 1e-6 gain nothing, and those below its rounding, 1e-7,
        cause a warning.
    - `saveat`: what to save; `diffrax.SaveAt(ts=...)` for a trajectory.
    - `max_steps`: the maximum number of steps. If a solve needs more, the error states the time
      that it reached and, in a batch of `fk.sample`, which sample it was.
    - `adjoint`: how derivatives are taken. The default has reverse mode only;
        `diffrax.ForwardMode()` has forward mode only, and `diffrax.DirectAdjoint()` has both, at
        a cost that grows with `max_steps`.
    - `throw`: whether a solve raises if it takes more than `max_steps` or meets a velocity that
      is not finite. If not, the solution's `result` says how it ended, and `fk.encode` and
      `fk.log_prob`, which have no result, return NaN.

    **Returns:** a `diffrax.Solution`.

    **Raises:** `ValueError` for times outside [0, 1], for an adaptive controller with a solver
    that has no error estimate, which would accept every step, for both `num_steps` and a
    controller, for a `diffrax.StepTo` whose times do not go from `t0` to `t1`, and for a velocity
    of another shape than `x0`.
    """
    options = resolve(solver, num_steps, stepsize_controller, max_steps, adjoint, throw)
    check_time("t0", t0)
    check_time("t1", t1)
    if not is_traced(t0, t1) and t0 == t1:
        raise ValueError(f"`t0` and `t1` must differ, both are {t0}.")

    x0 = jnp.asarray(x0)
    check_example("x0", x0, mask)
    options = checked(options, t0, t1)
    times = jnp.asarray(t0, x0.dtype), jnp.asarray(t1, x0.dtype)
    cond = numbers_as_arrays(cond)
    return _integrate(with_mask(bare(velocity), mask), x0, cond, times, options, saveat)


def encode(
    flow: VelocityField,
    x1: FloatArray,
    cond: Cond = None,
    *,
    mask: Mask | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
    adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
    throw: bool = True,
) -> Float[Array, "..."]:
    """The noise that the flow carries to one example: the ODE run backwards from the data.

    It has the shape of `x1`. Arguments as in `fk.integrate`. A flow whose velocity ends before
    `t = 1` (see `fk.Flow`) keeps its last velocity from there on.
    """
    options = resolve(solver, num_steps, stepsize_controller, max_steps, adjoint, throw)
    options = checked(options, end_of(bare(flow)), 0)
    x1 = jnp.asarray(x1)
    check_example("x1", x1, mask)
    return _encode(flow, x1, numbers_as_arrays(cond), mask, options)


@compiled
def _integrate(velocity, x0, cond, times, options, saveat):
    if isinstance(velocity, MaskedVelocity):
        x0 = zero_masked(x0, velocity.mask)
    return solve(velocity, x0, cond, times, options, saveat)


@compiled
def _encode(flow, x1, cond, mask, options):
    x1 = standardize(flow, x1)
    flow = bare(flow)
    velocity = eqx.nn.inference_mode(with_mask(flow, mask))
    x1 = x1 if mask is None else zero_masked(x1, mask)
    return solve_back(velocity, x1, cond, end_of(flow), options)


def solve(
    velocity: VelocityField,
    x: Any,
    cond: Cond,
    times: tuple[Array, Array],
    options: Solve,
    saveat: dfx.SaveAt = dfx.SaveAt(t1=True),
) -> dfx.Solution:
    """Solves from the first time to the second, traced into the caller's program."""
    t0, t1 = times
    controller, max_steps = controller_of(options, times)
    solution = dfx.diffeqsolve(
        dfx.ODETerm(eqx.nn.inference_mode(velocity)),
        options.solver,
        t0,
        t1,
        None,
        x,
        cond,
        saveat=saveat,
        stepsize_controller=controller,
        adjoint=options.adjoint,
        max_steps=max_steps,
        throw=False,
    )
    return raise_failures(solution, max_steps) if options.throw else solution


def controller_of(
    options: Solve, times: tuple[Array, Array]
) -> tuple[dfx.AbstractStepSizeController, int]:
    """The controller of the steps between two times, and their maximum number."""
    if options.num_steps is None:
        controller: Any = options.controller
        return watched(controller), options.max_steps

    t0, t1 = times
    grid = t0 + (t1 - t0) * options.fractions().astype(t0.dtype)
    # Both ends must be exact, and a compiler may round the sum as it likes.
    return Grid(grid.at[0].set(t0).at[-1].set(t1)), options.num_steps


def solve_back(
    velocity: VelocityField, x: Any, cond: Cond, t_end: float, options: Solve
) -> Any:
    """The state at `t = 0` of the ODE that runs backwards from `x` at `t = 1`.

    A flow whose velocity ends at `t_end` keeps it from there on. One Euler step crosses the gap,
    as the jump of the samplers does; its error is of second order in the gap of 1e-3.
    """
    dtype = jax.tree.leaves(x)[0].dtype
    t1 = jnp.asarray(t_end, dtype)
    if t_end < 1:
        rates = velocity(t1, x, cond)
        x = jax.tree.map(lambda x, rate: x - (1 - t_end) * rate, x, rates)

    solution = solve(velocity, x, cond, (t1, jnp.zeros((), dtype)), options)
    state = end_state(solution)
    # The caller sees no result, which would tell the end from a state on the way.
    return state if options.throw else nan_if_failed(state, solution.result)


def end_state(solution: dfx.Solution) -> Any:
    """The state at the end of a solve that saved only that."""
    return jax.tree.map(lambda leaf: leaf[-1], solution.ys)


class MaskedVelocity(eqx.Module):
    """A velocity field of one cloud with its mask bound."""

    velocity: VelocityField
    mask: Mask

    def __check_init__(self):
        if not isinstance(self.velocity, Flow) and not has_parameter(
            self.velocity, "mask"
        ):
            raise ValueError(
                "`mask` was given, but the velocity field does not take one; add a "
                "`mask=None` argument to it."
            )

    def __call__(
        self, t: Scalar, x: FloatArray, cond: Cond = None
    ) -> Float[Array, "..."]:
        value = self.velocity(t, x, cond, mask=self.mask)
        _check_velocity(value, x)
        return zero_masked(value, self.mask)


class CheckedVelocity(eqx.Module):
    """A velocity field whose shape is checked, since another one may broadcast."""

    velocity: VelocityField

    def __check_init__(self):
        check_call("velocity", self.velocity, "t, x, cond")

    def __call__(self, t: Scalar, x: FloatArray, cond: Cond = None) -> Any:
        value = self.velocity(t, x, cond)
        _check_velocity(value, x)
        return value


def _check_velocity(value: Any, x: FloatArray) -> None:
    found = jnp.shape(value) if eqx.is_array_like(value) else type(value).__name__
    if found != x.shape:
        raise ValueError(
            f"the velocity must have the shape of `x`, {x.shape}, got {found}."
        )


def with_mask(velocity: VelocityField, mask: Mask | None) -> VelocityField:
    """The velocity field with its mask bound, if there is one, and its shape checked."""
    if mask is not None:
        return MaskedVelocity(velocity, mask)
    # A flow checks what its network returns.
    return velocity if isinstance(velocity, Flow) else CheckedVelocity(velocity)


def end_of(velocity: VelocityField) -> float:
    """The last time at which a velocity field is to be evaluated."""
    return velocity.t_end if isinstance(velocity, Flow) else 1.0
