"""What a training step costs on many devices, by placement: bytes moved, and memory.

    python benchmarks/placements.py

The numbers are read from the compiled steps of a network with a loop inside, by the script of
the tests, `tests/collectives.py`: bytes that each device sends, and those of the state that it
holds (weights and the two moments of Adam), both in units of the bytes of the weights. Nothing
is timed. Results go to `benchmarks/results/placements.json` and, as a picture with the
formulas as lines, to `docs/pages/images/placements.png`.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import _report
import numpy as np
import tyro
from matplotlib.figure import Figure


PROJECT = Path(__file__).parents[1]
PICTURE = PROJECT / "docs" / "pages" / "images" / "placements.png"
STATE = 3
"""Weights and two moments."""
LOOKS = {
    "replicated": {"color": "#2171b5", "marker": "o", "markersize": 9},
    "sharded": {"color": "#e6550d", "marker": "s", "markersize": 5},
    "pmapped": {"color": "#31a354", "marker": "x", "markersize": 6},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    devices: tuple[int, ...] = (2, 4, 8, 16)
    """Numbers of virtual devices."""


def measured(devices: tuple[int, ...]) -> list[dict]:
    """One row for each placement and number of devices."""
    script = PROJECT / "tests" / "collectives.py"
    command = [sys.executable, str(script), *map(str, devices), "loop"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)

    rows = []
    for name, found in json.loads(done.stdout).items():
        placement, _, num = name.split()
        row = {"placement": placement, "devices": int(num)}
        row |= {"bytes sent": found["bytes"], "bytes held": found["arguments"]}
        row["formula"] = 2 * (int(num) - 1) / int(num)
        rows.append(row)
    return rows


def draw(rows: list[dict], path: Path) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    sent, held = figure.subplots(1, 2)
    for placement, look in LOOKS.items():
        ours = [row for row in rows if row["placement"] == placement]
        devices = [row["devices"] for row in ours]
        for axes, name in ((sent, "bytes sent"), (held, "bytes held")):
            values = [row[name] for row in ours]
            axes.plot(devices, values, linestyle="", label=placement, **look)

    num = np.array(sorted({row["devices"] for row in rows}))
    line = {"color": "gray", "linewidth": 1, "zorder": 0}
    sent.plot(num, 2 * (num - 1) / num, label="$2 (n - 1) / n$", **line)
    held.plot(num, STATE / num, label=f"${STATE} / n$", **line)
    held.plot(num, np.full(len(num), STATE), linestyle=":", label=f"${STATE}$", **line)

    sent.set(title="Sent by a device in a step", ylabel="bytes / $P$", ylim=(0, 2.2))
    held.set(title="State held by a device", yscale="log")
    for axes in (sent, held):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="devices", xticks=num, xticklabels=num)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main(config: Config) -> None:
    rows = measured(config.devices)
    _report.show("A step on many devices, in units of the weights", rows)
    _report.save("placements", 0, config=dataclasses.asdict(config), rows=rows)
    draw(rows, PICTURE)


if __name__ == "__main__":
    main(tyro.cli(Config))
