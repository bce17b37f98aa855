"""What importing flowkit costs beside the libraries below it, and what working in blocks saves a training step.

    python benchmarks/foundations.py

Prints two tables, and writes them with machine, versions and seed to `benchmarks/results/foundations.json`.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.random as jr
import optax

import flowkit as fk


SEED = 0
REPEATS = 7
BELOW = "import jax, equinox, diffrax, optax"


def import_seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def compare_imports() -> dict:
    """Alternating, so that both see the same machine."""
    pairs = [(import_seconds(BELOW), import_seconds("import flowkit")) for _ in range(REPEATS)]
    below, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"below_seconds": below, "flowkit_seconds": ours, "ratio": ours / below}


def step_seconds(num_clouds: int, num_points: int, block: int | None) -> float:
    """The median training step of PointNet, AdaLNMLP and a flow prior."""
    ekey, fkey, pkey, xkey, skey = jr.split(jr.key(SEED), 5)
    prior = fk.latent.FlowPrior(fk.Flow(fk.nn.MLP(32, hidden_sizes=(128,) * 5, key=pkey)), 32)
    flow = fk.Flow(fk.nn.AdaLNMLP(2, 32, key=fkey))
    model = fk.latent.SetFlow(fk.nn.PointNet(2, 32, key=ekey), flow, prior)
    optimizer = optax.adam(1e-3)
    loss = lambda model, points, key: fk.latent.set_flow_loss(model, points, key=key, block=block)
    step = fk.training.make_step(loss, optimizer)
    state = fk.training.init_state(model, optimizer, key=skey)
    points = jr.normal(xkey, (num_clouds, num_points, 2))
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        state, metrics = step(state, points)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def compare_blocks() -> list[dict]:
    rows = []
    for num_clouds, num_points, block in ((64, 64, 16), (256, 64, 16), (256, 500, 8)):
        whole, blocked = (step_seconds(num_clouds, num_points, size) for size in (None, block))
        row = {"clouds": num_clouds, "points": num_points, "block": block}
        rows.append(row | {"whole_ms": 1e3 * whole, "blocked_ms": 1e3 * blocked, "ratio": whole / blocked})
    return rows


def main() -> None:
    imports, blocks = compare_imports(), compare_blocks()
    print(f"import: {imports['flowkit_seconds']:.2f} s, {imports['ratio']:.2f} x jax, equinox, diffrax and optax")
    print("clouds x points  block   whole ms   blocked ms   ratio")
    for row in blocks:
        print(
            f"{row['clouds']:6d} x {row['points']:<6d} {row['block']:6d} {row['whole_ms']:10.0f} "
            f"{row['blocked_ms']:12.0f} {row['ratio']:7.2f}"
        )
    names = ("jax", "equinox", "diffrax", "optax")
    report = {
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "device": jax.devices()[0].device_kind},
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
        "seed": SEED,
        "imports": imports,
        "blocks": blocks,
    }
    path = Path(__file__).parent / "results" / "foundations.json"
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
