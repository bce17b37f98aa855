"""Memory of a gradient through the steps of a solve, for `likelihood.py`."""

import math
from typing import Any, NamedTuple

import _report
import diffrax as dfx
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowkit as fk


class Way(NamedTuple):
    """A solver, and how its gradient is taken."""

    solver: dfx.AbstractSolver
    adjoint: dfx.AbstractAdjoint


def ways(num_steps: int) -> dict[str, Way]:
    """Adjoints for a grid of steps; the first one of each solver is exact."""
    tolerances = dfx.PIDController(rtol=1e-5, atol=1e-5)
    backwards = dfx.StepTo(np.arange(num_steps, -1, -1) / np.float32(num_steps))
    midpoint = dfx.Midpoint()
    reversible = dfx.ReversibleHeun()
    return {
        "DirectAdjoint": Way(midpoint, dfx.DirectAdjoint()),
        "RecursiveCheckpointAdjoint": Way(midpoint, dfx.RecursiveCheckpointAdjoint()),
        "BacksolveAdjoint, tolerance 1e-5": Way(
            midpoint,
            dfx.BacksolveAdjoint(solver=dfx.Tsit5(), stepsize_controller=tolerances),
        ),
        "RecursiveCheckpointAdjoint, ReversibleHeun": Way(
            reversible, dfx.RecursiveCheckpointAdjoint()
        ),
        "BacksolveAdjoint, ReversibleHeun": Way(
            reversible,
            dfx.BacksolveAdjoint(solver=reversible, stepsize_controller=backwards),
        ),
    }


def compiled_gradient(flow: Any, x0: jax.Array, num_steps: int, way: Way) -> Any:
    """The compiled gradient of a loss at the ends with respect to the weights."""
    arrays, static = eqx.partition(flow, eqx.is_inexact_array)

    def loss(arrays, x0):
        flow = eqx.combine(arrays, static)

        def end(x):
            options: Any = way._asdict()
            ends: Any = fk.integrate(flow, x, num_steps=num_steps, **options).ys
            return ends[-1]

        return jnp.mean(jax.vmap(end)(x0) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(arrays, x0).compile()
    return lambda: compiled(arrays, x0), compiled.memory_analysis()


def memory_rows(
    flow: Any, num_steps: tuple[int, ...], num_samples: int
) -> list[dict[str, Any]]:
    """MiB of temporary arrays for each number of steps, and the power of their growth.

    Errors and times are those of the largest number. Errors are relative to the gradient
    through all steps of the same solver.
    """
    x0 = jr.normal(jr.key(0), (num_samples, 2))
    exact: dict[str, jax.Array] = {}
    rows = []
    for name in ways(1):
        row: dict[str, Any] = {"adjoint": name}
        sizes = []
        call: Any = None
        for number in num_steps:
            way = ways(number)[name]
            call, analysis = compiled_gradient(flow, x0, number, way)
            sizes.append(analysis.temp_size_in_bytes)
            row[f"{number} steps, MiB"] = sizes[-1] / 2**20

        growth = math.log(sizes[-1] / sizes[0])
        row["power"] = growth / math.log(num_steps[-1] / num_steps[0])
        vector, _ = jax.flatten_util.ravel_pytree(call())
        true = exact.setdefault(type(way.solver).__name__, vector)
        row["error"] = float(jnp.linalg.norm(vector - true) / jnp.linalg.norm(true))
        row["ms"] = 1e3 * _report.median_seconds(call, 3)
        rows.append(row)
    return rows
