"""Ways to solve a flow, for `solver_accuracy.py`: solvers, grids, tolerances and batchings.

A `Method` holds the settings of one solver from coarse to fine. Those of a grid, and those
of a tolerance, share a compiled program.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import _report
import diffrax as dfx
import jax
import jax.random as jr
import numpy as np
from _solver_flows import Case

import flowkit as fk


SOLVERS: dict[str, dfx.AbstractSolver] = {
    "Euler": dfx.Euler(),
    "Heun": dfx.Heun(),
    "Midpoint": dfx.Midpoint(),
    "Ralston": dfx.Ralston(),
    "Bosh3": dfx.Bosh3(),
    "RK4": fk.RK4(),
    "Tsit5": dfx.Tsit5(),
    "Dopri5": dfx.Dopri5(),
    "Dopri8": dfx.Dopri8(),
    "Adams-Bashforth 2": fk.solvers.AdamsBashforth(2),
    "Adams-Bashforth 3": fk.solvers.AdamsBashforth(3),
}

BATCHED = ("Tsit5", "Dopri5")
"""The adaptive solvers that are run with every batching."""

GRIDS: dict[str, tuple[int, ...]] = {"Midpoint": (4, 8), "RK4": (6,), "Tsit5": (4, 10)}
"""The solvers whose grids are chosen and fitted, with their numbers of steps."""

NUM_STEPS = tuple(2**k for k in range(10))

LOCKSTEP = "lockstep"


class EqualSteps(dfx.AbstractStepSizeController):
    """The grid of `num_steps=n`, with a number that is traced.

    So all grids of a solver are one compiled program, where `num_steps` compiles for each.
    """

    num_steps: Any

    def wrap(self, direction: Any) -> "EqualSteps":
        del direction
        return self

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
    ) -> tuple[Any, Any]:
        del dt0
        step = (t1 - t0) / self.num_steps
        constant = dfx.ConstantStepSize()
        return constant.init(terms, t0, t1, y0, step, args, func, error_order)

    def adapt_step_size(self, *args: Any, **kwargs: Any) -> Any:
        return dfx.ConstantStepSize().adapt_step_size(*args, **kwargs)


class Method(NamedTuple):
    """Settings of one solver, from coarse to fine, each with its options of `fk.sample`."""

    solver: str
    steps: str
    settings: Mapping[float, dict[str, Any]]
    batching: str = LOCKSTEP


class Budget(NamedTuple):
    """How far the settings go, and how often each is timed."""

    tolerances: tuple[float, ...]
    max_evaluations: int
    fitted_evaluations: tuple[int, ...]
    repeats: int


def uniform(name: str, solver: dfx.AbstractSolver) -> Method:
    settings = {
        float(number): {
            "solver": solver,
            "stepsize_controller": EqualSteps(float(number)),
        }
        for number in NUM_STEPS
    }
    return Method(name, "uniform", settings)


def adaptive(
    name: str,
    solver: dfx.AbstractSolver,
    tolerances: tuple[float, ...],
    batching: str = LOCKSTEP,
    how: Any = fk.solvers.Lockstep(),
) -> Method:
    settings = {
        tolerance: {
            "solver": solver,
            "stepsize_controller": dfx.PIDController(rtol=tolerance, atol=tolerance),
            "batching": how,
        }
        for tolerance in tolerances
    }
    return Method(name, "adaptive", settings, batching)


def takes_tolerance(solver: dfx.AbstractSolver) -> bool:
    """Whether a tolerance can steer the solver."""
    if brings_grid(solver):
        return False
    tableau = getattr(solver, "tableau", None)
    # That of RK4 has zeros in place of an estimate.
    if isinstance(tableau, dfx.ButcherTableau):
        return bool(np.any(tableau.b_error))
    return isinstance(solver, dfx.AbstractAdaptiveSolver)


def brings_grid(solver: dfx.AbstractSolver) -> bool:
    """Whether the solver has steps of its own, as fitted ones do."""
    return hasattr(solver, "steps")


def methods(
    case: Case, own: Mapping[str, dfx.AbstractSolver], budget: Budget, *, key: jax.Array
) -> Iterator[Method]:
    """All ways to solve a flow: first those that know nothing of it, then fitted ones."""
    solvers = SOLVERS | dict(own)
    for name, solver in solvers.items():
        if brings_grid(solver):
            yield Method(name, "own", {1.0: {"solver": solver}})
        else:
            yield uniform(name, solver)
        if takes_tolerance(solver):
            yield adaptive(name, solver, budget.tolerances)

    batchings = {
        "shared step": fk.solvers.SharedStep(),
        "refilled slots": fk.solvers.RefilledSlots(max(1, len(case.starts) // 8)),
    }
    batched = [*BATCHED, *(name for name in own if takes_tolerance(own[name]))]
    for name in batched:
        for batching, how in batchings.items():
            yield adaptive(name, solvers[name], budget.tolerances, batching, how)

    grid_key, steps_key = jr.split(key)
    for name in GRIDS:
        yield chosen(case, name)
        yield fitted_grids(case, name, key=grid_key)
    yield fitted_steps(case, budget, key=steps_key)


def fixed_grids(num_steps: int, end: float) -> list[jax.Array]:
    """Nine grids: seven shifted ones, of which one is uniform, a quadratic one, and EDM's."""
    shifts = (1 / 3, 1 / 2, 2 / 3, 1.0, 3 / 2, 2.0, 3.0)
    return [
        *(fk.solvers.shifted_grid(num_steps, shift, end=end) for shift in shifts),
        fk.solvers.power_grid(num_steps, end=end),
        fk.solvers.edm_grid(num_steps, end=end),
    ]


