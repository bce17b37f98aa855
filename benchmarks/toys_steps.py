"""The cost of a training step, with and without a plan.

    python benchmarks/toys_steps.py                      # a few minutes
    python benchmarks/toys_steps.py --peer-python PATH   # with torchcfm, in its Python

Prints milliseconds of a training step at batch 256, for a network of three layers of
64, and writes them to `benchmarks/results/toys_steps.json`.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import _report
import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import tyro
from _peer import peer_versions, run_peer
from _toys import matching_loss

import flowkit as fk


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    peer_python: str | None = None
    """Path of a Python that can import torch and torchcfm."""
    step_repeats: int = 5
    """Number of times that the steps are timed, flowkit and the peer in turn."""
    seed: int = 0
    """Random seed."""


class Case(NamedTuple):
    """A training whose steps are timed."""

    loss: Callable
    batches: Callable[[], Any]
    steps_per_call: int
    num_steps: int
    options: dict[str, Any] = {}


def independent_loss(flow, x1, key):
    """Flow matching with the independent coupling."""
    return fk.flow_matching_loss(flow, x1, key=key)


def assignment_loss(flow, x1, key):
    """Flow matching with an exact plan that is made in the step."""
    return fk.flow_matching_loss(flow, x1, key=key, coupling=fk.assignment)


def cases(data: np.ndarray) -> dict[str, Case]:
    """All training runs that are timed."""

    def examples() -> np.ndarray:
        return data

    def planned(size: int) -> Iterable[fk.Pairs]:
        return fk.planned_pairs(fk.data.batches(data, size), 256, key=jr.key(3))

    drawn = {"batch_size": 256}
    return {
        "independent": Case(independent_loss, examples, 1, 2000, drawn),
        "independent, 20 steps a call": Case(
            independent_loss, examples, 20, 2000, drawn
        ),
        "exact plan in the step": Case(assignment_loss, examples, 1, 200, drawn),
        "exact plan per step, ahead": Case(matching_loss, lambda: planned(256), 4, 400),
        "exact plan of 1024, for four steps": Case(
            matching_loss, lambda: planned(1024), 4, 200
        ),
    }


def run_case(case: Case, flow: fk.Flow, num_steps: int) -> None:
    """Trains, and waits for the result."""
    state = fk.training.fit(
        case.loss,
        flow,
        case.batches(),
        steps_per_call=case.steps_per_call,
        num_steps=num_steps,
        progress=False,
        ema_decay=None,
        key=jr.key(2),
        **case.options,
    ).state
    jax.block_until_ready(jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array)))


def milliseconds(case: Case, flow: fk.Flow) -> float:
    """The mean over the steps of a run."""
    # A short run first, which compiles.
    run_case(case, flow, 2 * case.steps_per_call)

    start = time.perf_counter()
    run_case(case, flow, case.num_steps)
    return 1e3 * (time.perf_counter() - start) / case.num_steps


def peer_milliseconds(python: str | None, data: np.ndarray) -> dict[str, float]:
    """The times of torchcfm, if there is a Python for it."""
    if python is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "data.npy"))
        np.save(file, data)
        return run_peer(python, "_torchcfm.py", "steps", file)


def step_times(config: Config) -> dict[str, dict[str, float]]:
    """Medians over the repeats, for both libraries."""
    data = np.asarray(fk.data.eight_gaussians(20_000, key=jr.key(config.seed)))
    network = fk.nn.MLP(
        2, hidden_sizes=(64, 64, 64), activation=jax.nn.selu, key=jr.key(1)
    )
    flow = fk.Flow(network)

    # In turn, so that both libraries see the same machine.
    ours = []
    theirs = []
    for _ in range(config.step_repeats):
        timed = cases(data).items()
        ours.append({name: milliseconds(case, flow) for name, case in timed})
        theirs.append(peer_milliseconds(config.peer_python, data))
    return {"flowkit": medians(ours), "torchcfm": medians(theirs)}


def medians(repeats: list[dict[str, float]]) -> dict[str, float]:
    """The median of each value."""
    return {
        name: float(np.median([times[name] for times in repeats]))
        for name in repeats[0]
    }


def main(config: Config) -> None:
    versions = peer_versions(config.peer_python, "_torchcfm.py")
    times = step_times(config)

    for library, values in times.items():
        rows = [{"step": name, "ms": value} for name, value in values.items()]
        _report.show(f"{library}: milliseconds of a step", rows)
    _report.save(
        "toys_steps",
        config.seed,
        peer_versions=versions,
        config=dataclasses.asdict(config) | {"peer_python": None},
        results=times,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
