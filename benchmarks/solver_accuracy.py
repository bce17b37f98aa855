"""The error of every solver on every flow, against evaluations and against time.

    python benchmarks/solver_accuracy.py
    python benchmarks/solver_accuracy.py --peer-python PATH   # with other libraries
    python benchmarks/solver_accuracy.py --solver mine:solver --name mine
    python benchmarks/solver_accuracy.py --flow mine:make_flow --flows moons --name mine

Flows: exact ones of a Gaussian and of mixtures in 2, 16 and 128 dimensions; networks that
are trained briefly on a checkerboard, moons, clouds of points and images. The error is the
root mean square, over all entries, of the distances between the ends and those of a solve
in float64 with the same weights and starts. That solve must agree with a looser one to a
tenth of the smallest error, or the run fails.

Solvers run on uniform grids and to tolerances, with one step size for each sample or for
the batch, and with grids and coefficients that are fitted on other noise. With
`--peer-python`, torchdiffeq, torchdyn and flow_matching solve the flow of moons with the
same weights. Time is the median of calls of a compiled program.

`--solver` names a Diffrax solver of your own, and `--flow` a function of a key that returns
`(flow, shape)`, a velocity field from standard normal noise. Results go to
`benchmarks/results/<name>.json` and `.png`.
"""

import dataclasses
import json
import pkgutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import _report
import jax
import jax.random as jr
import numpy as np
import tyro
from _peer import peer_versions, run_peer
from _solver_flows import Case, FLOWS, make_case, own, Trainer
from _solver_methods import Budget, measure, methods, NUM_STEPS
from _solver_picture import picture
from _transfer import transferred


PEER = "_torch_peers.py"

TARGETS = (1e-2, 1e-3, 1e-4, 1e-5)


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    peer_python: str | None = None
    """Path of a Python that can import torch, and torchdiffeq, torchdyn or flow_matching."""
    flows: tuple[str, ...] = tuple(FLOWS)
    """The flows to solve."""
    flow: tuple[str, ...] = ()
    """Flows of your own, each `package.module:function` of a key."""
    solver: tuple[str, ...] = ()
    """Solvers of your own, each `package.module:object`."""
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    """Relative and absolute tolerances of adaptive solvers, from coarse to fine."""
    max_evaluations: int = 128
    """Mean number of evaluations after which a solver's settings get no finer."""
    fitted_evaluations: tuple[int, ...] = (8, 16)
    """Evaluations of solvers that are fitted to a flow."""
    repeats: int = 5
    """Number of calls that are timed."""
    training: float = 1.0
    """Share of the training steps, and of those of fitting a solver."""
    cache: str | None = None
    """Folder in which trained networks are kept for the next run."""
    name: str = "solver_accuracy"
    """Name of the files with the results."""
    seed: int = 0
    """Random seed."""

    def budget(self) -> Budget:
        return Budget(
            self.tolerances,
            self.max_evaluations,
            self.fitted_evaluations,
            self.repeats,
        )


def recipes(config: Config) -> dict[str, Any]:
    """The chosen flows, and those of the user."""
    unknown = set(config.flows) - set(FLOWS)
    if unknown:
        raise SystemExit(f"unknown flows {sorted(unknown)}; there are {list(FLOWS)}.")
    found = {name: FLOWS[name] for name in FLOWS if name in config.flows}
    found |= {name: own(pkgutil.resolve_name(name)) for name in config.flow}
    return {
        name: recipe._replace(
            num_iterations=max(1, round(config.training * recipe.num_iterations))
        )
        for name, recipe in found.items()
    }


def flow_rows(
    case: Case, own_solvers: dict[str, Any], config: Config, *, key: jax.Array
) -> list[dict[str, Any]]:
    """Rows of all solvers on a flow."""
    budget = config.budget()
    rows = []
    for method in methods(case, own_solvers, budget, key=key):
        rows += measure(case, method, budget)
    return rows


def peer_rows(case: Case, config: Config) -> list[dict[str, Any]]:
    """Rows of other libraries on the same weights."""
    options = {
        "num_steps": NUM_STEPS,
        "tolerances": config.tolerances,
        "max_evaluations": config.max_evaluations,
        "repeats": config.repeats,
    }
    arrays = transferred(case.flow)
    arrays |= {"x0": np.asarray(case.starts), "ends": case.ends}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "network.npz"))
        np.savez(file, **arrays)
        made = run_peer(config.peer_python, PEER, "solve", file, json.dumps(options))
    print(f"velocities of the copied network agree to {made['velocities']:.1e}")
    return made["rows"]


