"""torchdiffeq, torchdyn and flow_matching on the weights of a network of flowkit.

    python _torch_peers.py versions
    python _torch_peers.py solve NETWORK.npz OPTIONS_AS_JSON
    python _torch_peers.py likelihood NETWORK.npz OPTIONS_AS_JSON OUT.npz

`solver_accuracy.py` and `likelihood.py` run this in the Python of these libraries. The
velocities of the copied network must agree to 1e-5 before anything is measured. A library
that is not installed is left out. The last line is JSON: rows of a table.
"""

import functools
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn.functional import linear, silu  # pyright: ignore[reportMissingImports]


LIBRARIES = ("torchdiffeq", "torchdyn", "flow_matching")

GRIDS = {
    "torchdiffeq": ("euler", "midpoint", "heun3", "rk4", "explicit_adams"),
    "torchdyn": ("euler", "midpoint", "rk4"),
    "flow_matching": ("midpoint",),
}

ADAPTIVE = {
    "torchdiffeq": ("adaptive_heun", "bosh3", "dopri5", "dopri8"),
    "torchdyn": ("dopri5", "tsit5"),
    "flow_matching": ("dopri5",),
}


def is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


class Network(torch.nn.Module):
    """An MLP with SiLU on `[x, time]`, which counts how often it is called."""

    def __init__(self, data):
        super().__init__()
        number = sum(name.startswith("weight") for name in data)
        # flowkit multiplies from the left.
        self.weights = [
            torch.from_numpy(data[f"weight{i}"].T.copy()) for i in range(number)
        ]
        self.biases = [torch.from_numpy(data[f"bias{i}"]) for i in range(number)]
        self.frequencies = None
        if "frequencies" in data:
            self.frequencies = torch.from_numpy(data["frequencies"])
        self.calls = 0

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        h = torch.cat([x, self.time(t.to(x.dtype).reshape(-1, 1), len(x))], 1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = silu(linear(h, weight, bias))
        return linear(h, self.weights[-1], self.biases[-1])

    def time(self, t: torch.Tensor, number: int) -> torch.Tensor:
        if self.frequencies is not None:
            angles = t * self.frequencies
            t = torch.cat([torch.sin(angles), torch.cos(angles)], 1)
        return t.expand(number, -1)


def load(file: str):
    """The arrays of a file, and their network, whose velocities are checked."""
    with np.load(file) as arrays:
        data = dict(arrays)
    network = Network(data)
    with torch.no_grad():
        places = torch.from_numpy(data["places"])
        found = network(torch.from_numpy(data["times"]), places).numpy()
    difference = float(np.abs(found - data["velocities"]).max())
    if difference > 1e-5:
        raise SystemExit(f"velocities of the copied network differ by {difference}.")
    return data, network, difference


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """The median wall time of a call that was made before."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# Solves.


def solve_on_grid(library, network, x0, solver: str, num_steps: int) -> torch.Tensor:
    if library == "torchdiffeq":
        from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]

        options = {"step_size": 1 / num_steps}
        return odeint(network, x0, ends(), method=solver, options=options)[-1]
    if library == "torchdyn":
        from torchdyn.numerics import odeint  # pyright: ignore[reportMissingImports]

        times = torch.linspace(0, 1, num_steps + 1)
        return odeint(network, x0, times, solver)[1][-1]
    return of_flow_matching(network).sample(
        x_init=x0, step_size=1 / num_steps, method=solver
    )


def solve_to_tolerance(
    library, network, x0, solver: str, tolerance: float
) -> torch.Tensor:
    both = {"atol": tolerance, "rtol": tolerance}
    if library == "torchdiffeq":
        from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]

        return odeint(network, x0, ends(), method=solver, **both)[-1]
    if library == "torchdyn":
        from torchdyn.numerics import odeint  # pyright: ignore[reportMissingImports]

        return odeint(network, x0, ends(), solver, **both)[1][-1]
    return of_flow_matching(network).sample(
        x_init=x0, step_size=None, method=solver, **both
    )


def ends() -> torch.Tensor:
    return torch.tensor([0.0, 1.0])


@functools.cache
def of_flow_matching(network):
    from flow_matching.solver import (  # pyright: ignore[reportMissingImports]
        ODESolver,
    )

    return ODESolver(velocity_model=network)


def rows_of(
    data, network, library: str, solver: str, steps: str, options
) -> Iterator[dict[str, Any]]:
    """Rows of all settings, until one takes as many evaluations as are allowed."""
    is_grid = steps == "uniform"
    solve = solve_on_grid if is_grid else solve_to_tolerance
    x0 = torch.from_numpy(data["x0"])
    mean = torch.from_numpy(data["mean"])
    std = torch.from_numpy(data["std"])

    for setting in options["num_steps" if is_grid else "tolerances"]:
        call = lambda setting=setting: (
            mean + std * solve(library, network, x0, solver, setting)
        )
        network.calls = 0
        values = call().numpy().astype(np.float64)
        calls = network.calls
        yield {
            "library": library,
            "solver": solver,
            "steps": steps,
            "batching": "shared step",
            "setting": setting,
            "evaluations": float(calls),
            "most": calls,
            "error": float(np.sqrt(np.mean((values - data["ends"]) ** 2))),
            "ms": 1e3 * seconds(call, options["repeats"]),
        }
        factor = 2 if is_grid else 1
        if factor * calls > options["max_evaluations"]:
            return


@torch.no_grad()
def solve_all(file: str, options: str) -> dict[str, Any]:
    data, network, difference = load(file)
    settings = json.loads(options)
    rows = []
    for library in filter(is_installed, LIBRARIES):
        kinds = {"uniform": GRIDS[library], "adaptive": ADAPTIVE[library]}
        for steps, solvers in kinds.items():
            for solver in solvers:
                rows += rows_of(data, network, library, solver, steps, settings)
    return {"rows": rows, "velocities": difference}


# Likelihoods.


def likelihoods(file: str, settings_as_json: str, out: str) -> dict[str, Any]:
    """Log-densities in standardized coordinates, by the exact trace and by one probe.

    Samples with their densities take a solve for each, since the library has no other way.
    """
    data, network, difference = load(file)
    if not is_installed("flow_matching"):
        raise SystemExit("flow_matching is not installed: `pip install flow_matching`.")
    settings = json.loads(settings_as_json)
    solver = of_flow_matching(network)
    z1 = torch.from_numpy(data["z1"])
    torch.manual_seed(settings["seed"])

    rows = []
    found = {}
    for is_exact in (True, False):
        for tolerance in settings["tolerances"]:
            options = {
                "step_size": None,
                "method": "dopri5",
                "atol": tolerance,
                "rtol": tolerance,
            }

            def log_probs(is_exact=is_exact, options=options):
                return solver.compute_likelihood(
                    x_1=z1.clone(),
                    log_p0=standard_normal,
                    exact_divergence=is_exact,
                    **options,
                )[1]

            def both(log_probs=log_probs, options=options):
                return solver.sample(x_init=z1, **options), log_probs()

            network.calls = 0
            found[str(len(rows))] = log_probs().detach().numpy()
            rows.append(
                {
                    "trace": "exact" if is_exact else "one probe",
                    "tolerance": tolerance,
                    "evaluations": network.calls,
                    "ms": 1e3 * seconds(log_probs, settings["repeats"]),
                    "with samples, ms": 1e3 * seconds(both, settings["repeats"]),
                }
            )
    np.savez(out, **found)
    return {"rows": rows, "velocities": difference}


def standard_normal(x: torch.Tensor) -> torch.Tensor:
    return -0.5 * torch.sum(x**2 + math.log(2 * math.pi), 1)


def main() -> None:
    # JAX computes with as many.
    torch.set_num_threads(os.cpu_count() or 1)
    command, *arguments = sys.argv[1:]
    if command == "versions":
        names = ("torch", *filter(is_installed, LIBRARIES))
        print(json.dumps({name: version(name) for name in names}))
    elif command == "solve":
        print(json.dumps(solve_all(*arguments)))
    else:
        print(json.dumps(likelihoods(*arguments)))


if __name__ == "__main__":
    main()
