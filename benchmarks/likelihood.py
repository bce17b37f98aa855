"""The error and the cost of log-probabilities.

    python benchmarks/likelihood.py
    python benchmarks/likelihood.py --peer-python PATH   # with flow_matching
    python benchmarks/likelihood.py --parts weights --name weights

- `mixtures`: exact flows of eight Gaussians. Samples come with their log-densities, which
  are compared with those of the mixture, in nats.
- `weights`: a trained flow of moons. Log-densities are compared with a solve in float64 and
  with `compute_likelihood` of flow_matching on the same weights. Solvers run to tolerances,
  and in a few steps whose times are fitted to the flow.
- `checkerboard`: mean negative log-density of held-out points by a trained flow, and the
  integral of its density. The squares have the area 8 / 0.45^2, as in the notebook of
  flow_matching, so the true value is 3.6765 nats.

Results go to `benchmarks/results/likelihood.json`.
"""

import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import _report
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _peer import peer_versions, run_peer
from _solver_flows import (
    accurate,
    checkerboard,
    checkerboard_data,
    eight_gaussians,
    in_float64,
    moons,
    Trainer,
)
from _transfer import transferred

import flowkit as fk


PEER = "_torch_peers.py"

Part = Literal["mixtures", "weights", "checkerboard"]


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    parts: tuple[Part, ...] = ("mixtures", "weights", "checkerboard")
    """What is measured."""
    peer_python: str | None = None
    """Path of a Python that can import torch and flow_matching."""
    num_points: int = 1024
    """Points of `mixtures` and `weights`."""
    tolerances: tuple[float, ...] = (1e-5, 1e-6)
    """Tolerances of `weights`."""
    fitted_steps: tuple[int, ...] = (10, 14, 18)
    """Steps of `Tsit5` at times that are fitted to the flow of `weights`."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256, 256)
    """Layers of the network of the checkerboard."""
    num_steps: int = 10_000
    """Training steps of the checkerboard."""
    batch_size: int = 1024
    """Points of such a step."""
    num_test: int = 10_000
    """Held-out points of the checkerboard."""
    grid_side: int = 300
    """Points of a side of the grid over which the density is summed."""
    repeats: int = 5
    """Number of calls that are timed."""
    training: float = 1.0
    """Share of the training steps."""
    cache: str | None = None
    """Folder in which trained networks are kept for the next run."""
    name: str = "likelihood"
    """Name of the file with the results."""
    seed: int = 0
    """Random seed."""


def log_probs_by(**options: Any) -> Callable[..., jax.Array]:
    """A program for the log-densities of many points, each with steps of its own."""

    @eqx.filter_jit
    def log_probs(flow, points, keys=None):
        one = lambda x, key: fk.log_prob(flow, x, key=key, **options)
        return eqx.filter_vmap(one)(points, keys)

    return log_probs


def to_tolerance(solver: dfx.AbstractSolver, tolerance: float) -> dict[str, Any]:
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)
    return {"solver": solver, "stepsize_controller": controller}


# Exact flows of mixtures.


def mixtures(config: Config) -> list[dict[str, Any]]:
    """Samples with their log-densities, against the density that the flow is exact for."""
    rows = []
    for size in (2, 16):
        key = jr.fold_in(jr.key(config.seed), size)
        mixture = eight_gaussians(size, key=key)
        flow = fk.exact_flow(mixture)
        for num_probes in (None, 1, 10):

            def call(flow=flow, size=size, num_probes=num_probes, key=key):
                return fk.sample_and_log_prob(
                    flow,
                    (size,),
                    num_samples=config.num_points,
                    num_probes=num_probes,
                    key=key,
                )

            samples = call()
            errors = samples.log_probs - jax.vmap(mixture.log_prob)(samples.values)
            row = {"dimension": size, "trace": name_of(num_probes)}
            rows.append(row | error_columns(errors, call, config))
    return rows


def name_of(num_probes: int | None) -> str:
    return "exact" if num_probes is None else f"{num_probes} probes"


def error_columns(
    errors: jax.Array, call: Callable[[], Any], config: Config
) -> dict[str, float]:
    return {
        "mean error": float(jnp.mean(errors)),
        "mean |error|": float(jnp.mean(jnp.abs(errors))),
        "std": float(jnp.std(errors)),
        "ms": 1e3 * _report.median_seconds(call, config.repeats),
    }


# The same weights in two libraries.


def weights(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Rows of both libraries, and of their differences."""
    flow_key, point_key, probe_key = jr.split(jr.key(config.seed), 3)
    standardized, _ = moons(flow_key, Trainer(config.training, config.cache))
    x1 = fk.data.moons(config.num_points, key=point_key)
    z1 = (x1 - standardized.shift.value) / standardized.scale.value
    flow = standardized.flow

    with jax.enable_x64(True):
        z1_64 = np.asarray(z1, np.float64)
        true = np.asarray(log_probs_by(**accurate(1e-10))(in_float64(flow), z1_64))

    before, _ = of_peer(standardized, z1, config)
    rows = of_flowkit(flow, z1, true, key=probe_key, config=config)
    after, theirs = of_peer(standardized, z1, config)
    for first, second, found in zip(before, after, theirs, strict=True):
        times = {
            name: (first[name] + second[name]) / 2
            for name in ("ms", "with samples, ms")
        }
        row = {"library": "flow_matching", "solver": "dopri5"} | second | times
        rows.append(row | accuracy(found, true))
    return {"libraries": rows, "ratios": ratios(rows)}