def mean_times(first: list[dict], second: list[dict]) -> list[dict]:
    """The first rows, with the mean of both times."""
    pairs = zip(first, second, strict=True)
    return [a | {"ms": (a["ms"] + b["ms"]) / 2} for a, b in pairs]


def both_libraries(
    case: Case, own_solvers: dict[str, Any], config: Config, *, key: jax.Array
) -> list[dict[str, Any]]:
    """Rows of flowkit, and of other libraries if they solve this flow, too."""
    if case.name != "moons" or config.peer_python is None:
        return flow_rows(case, own_solvers, config, key=key)

    # Before and after, so that both see the same machine.
    before = peer_rows(case, config)
    rows = flow_rows(case, own_solvers, config, key=key)
    return rows + mean_times(before, peer_rows(case, config))


def summary(case: Case, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the flow is, how sure its ends are, and how long a solver compiles."""
    first = {}
    for row in rows:
        if "first call, s" in row:
            name = (row["solver"], row["steps"], row["batching"])
            first.setdefault(name, row["first call, s"] - 1e-3 * row["ms"])
    known = case.recipe.ends
    starts = np.asarray(case.starts)
    return {
        "flow": case.name,
        "shape": str(starts.shape[1:]),
        "samples": len(starts),
        "spread": float(np.std(case.ends)),
        "reference to": case.doubt,
        "closed form to": "" if known is None else case.error(known(starts)),
        "compile, s": float(np.median(list(first.values()))),
    }


def check(case: Case, rows: list[dict[str, Any]]) -> None:
    """The ends must be known far better than the errors that are measured."""
    smallest = min(row["error"] for row in rows)
    if case.doubt > 0.1 * smallest:
        raise SystemExit(
            f"the reference of {case.name} is known to {case.doubt:.1e} only, and the "
            f"smallest error is {smallest:.1e}."
        )


def cheapest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The solver with the fewest evaluations below an error, on each flow."""
    ours = [row for row in rows if row["library"] == "flowkit"]
    table = []
    for name in dict.fromkeys(row["flow"] for row in ours):
        for target in TARGETS:
            line = {"flow": name, "error": target}
            for steps in dict.fromkeys(row["steps"] for row in ours):
                fits = [
                    row
                    for row in ours
                    if row["flow"] == name
                    and row["steps"] == steps
                    and row["error"] <= target
                ]
                best = min(fits, key=lambda row: row["evaluations"], default=None)
                line[steps] = "" if best is None else described(best)
            table.append(line)
    return table


def described(row: dict[str, Any]) -> str:
    name = row["solver"]
    if row["batching"] != "lockstep":
        name += f", {row['batching']}"
    return f"{name}: {row['evaluations']:.0f}"


def main(config: Config) -> None:
    # Modules of the user are looked for where the command runs.
    sys.path.append(str(Path.cwd()))
    own_solvers = {name: pkgutil.resolve_name(name) for name in config.solver}
    versions = peer_versions(config.peer_python, PEER)
    train = Trainer(config.training, config.cache)

    flows = []
    rows = []
    for name, recipe in recipes(config).items():
        # The same flow, whatever others are chosen.
        own_key = jr.fold_in(jr.key(config.seed), zlib.crc32(name.encode()))
        flow_key, fit_key = jr.split(own_key)
        case = make_case(name, recipe, train, key=flow_key)
        found = both_libraries(case, own_solvers, config, key=fit_key)
        check(case, found)

        flows.append(summary(case, found))
        rows += [{"flow": name} | row for row in found]
        _report.show(name, found)
        print(flows[-1], flush=True)
        # Each program holds memory maps, of which Linux gives a process 65,530 by default.
        jax.clear_caches()

    best = cheapest(rows)
    _report.show("flows", flows)
    _report.show("fewest evaluations", best)
    _report.save(
        config.name,
        config.seed,
        peer_versions=versions,
        config=dataclasses.asdict(config) | {"peer_python": None, "cache": None},
        results={"flows": flows, "fewest evaluations": best, "rows": rows},
    )
    picture(rows).savefig(_report.RESULTS / f"{config.name}.png", dpi=100)


if __name__ == "__main__":
    main(tyro.cli(Config))
