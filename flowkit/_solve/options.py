"""How an ODE is solved: solver, steps, and their limit."""

from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np


DEFAULT_SOLVER = dfx.Tsit5()


DEFAULT_CONTROLLER = dfx.PIDController(rtol=1e-5, atol=1e-5)


class SolverOptions(NamedTuple):
    """How to solve, checked by `solver_options`."""

    solver: dfx.AbstractSolver
    num_steps: int | None
    controller: dfx.AbstractStepSizeController
    max_steps: int


def solver_options(
    solver: dfx.AbstractSolver,
    num_steps: int | None,
    controller: dfx.AbstractStepSizeController,
    max_steps: int,
) -> SolverOptions:
    """Checks that solver and steps can do what is asked for, and makes tolerances arrays."""
    if num_steps is not None:
        if num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
        if controller is not DEFAULT_CONTROLLER:
            raise ValueError(
                "give `num_steps` or `stepsize_controller`, not both; `num_steps` is a uniform grid."
            )
    elif isinstance(controller, dfx.ConstantStepSize):
        raise ValueError(
            "give `num_steps` for constant steps, in place of `stepsize_controller=ConstantStepSize()`."
        )
    elif isinstance(
        controller, dfx.AbstractAdaptiveStepSizeController
    ) and not has_error_estimate(solver):
        raise ValueError(
            f"`solver` {type(solver).__name__} has no error estimate, so an adaptive `stepsize_controller` would "
            "accept every step; give `num_steps`, or a solver such as `diffrax.Tsit5()`."
        )
    return SolverOptions(solver, num_steps, _traced_tolerances(controller), max_steps)


def _traced_tolerances(controller: Any) -> Any:
    """The controller with its tolerances as arrays: a Python number would be a constant of the program."""

    def convert(path, leaf):
        named = path and getattr(path[-1], "name", None) in (
            "rtol",
            "atol",
            "dtmin",
            "dtmax",
        )
        # From a Python float, so that it takes the type of the state.
        return (
            jnp.asarray(float(leaf))
            if named and isinstance(leaf, float | int)
            else leaf
        )

    return jax.tree_util.tree_map_with_path(convert, controller)


def has_error_estimate(solver: dfx.AbstractSolver) -> bool:
    """Whether an adaptive controller can steer by a solver's own error estimate."""
    tableau = getattr(solver, "tableau", None)
    if isinstance(tableau, dfx.ButcherTableau):
        return bool(np.any(tableau.b_error))

    return isinstance(solver, dfx.AbstractAdaptiveSolver)