def of_peer(
    flow: fk.Standardized, z1: jax.Array, config: Config
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Rows of flow_matching, and its log-densities; none without a Python for it."""
    if config.peer_python is None:
        return [], []
    settings = {
        "tolerances": config.tolerances,
        "repeats": config.repeats,
        "seed": config.seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "network.npz"))
        out = str(Path(folder, "out.npz"))
        np.savez(file, z1=np.asarray(z1), **transferred(flow))
        made = run_peer(
            config.peer_python, PEER, "likelihood", file, json.dumps(settings), out
        )
        with np.load(out) as arrays:
            found = [arrays[str(i)] for i in range(len(made["rows"]))]
    print(f"velocities of the copied network agree to {made['velocities']:.1e}")
    return made["rows"], found


class Way(NamedTuple):
    """How a solver takes its steps."""

    labels: dict[str, Any]
    back: dict[str, Any]
    """Options from data to noise."""
    forth: dict[str, Any]
    """Options from noise to data."""


def ways(flow: Any, config: Config, *, key: jax.Array) -> Iterator[Way]:
    for solver in (dfx.Dopri5(), dfx.Tsit5()):
        for tolerance in config.tolerances:
            labels = {"solver": type(solver).__name__, "tolerance": tolerance}
            options = to_tolerance(solver, tolerance)
            yield Way(labels, options, options)

    for num_steps in config.fitted_steps:
        solver = dfx.Tsit5()
        fit = {"num_steps": num_steps, "solver": solver}
        times = fk.solvers.fit_grid(flow, (2,), **fit, key=key)
        labels = {"solver": f"Tsit5, {num_steps} fitted steps", "tolerance": None}
        grids = (times[::-1], times)
        back, forth = (
            {"solver": solver, "stepsize_controller": dfx.StepTo(grid)}
            for grid in grids
        )
        yield Way(labels, back, forth)


def of_flowkit(
    flow: Any, z1: jax.Array, true: np.ndarray, *, key: jax.Array, config: Config
) -> list[dict[str, Any]]:
    """Log-densities by the exact trace and by one probe, and samples with theirs."""
    probe_keys = jr.split(key, len(z1))
    rows = []
    for way in ways(flow, config, key=key):
        program = log_probs_by(**way.back)
        for num_probes, keys in ((None, None), (1, probe_keys)):
            call = lambda program=program, keys=keys: program(flow, z1, keys)
            draw = lambda way=way, num_probes=num_probes: fk.sample_and_log_prob(
                flow,
                (2,),
                num_samples=len(z1),
                num_probes=num_probes,
                batching=fk.solvers.SharedStep(),
                key=key,
                **way.forth,
            )
            times = {
                "ms": 1e3 * _report.median_seconds(call, config.repeats),
                "with samples, ms": 1e3 * _report.median_seconds(draw, config.repeats),
            }
            trace = "exact" if num_probes is None else "one probe"
            row = {"library": "flowkit"} | way.labels | {"trace": trace} | times
            rows.append(row | accuracy(np.asarray(call()), true))
    return rows


def accuracy(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Differences from the exact trace in float64."""
    errors = found.astype(np.float64) - true
    return {
        "largest error": float(np.abs(errors).max()),
        "mean error": float(errors.mean()),
        "std": float(errors.std()),
    }


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as long flow_matching takes as flowkit, and the errors of both.

    Rows of the same trace are compared, at the same tolerance or at fitted times.
    """
    of = {
        library: [row for row in rows if row["library"] == library]
        for library in ("flowkit", "flow_matching")
    }
    pairs = itertools.product(of["flow_matching"], of["flowkit"])
    return [
        {
            "trace": theirs["trace"],
            "tolerance": theirs["tolerance"],
            "solver": ours["solver"],
            "ratio": theirs["ms"] / ours["ms"],
            "with samples, ratio": theirs["with samples, ms"]
            / ours["with samples, ms"],
            "std": ours["std"],
            "std of flow_matching": theirs["std"],
        }
        for theirs, ours in pairs
        if ours["trace"] == theirs["trace"]
        and ours["tolerance"] in (None, theirs["tolerance"])
    ]


# The checkerboard.


def board(config: Config) -> dict[str, Any]:
    """Mean negative log-densities of held-out points, and the integral of the density."""
    flow_key, test_key, probe_key = jr.split(jr.key(config.seed + 1), 3)
    flow, _ = checkerboard(
        flow_key,
        Trainer(config.training, config.cache),
        hidden_sizes=config.hidden_sizes,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
    )
    points = checkerboard_data(config.num_test, key=test_key)
    exact = log_probs_by()(flow, points)
    probe_keys = jr.split(probe_key, len(points))
    probed = log_probs_by(num_probes=10)(flow, points, probe_keys)
    return {
        "true": math.log(8 / 0.45**2),
        "exact trace": -float(jnp.mean(exact)),
        "standard error": float(jnp.std(exact)) / math.sqrt(len(points)),
        "10 probes": -float(jnp.mean(probed)),
        "integral": integral(flow, config.grid_side),
    }


def integral(flow: Any, side: int) -> float:
    """The sum of the density over a grid that holds nearly all of it."""
    # The board ends at 4.44.
    edge = 6.5
    width = 2 * edge / side
    places = -edge + width * (np.arange(side) + 0.5)
    points = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
    points = points.astype(np.float32)
    # A row at a time: far from the data a point takes more steps, for which others wait.
    parts = np.split(points, side)
    log_probs = log_probs_by()
    densities = [np.exp(np.asarray(log_probs(flow, part))) for part in parts]
    return float(width**2 * np.sum(densities, dtype=np.float64))


def main(config: Config) -> None:
    versions = peer_versions(config.peer_python, PEER)
    results: dict[str, Any] = {}
    if "mixtures" in config.parts:
        results["mixtures"] = mixtures(config)
    if "weights" in config.parts:
        results |= weights(config)
    if "checkerboard" in config.parts:
        results["checkerboard"] = [board(config)]

    for title, rows in results.items():
        _report.show(title, rows)
    _report.save(
        config.name,
        config.seed,
        peer_versions=versions,
        config=dataclasses.asdict(config) | {"peer_python": None, "cache": None},
        results=results,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
