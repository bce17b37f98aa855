"""How an ODE is solved: the solver, its steps, their limit and the adjoint, in one record."""

import functools as ft
import operator
import warnings
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowkit._types import floats_as_arrays, is_traced


DEFAULT_SOLVER = dfx.Tsit5()

DEFAULT_ADJOINT = dfx.RecursiveCheckpointAdjoint()


class Solve(eqx.Module):
    """How to solve, made and checked by `resolve`."""

    solver: dfx.AbstractSolver
    controller: dfx.AbstractStepSizeController | None
    """The controller of the steps; `None` for a uniform grid of `num_steps`."""
    adjoint: dfx.AbstractAdjoint
    num_steps: int | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    throw: bool = eqx.field(static=True)

    def fractions(self) -> Array:
        """The grid, from 0 to 1: that of the solver, or else a uniform one of `num_steps`."""
        own_steps = getattr(self.solver, "steps", None)
        if own_steps is not None:
            return jnp.asarray(own_steps)
        # Made by NumPy, since a compiler may round a quotient as it likes.
        number: Any = self.num_steps
        return jnp.asarray(np.arange(number + 1) / number)


def resolve(
    solver: dfx.AbstractSolver,
    num_steps: int | None,
    controller: dfx.AbstractStepSizeController | None,
    max_steps: int,
    adjoint: dfx.AbstractAdjoint,
    throw: bool,
    *,
    whole_way: bool = False,
) -> Solve:
    """Checks that solver, steps and adjoint fit together, and fills in the default.

    A solver may bring its own steps only for the `whole_way` from noise to data.
    """
    own_steps = getattr(solver, "steps", None)
    if own_steps is not None:
        _check_own_steps(solver, num_steps, controller, whole_way)
        num_steps = len(own_steps) - 1
    if num_steps is not None:
        num_steps = operator.index(num_steps)
        _check_grid(num_steps, controller, adjoint)
    else:
        # Made here, and never tested with `is`: after `fit`, a restore, or any `jax.tree.map` a
        # stored default is a copy, which would look like the user's own.
        if controller is None:
            controller = dfx.PIDController(rtol=1e-5, atol=1e-5)
        _check_controller(controller, solver)

    max_steps = operator.index(max_steps)
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    # Another tolerance compiles nothing. Integers stay: Diffrax leaves out the terms whose
    # coefficient is the number 0.
    controller = floats_as_arrays(controller)
    return Solve(solver, controller, adjoint, num_steps, max_steps, throw)


def _check_own_steps(
    solver: dfx.AbstractSolver,
    num_steps: int | None,
    controller: dfx.AbstractStepSizeController | None,
    whole_way: bool,
) -> None:
    name = type(solver).__name__
    if not whole_way:
        raise ValueError(
            f"`solver` {name} was fitted to go from noise to data, for `fk.sample` alone; "
            "give a solver such as `diffrax.Tsit5()`."
        )
    if num_steps is not None or controller is not None:
        raise ValueError(
            f"`solver` {name} brings its own steps: leave `num_steps` and "
            "`stepsize_controller` out."
        )


def _check_grid(
    num_steps: int,
    controller: dfx.AbstractStepSizeController | None,
    adjoint: dfx.AbstractAdjoint,
) -> None:
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    if controller is not None:
        raise ValueError(
            "give `num_steps` or `stepsize_controller`, not both; `num_steps` is a "
            "uniform grid."
        )
    if (
        isinstance(adjoint, dfx.BacksolveAdjoint)
        and "stepsize_controller" not in adjoint.kwargs
    ):
        raise ValueError(
            "`adjoint=BacksolveAdjoint()` cannot walk the grid of `num_steps` backwards; "
            "give it steps of its own, such as "
            "`diffrax.BacksolveAdjoint(solver=diffrax.Tsit5(), stepsize_controller="
            "diffrax.PIDController(rtol=1e-5, atol=1e-5))`, or leave `adjoint` out."
        )


def _check_controller(
    controller: dfx.AbstractStepSizeController, solver: dfx.AbstractSolver
) -> None:
    if isinstance(controller, dfx.ConstantStepSize):
        raise ValueError(
            "give `num_steps` for constant steps, in place of "
            "`stepsize_controller=ConstantStepSize()`."
        )
    adaptive = isinstance(controller, dfx.AbstractAdaptiveStepSizeController)
    if adaptive and not has_error_estimate(solver):
        raise ValueError(
            f"`solver` {type(solver).__name__} has no error estimate, so an adaptive "
            "`stepsize_controller` would accept every step; give `num_steps`, or a solver "
            "such as `diffrax.Tsit5()`."
        )
    if adaptive:
        _warn_of_tolerances(controller)


def _warn_of_tolerances(controller: Any) -> None:
    """Warns of tolerances that are below the rounding of every step."""
    rtol = controller.rtol
    atol = controller.atol
    if is_traced(rtol, atol):
        return
    dtype = jnp.result_type(float)
    rounding = float(jnp.finfo(dtype).eps)
    if max(rtol, atol) < rounding:
        warnings.warn(
            "`stepsize_controller` has the tolerances "
            f"rtol={rtol:g} and atol={atol:g}, but in {dtype} every step rounds by more: "
            "it takes more steps, up to `max_steps`, without a smaller error. "
            f"Give {8 * rounding:.0e} or more, or use float64 "
            "(`jax.config.update('jax_enable_x64', True)`).",
            stacklevel=2,
        )


def has_error_estimate(solver: dfx.AbstractSolver) -> bool:
    """Whether an adaptive controller can steer by a solver's own error estimate."""
    tableau = getattr(solver, "tableau", None)
    if isinstance(tableau, dfx.ButcherTableau):
        return bool(np.any(tableau.b_error))

    return isinstance(solver, dfx.AbstractAdaptiveSolver)


def compiled(fn: Callable) -> Callable:
    """`eqx.filter_jit(fn)`, with a remedy where the adjoint has no forward mode."""
    jitted = eqx.filter_jit(fn)

    @ft.wraps(fn)
    def call(*args):
        try:
            return jitted(*args)
        except TypeError as error:
            # JAX names neither the argument nor a remedy. If it changes its wording,
            # only this hint is lost.
            if "custom_vjp" not in str(error):
                raise

            raise ValueError(
                "the default `adjoint` has reverse mode only; give "
                "`adjoint=diffrax.ForwardMode()` for `jax.jvp` and `jax.jacfwd`, or "
                "`adjoint=diffrax.DirectAdjoint()` with a small `max_steps` for second "
                "derivatives such as `jax.hessian`."
            ) from error

    return call
