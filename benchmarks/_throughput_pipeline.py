"""What surrounds a training step, for `throughput.py`: data, logs, checkpoints, compiling."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _report
import jax
import jax.random as jr
import numpy as np
from _peer import run_peer
from _throughput_networks import MainJob, parameters

import flowkit as fk


LOG_EVERY = 10
CHECKPOINTS = 2
"""Checkpoints of a run."""
CHECKPOINT_EVERY = 500
"""Steps between two checkpoints by default in `examples/point_clouds.py`."""


def surroundings(
    rounds: int, num_clouds: int, num_points: int, num_steps: int
) -> list[dict[str, Any]]:
    """Steps of the main job, from arrays on the device and with more and more around them.

    The data have the shape of MNIST's clouds: 500 points, of which a step takes some.
    """
    job = MainJob.of(num_clouds, 500, num_points)
    points = jr.normal(jr.key(1), (num_clouds, num_points, 2))
    clouds = fk.data.PointSets(np.asarray(points))
    streams = lambda: {"batches": job.stage.batches}
    resident = lambda: {"batches": clouds, "batch_size": job.batch_size}

    with tempfile.TemporaryDirectory() as folder:
        logger = lambda: fk.training.JsonLines(Path(folder, "log.jsonl"))
        logged = lambda: (
            streams() | {"callbacks": [fk.training.Every(LOG_EVERY, logger())]}
        )
        saved = lambda: logged() | {"checkpoints": _checkpoints(folder, num_steps)}
        options = {
            "arrays on the device": resident,
            "+ fk.data.batches": streams,
            "+ JsonLines": logged,
            "+ checkpoints": saved,
        }
        runs = {name: _run(job, of, num_steps) for name, of in options.items()}
        seconds = _report.values_in_turns(runs, rounds)
    return _rows(seconds, num_steps)


def _checkpoints(folder: str, num_steps: int) -> fk.training.Checkpoints:
    # A new folder, since a run would go on from what it finds.
    place = tempfile.mkdtemp(dir=folder)
    return fk.training.Checkpoints(place, every=num_steps // CHECKPOINTS)


def _run(
    job: MainJob, options: Callable[[], dict[str, Any]], num_steps: int
) -> Callable[[], float]:
    """A training run, in seconds until everything is done."""

    def measure() -> float:
        given = options()
        start = time.perf_counter()
        result = fk.training.fit(
            job.stage.loss,
            job.model,
            given.pop("batches"),
            optimizer=job.stage.optimizer,
            num_steps=num_steps,
            ema_decay=job.ema_decay,
            progress=False,
            key=jr.key(0),
            **given,
        )
        jax.block_until_ready(parameters(result.state))
        return time.perf_counter() - start

    return measure


def _rows(seconds: dict[str, list[float]], num_steps: int) -> list[dict[str, Any]]:
    """Milliseconds of a step, and what each addition adds to one, as a part of it."""
    first, *_ = seconds.values()
    rows = []
    for name, values in seconds.items():
        rows.append(
            {
                "training": name,
                "ms a step": 1e3 * statistics.median(values) / num_steps,
                "part of a step": _report.median_ratio(values, first) - 1,
            }
        )

    # As the main job saves by default, not as often as it is measured here.
    *_, without, with_checkpoints = seconds.values()
    pairs = zip(with_checkpoints, without, strict=True)
    each = statistics.median(more - less for more, less in pairs) / CHECKPOINTS
    step = statistics.median(first) / num_steps
    rows[-1] |= {
        "ms a checkpoint": 1e3 * each,
        "part at its pace": each / (CHECKPOINT_EVERY * step),
    }
    return rows


def compile_times(rounds: int) -> list[dict[str, Any]]:
    """Seconds of tracing and compiling in a new process, without and with a cache."""
    found: dict[str, list[dict[str, Any]]] = {"cold": [], "from the cache": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for values in found.values():
                values.append(run_peer(sys.executable, "_compile_time.py", folder))

    rows = []
    for step in found["cold"][0]:
        for start, values in found.items():
            row = {"step": step, "start": start}
            for part in ("trace", "compile"):
                median = statistics.median(value[step][part] for value in values)
                row[f"{part}, s"] = median
            rows.append(row)
    return rows
