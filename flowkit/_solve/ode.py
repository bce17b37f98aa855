r"""Solving $dx/dt = v(t, x)$ for one example, through Diffrax."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_example, check_time
from flowkit._flow import Flow, Target
from flowkit._masks import has_parameter, zero_masked
from flowkit._solve.options import (
    DEFAULT_CONTROLLER,
    DEFAULT_SOLVER,
    solver_options,
    SolverOptions,
)
from flowkit._types import Cond, FloatArray, is_traced, Mask, Scalar, VelocityField


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
    stepsize_controller: dfx.AbstractStepSizeController = DEFAULT_CONTROLLER,
    saveat: dfx.SaveAt = dfx.SaveAt(t1=True),
    max_steps: int = 4096,
    adjoint: dfx.AbstractAdjoint = dfx.RecursiveCheckpointAdjoint(),
    throw: bool = True,
) -> dfx.Solution:
    """Moves one example along a velocity field from `t0` to `t1`, in either direction, in inference mode.

    ```python
    solution = fk.integrate(flow, x0, num_steps=20, solver=fk.RK4())
    x1 = solution.ys[-1]
    ```

    A second call with another tolerance, end or start compiles nothing. This is the bare ODE: the jump to the data
    with which a `fk.Noise()` or `fk.Target()` flow ends is `fk.sample`'s.

    **Arguments:**

    - `velocity`: `(t, x, cond) -> dx`, the shape of `x`.
    - `x0`: where to start, of any shape.
    - `cond`: handed to the velocity.
    - `t0`, `t1`: times in [0, 1]; `t1 < t0` runs backwards.
    - `mask`: `(n,)`, the valid points; the others stay at zero.
    - `solver`: any Diffrax solver, or `fk.RK4()`.
    - `num_steps`: a uniform grid of so many steps, with any solver. Any other grid is `diffrax.StepTo(ts)`.
    - `stepsize_controller`: adaptive by default, with relative and absolute tolerance 1e-5.
    - `saveat`: what to save; `diffrax.SaveAt(ts=...)` for a trajectory.
    - `max_steps`, `adjoint`, `throw`: as in `diffrax.diffeqsolve`. The default adjoint has reverse mode only.

    **Returns:** a `diffrax.Solution`.

    **Raises:** `ValueError` for times outside [0, 1], for an adaptive controller with a solver that has no error
    estimate, which would accept every step, and for a `num_steps` beside a controller.
    """
    options = solver_options(solver, num_steps, stepsize_controller, max_steps)
    check_time("t0", t0)
    check_time("t1", t1)
    if not is_traced(t0, t1) and t0 == t1:
        raise ValueError(f"`t0` and `t1` must differ, both are {t0}.")
    x0 = jnp.asarray(x0)
    check_example("x0", x0, mask)
    if mask is not None:
        velocity, x0 = MaskedVelocity(velocity, mask), zero_masked(x0, mask)
    t0, t1 = jnp.asarray(t0, x0.dtype), jnp.asarray(t1, x0.dtype)
    return _integrate(velocity, x0, cond, t0, t1, options, saveat, adjoint, throw)


def encode(
    flow: VelocityField,
    x1: FloatArray,
    cond: Cond = None,
    *,
    mask: Mask | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController = DEFAULT_CONTROLLER,
) -> Float[Array, "..."]:
    """The noise that the flow carries to one example: the ODE run backwards from the data, the shape of `x1`.

    Arguments as in `fk.integrate`. A flow whose velocity ends before `t = 1` (see `fk.Flow`) starts at its last time.
    """
    solution = integrate(
        flow,
        x1,
        cond,
        t0=end_of(flow),
        t1=0.0,
        mask=mask,
        solver=solver,
        num_steps=num_steps,
        stepsize_controller=stepsize_controller,
    )
    return end_state(solution)


@eqx.filter_jit
def _integrate(velocity, x0, cond, t0, t1, options, saveat, adjoint, throw):
    return solve(
        velocity, x0, cond, t0, t1, options, saveat=saveat, adjoint=adjoint, throw=throw
    )


def solve(
    velocity: VelocityField,
    x0: Any,
    cond: Cond,
    t0: Array,
    t1: Array,
    options: SolverOptions,
    *,
    saveat: dfx.SaveAt = dfx.SaveAt(t1=True),
    **keywords: Any,
) -> dfx.Solution:
    """`diffrax.diffeqsolve` on a velocity field in inference mode, traced into the caller's program."""
    solver, num_steps, controller, max_steps = options
    if num_steps is not None:
        steps = jnp.arange(num_steps + 1, dtype=t0.dtype) / num_steps
        # Written so that both ends are exact.
        controller = dfx.StepTo(t0 * (1 - steps) + t1 * steps)
        max_steps = num_steps
    return dfx.diffeqsolve(
        dfx.ODETerm(eqx.nn.inference_mode(velocity)),
        solver,
        t0,
        t1,
        None,
        x0,
        cond,
        saveat=saveat,
        stepsize_controller=controller,
        max_steps=max_steps,
        **keywords,
    )


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
                "`mask` was given, but the velocity field does not take one; add a `mask=None` argument to it."
            )

    def __call__(
        self, t: Scalar, x: FloatArray, cond: Cond = None
    ) -> Float[Array, "..."]:
        return zero_masked(self.velocity(t, x, cond, mask=self.mask), self.mask)


def end_of(velocity: VelocityField) -> float:
    """The last time at which a velocity field is to be evaluated."""
    return velocity.t_end if isinstance(velocity, Flow) else 1.0


def jump_to_data(
    velocity: VelocityField, x: Array, cond: Cond, mask: Mask | None
) -> Array:
    """From the last time of a flow to its prediction of the data, if that is before `t = 1`."""
    if end_of(velocity) == 1:
        return x
    return velocity.predict(Target(), velocity.t_end, x, cond, mask=mask)
