"""The memory and the error of gradients through the steps of a solve, by adjoint.

    python benchmarks/adjoints.py

The loss is the mean square of the ends of many samples, its gradient that with respect to
the weights of a network. Memory is that of temporary arrays, as the compiler reports it, for
every number of steps, with the power of the steps by which it grows. The error is that of
the gradient in float32, relative to a gradient in float64 through all steps of the same
solver; and that one is compared with finite differences.

Results go to `benchmarks/results/adjoints.json`.
"""

import dataclasses
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
import tyro
from _solver_flows import in_float64

import flowkit as fk


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    solver_steps: tuple[int, ...] = (25, 100, 400)
    """Numbers of steps."""
    num_samples: int = 256
    """Samples whose ends the loss sees."""
    hidden_sizes: tuple[int, ...] = (128, 128, 128)
    """Layers of the network."""
    name: str = "adjoints"
    """Name of the file with the results."""
    seed: int = 0
    """Random seed."""


class Way(NamedTuple):
    """A solver, and how its gradient is taken."""

    solver: dfx.AbstractSolver
    adjoint: dfx.AbstractAdjoint


def ways(num_steps: int) -> dict[str, Way]:
    """Adjoints for a grid of steps."""
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


def loss_of(flow: Any, num_steps: int, way: Way) -> tuple[Any, Any]:
    """A loss of the weights and the starts, and the weights."""
    arrays, static = eqx.partition(flow, eqx.is_inexact_array)
    options: Any = way._asdict() | {"num_steps": num_steps}

    def loss(arrays, x0):
        flow = eqx.combine(arrays, static)
        end = lambda x: fk.integrate(flow, x, **options).ys[-1]  # pyright: ignore
        return jnp.mean(jax.vmap(end)(x0) ** 2)

    return loss, arrays


def gradient(flow: Any, x0: Any, num_steps: int, way: Way) -> tuple[np.ndarray, int]:
    """The gradient as one vector, and the bytes that it takes."""
    loss, arrays = loss_of(flow, num_steps, way)
    compiled = jax.jit(jax.grad(loss)).lower(arrays, x0).compile()
    vector, _ = jax.flatten_util.ravel_pytree(compiled(arrays, x0))
    memory: Any = compiled.memory_analysis()
    return np.asarray(vector), memory.temp_size_in_bytes


def float64_gradients(
    flow: Any, x0: Any, num_steps: int
) -> tuple[dict[str, np.ndarray], float]:
    """For each solver, the gradient through all steps, and the largest relative difference
    of one of its directions from finite differences."""
    with jax.enable_x64(True):
        flow = in_float64(flow)
        x0 = np.asarray(x0, np.float64)
        vectors = {}
        differences = []
        for solver in (dfx.Midpoint(), dfx.ReversibleHeun()):
            way = Way(solver, dfx.RecursiveCheckpointAdjoint())
            vector, _ = gradient(flow, x0, num_steps, way)
            vectors[type(solver).__name__] = vector

            loss, arrays = loss_of(flow, num_steps, way)
            weights, unravel = jax.flatten_util.ravel_pytree(arrays)
            # Along the gradient, where the derivative is its norm.
            direction = vector / np.linalg.norm(vector)
            along = jax.jit(
                lambda h, u=unravel, w=weights, d=direction, f=loss: f(u(w + h * d), x0)
            )
            slope = float(along(1e-5) - along(-1e-5)) / 2e-5
            differences.append(abs(slope / np.linalg.norm(vector) - 1))
    return vectors, max(differences)


def measured(config: Config) -> tuple[list[dict[str, Any]], float]:
    flow_key, start_key = jr.split(jr.key(config.seed))
    sizes = config.hidden_sizes
    network = fk.nn.MLP(2, hidden_sizes=sizes, zero_init=False, key=flow_key)
    flow = fk.Flow(network)
    x0 = jr.normal(start_key, (config.num_samples, 2))
    first, *_, last = config.solver_steps
    true, difference = float64_gradients(flow, x0, last)

    rows = []
    for name in ways(last):
        row: dict[str, Any] = {"adjoint": name}
        found: list[tuple[np.ndarray, int]] = []
        for number in config.solver_steps:
            found.append(gradient(flow, x0, number, ways(number)[name]))
            row[f"{number} steps, MiB"] = found[-1][1] / 2**20

        growth = math.log(found[-1][1] / found[0][1])
        row["power"] = growth / math.log(last / first)
        vector = true[type(ways(last)[name].solver).__name__]
        error = np.linalg.norm(found[-1][0] - vector)
        row["error"] = float(error / np.linalg.norm(vector))
        rows.append(row)
    return rows, difference


def main(config: Config) -> None:
    rows, difference = measured(config)
    _report.show("gradients", rows)
    print(f"finite differences agree with the float64 gradients to {difference:.1e}")
    _report.save(
        config.name,
        config.seed,
        config=dataclasses.asdict(config),
        rows=rows,
        finite_differences=difference,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