def chosen(case: Case, name: str) -> Method:
    """The best of the fixed grids for each number of steps, by its error in the table."""
    end = getattr(case.flow, "t_end", 1.0)
    settings = {}
    for number in GRIDS[name]:
        errors = {}
        for grid in fixed_grids(number, end):
            options = on_grid(name, grid)
            errors[case.error(case.sample(**options).values)] = options
        settings[number] = errors[min(errors)]
    return Method(name, "best fixed grid", settings)


def fitted_grids(case: Case, name: str, *, key: jax.Array) -> Method:
    """Grids that are fitted to the flow, on other noise than its starts."""
    settings = {}
    for number in GRIDS[name]:
        times = fk.solvers.fit_grid(
            case.flow,
            case.starts.shape[1:],
            num_steps=number,
            solver=SOLVERS[name],
            **fit_options(case),
            key=key,
        )
        settings[number] = on_grid(name, times)
    return Method(name, "fitted grid", settings)


def fitted_steps(case: Case, budget: Budget, *, key: jax.Array) -> Method:
    """Solvers that are fitted to the flow, on other noise than its starts."""
    settings = {}
    for number in budget.fitted_evaluations:
        steps = fk.solvers.fit_steps(
            case.flow,
            case.starts.shape[1:],
            num_evaluations=number,
            **fit_options(case),
            key=key,
        )
        settings[number] = {"solver": steps}
    return Method("fit_steps", "fitted steps", settings)


def fit_options(case: Case) -> dict[str, Any]:
    recipe = case.recipe
    return {
        "num_noises": recipe.num_noises,
        "num_iterations": recipe.num_iterations,
    }


def on_grid(name: str, times: jax.Array) -> dict[str, Any]:
    return {"solver": SOLVERS[name], "stepsize_controller": dfx.StepTo(times)}


def measure(case: Case, method: Method, budget: Budget) -> Iterator[dict[str, Any]]:
    """Rows of all settings, until one takes as many evaluations as are allowed."""
    for setting, options in method.settings.items():
        start = time.perf_counter()
        samples = jax.block_until_ready(case.sample(**options))
        first = time.perf_counter() - start
        seconds = _report.median_seconds(
            lambda options=options: case.sample(**options), budget.repeats
        )

        evaluations = evaluations_of(samples.stats)
        yield {
            "library": "flowkit",
            "solver": method.solver,
            "steps": method.steps,
            "batching": method.batching,
            "setting": setting,
            "evaluations": float(evaluations.mean()),
            "most": int(evaluations.max()),
            "error": case.error(samples.values),
            "ms": 1e3 * seconds,
            "first call, s": first,
        }
        # A grid of twice the steps would go over the limit.
        factor = 2 if method.steps == "uniform" else 1
        if factor * evaluations.mean() > budget.max_evaluations:
            return


def evaluations_of(stats: Any) -> np.ndarray:
    """Evaluations of each sample, or attempted steps of a solver that does not say."""
    if stats.evaluations is None:
        return np.asarray(stats.accepted + stats.rejected)
    return np.asarray(stats.evaluations)
