"""The reports of benchmarks: a table on the screen, and a JSON file with the results.

The file also states the machine, the versions and the seed.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import optax

import flowkit as fk


RESULTS = Path(__file__).parent / "results"

Name = TypeVar("Name", bound=Hashable)


def save(name: str, seed: int, **results: Any) -> None:
    """Writes `benchmarks/results/<name>.json`."""
    names = ("jax", "equinox", "diffrax", "optax", "numpy", "scipy")
    versions = {name: importlib.metadata.version(name) for name in names}
    report = {
        "machine": {
            "cpus": os.cpu_count(),
            "processor": _processor(),
            "device": jax.devices()[0].device_kind,
        },
        "versions": {"python": platform.python_version()} | versions,
        "seed": seed,
    }

    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(report | results, indent=2)
    (RESULTS / f"{name}.json").write_text(f"{text}\n")


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows as a table, with a column for each key."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_text(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]

    print(f"\n{title}")
    for line in cells:
        aligned = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(aligned))


def num_parameters(model: Any) -> int:
    """The number of weights."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return sum(leaf.size for leaf in leaves)


def median_seconds(call: Callable[[], Any], repeats: int = 7) -> float:
    """The median wall time of a call, until its result is ready."""
    # The first call compiles, and is not counted.
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def step_call(
    loss: Callable[..., Any],
    model: Any,
    batch: Any,
    optimizer: fk.training.Optimizer | None = None,
    ema_decay: Any = None,
    **options: Any,
) -> Callable[[], Any]:
    """A call of one training step, by default with Adam, which is compiled once."""
    optimizer = optimizer or optax.adam(1e-3)
    average: Any = {"ema_decay": ema_decay}
    key = jax.random.key(0)
    states = [fk.training.init_state(model, optimizer, **average, key=key)]
    step = fk.training.make_step(loss, optimizer, **average, **options)

    # A step takes the memory of the state that it is given, so the last one is kept.
    def call():
        states[0], metrics = step(states[0], batch)
        return metrics

    return call


def median_seconds_in_turns(
    calls: Mapping[Name, Callable[[], Any]], rounds: int = 9
) -> dict[Name, float]:
    """The median wall time of each call, all of them taking turns.

    A machine that is slower for a while is then slower for all of them.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())

    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of_one(call))
    return {name: statistics.median(several) for name, several in times.items()}


def values_in_turns(
    measures: Mapping[Name, Callable[[], float]], rounds: int
) -> dict[Name, list[float]]:
    """What each measure returns in each round, all of them taking turns.

    A round before them, in which everything is compiled, is not counted.
    """
    values: dict[Name, list[float]] = {name: [] for name in measures}
    for measure in measures.values():
        measure()

    for _ in range(rounds):
        for name, measure in measures.items():
            values[name].append(measure())
    return values


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds of the ratio of two measures."""
    pairs = zip(values, others, strict=True)
    return statistics.median(value / other for value, other in pairs)


def seconds_of_one(call: Callable[[], Any], least: float = 0.05) -> float:
    """The wall time of a call, a mean over at least `least` seconds."""
    num = 0
    start = time.perf_counter()
    elapsed = 0.0
    while elapsed < least:
        jax.block_until_ready(call())
        num += 1
        elapsed = time.perf_counter() - start
    return elapsed / num


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":")[1].strip()
            for line in lines
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
