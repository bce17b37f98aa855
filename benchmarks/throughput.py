"""Training steps next to torch, torchcfm, plain Equinox, and what the machine can do.

    python benchmarks/throughput.py                      # a quarter of an hour
    python benchmarks/throughput.py --peer-python PATH   # with torch, in its Python
    python benchmarks/throughput.py --quick              # tries everything, measures little

- Steps (loss, gradient, Adam) of two MLPs in the plane, without and with exact plans.
- Steps of PointNet and an AdaLN MLP on clouds, as flowkit chooses its blocks, in torch, and
  as Flow-Mix has them, in plain Equinox; and a step of the main job.
- The matrix products of each, against the measured peak of such products, and their bytes
  against the measured bandwidth of the memory.
- Steps against batch, points and width.
- What data, logs and checkpoints add to a step, and how long a step compiles.

Everything takes turns, and ratios are medians of the ratios of single rounds. Before
anything is timed, networks and losses of all libraries are compared. Results go to
`benchmarks/results/throughput.json` and `.png`.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import _report
import numpy as np
import tyro
from _peer import Peer, peer_versions
from _throughput_goals import goals
from _throughput_pipeline import compile_times, surroundings
from _throughput_steps import machine_table, points_in_plane, Sizes, step_tables
from _throughput_sweep import picture, sweep


PEER = "_torch_throughput.py"
Part = Literal["steps", "sweep", "surroundings", "compiling"]


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    peer_python: str | None = None
    """Path of a Python that can import torch and torchcfm."""
    rounds: int = 3
    """Number of times that everything is timed, one after the other."""
    steps_per_call: int = 20
    """Steps of the MLPs in a compiled call, next to one in each call."""
    num_clouds: int = 256
    """Clouds of a batch of PointNet and the AdaLN MLP."""
    num_points: int = 500
    """Points of each of them."""
    parts: tuple[Part, ...] = ("steps", "sweep", "surroundings", "compiling")
    """What is measured. The results of the other parts stay as they are."""
    quick: bool = False
    """Whether everything is made small, to see that it runs. Nothing is written."""
    seed: int = 0
    """Random seed."""

    def made_small(self) -> "Config":
        return dataclasses.replace(self, rounds=1, num_clouds=8, num_points=50)


def measured_steps(
    config: Config, peer: Peer | None, tables: dict[str, Any]
) -> dict[str, Any]:
    """Steps next to those of others, and next to what the machine can do."""
    del tables
    sizes = Sizes(
        config.steps_per_call,
        config.num_clouds,
        config.num_points,
        config.rounds,
        config.seed,
        10 if config.quick else 1,
    )
    return step_tables(sizes, peer)


def sweep_tables(
    config: Config, peer: Peer | None, tables: dict[str, Any]
) -> dict[str, Any]:
    """Steps against batch, points and width."""
    # Without the part of the steps nothing is known of the machine.
    machine = tables.get("machine") or machine_table(config.rounds, peer)
    [row] = machine
    rate = 1e9 * max(value for name, value in row.items() if name.startswith("peak"))
    rows = sweep(few(config), rate, peer, shorten=2 if config.quick else 1)
    return {"machine": machine, "sweep": rows}


def surrounding_tables(
    config: Config, peer: Peer | None, tables: dict[str, Any]
) -> dict[str, Any]:
    """What data, logs and checkpoints add."""
    del peer, tables
    sizes = (512, 64, 4) if config.quick else (20_000, 256, 40)
    return {"surroundings": surroundings(config.rounds, *sizes)}


def compile_tables(
    config: Config, peer: Peer | None, tables: dict[str, Any]
) -> dict[str, Any]:
    """Seconds until a step is compiled."""
    del peer, tables
    return {"compiling": compile_times(few(config))}


def few(config: Config) -> int:
    return min(config.rounds, 3)


PARTS = {
    "steps": measured_steps,
    "sweep": sweep_tables,
    "surroundings": surrounding_tables,
    "compiling": compile_tables,
}


def stored() -> dict[str, Any]:
    """The tables of an earlier run."""
    path = _report.RESULTS / "throughput.json"
    return json.loads(path.read_text())["results"] if path.exists() else {}


def save(config: Config, versions: dict[str, str], tables: dict[str, Any]) -> None:
    _report.save(
        "throughput",
        config.seed,
        peer_versions=versions,
        config=dataclasses.asdict(config) | {"peer_python": None},
        results=tables,
    )
    if "sweep" in tables:
        file = _report.RESULTS / "throughput.png"
        picture(tables["sweep"]).savefig(file, dpi=110)


def measure(config: Config, peer: Peer | None) -> None:
    """Measures the parts that are asked for; the tables of the others stay."""
    versions = peer_versions(config.peer_python, PEER)
    tables = {} if config.quick else stored()
    for part in config.parts:
        tables |= PARTS[part](config, peer, tables)
        tables["goals"] = goals(tables)
        # After each part, so that an interrupted run leaves what it has.
        if not config.quick:
            save(config, versions, tables)
    for title, rows in tables.items():
        _report.show(title, rows)


def main(config: Config) -> None:
    if config.quick:
        config = config.made_small()
    if config.peer_python is None:
        measure(config, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "data.npy"))
        np.save(file, points_in_plane(config.seed))
        peer = Peer(config.peer_python, PEER, "serve", file)
        measure(config, peer)
        peer.close()


if __name__ == "__main__":
    main(tyro.cli(Config))
