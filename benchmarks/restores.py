"""Checkpoints of eight devices, restored on as many and on fewer, in every placement.

    python benchmarks/restores.py

A small flow is trained for some steps in each placement on eight virtual devices. Processes
with 8, 4, 2 and 1 devices then resume from each of these checkpoints in each placement. What
is restored (weights, average, moments) must have the bits that were saved, and the losses of
the steps that follow must be those of one device, up to the order of sums. Results go to
`benchmarks/results/restores.json`.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _report
import jax
import jax.random as jr
import numpy as np
import optax
import tyro

import flowkit as fk


PLACEMENTS = ("OneDevice", "Replicated", "FullySharded", "Pmapped")
ADAM = optax.adam(1e-3)


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    devices: tuple[int, ...] = (8, 4, 2, 1)
    """Virtual devices of the processes that restore; the first number saves, too."""
    num_steps: int = 20
    """Steps before a checkpoint, and steps after it."""
    folder: str | None = None
    """Save there, or restore if that was done; only the benchmark itself sets this."""


def loss(flow: fk.Flow, batch: Any, key: jax.Array) -> jax.Array:
    return fk.flow_matching_loss(flow, batch, key=key)


def fit(placement: str, num_steps: int, folder: Path | None = None) -> Any:
    saved = None if folder is None else fk.training.Checkpoints(folder)
    data = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)
    return fk.training.fit(
        loss,
        fk.Flow(fk.nn.MLP(2, hidden_sizes=(32, 32), key=jr.key(0))),
        fk.data.batches(data, 32),
        optimizer=ADAM,
        num_steps=num_steps,
        parallel=getattr(fk.training, placement)(),
        checkpoints=saved,
        progress=False,
        key=jr.key(1),
    )


def digest(result: Any) -> str:
    """Of weights, average and moments."""
    found = hashlib.sha256()
    state = (result.model, result.state.average, result.state.opt_state)
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array):
            found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def save(folder: Path, num_steps: int) -> dict:
    """The digests of what was saved, and the losses of one device that goes on."""
    digests = {}
    for placement in PLACEMENTS:
        digests[placement] = digest(fit(placement, num_steps, folder / placement))
    straight = fit("OneDevice", 2 * num_steps).history["loss"].values
    return {"digests": digests, "losses": straight[num_steps:].tolist()}


def restore(folder: Path, num_steps: int) -> list[dict]:
    """Digest and losses for every pair of placements, on the devices of this process."""
    rows = []
    for source in PLACEMENTS:
        for target in PLACEMENTS:
            copy = folder / f"{source}-{target}-{jax.device_count()}"
            shutil.copytree(folder / source, copy)
            restored = digest(fit(target, num_steps, copy))
            losses = fit(target, 2 * num_steps, copy).history["loss"].values
            row = {"source": source, "target": target, "digest": restored}
            rows.append(row | {"losses": losses[num_steps:].tolist()})
    return rows


def in_process(config: Config, devices: int, folder: str) -> Any:
    """What a process with so many devices prints."""
    command = [sys.executable, __file__, "--folder", folder]
    command += ["--num-steps", str(config.num_steps)]
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    options: dict = {"stdout": subprocess.PIPE, "text": True, "check": True}
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, **options)
    return json.loads(done.stdout.splitlines()[-1])


def compared(saved: dict, found: list[dict], devices: int) -> list[dict]:
    """One row for each placement that restores."""
    rows = []
    for target in PLACEMENTS:
        ours = [row for row in found if row["target"] == target]
        same = [row["digest"] == saved["digests"][row["source"]] for row in ours]
        losses = np.array([row["losses"] for row in ours])
        gap = np.max(np.abs(losses / np.array(saved["losses"]) - 1))
        row = {"restored as": target, "devices": devices, "checkpoints": len(ours)}
        rows.append(row | {"same bits": all(same), "gap of losses": float(gap)})
    return rows


def main(config: Config) -> None:
    if config.folder is not None:
        folder = Path(config.folder)
        is_saved = any(folder.iterdir())
        print(json.dumps((restore if is_saved else save)(folder, config.num_steps)))
        return

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        saved = in_process(config, config.devices[0], folder)
        for devices in config.devices:
            found = in_process(config, devices, folder)
            rows += compared(saved, found, devices)
    _report.show("Restored from checkpoints of every placement", rows)
    _report.save("restores", 0, config=dataclasses.asdict(config), rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Config))
