"""A training run that is killed at random steps ends with the same bits as one that is not.

    python benchmarks/kills.py
    python benchmarks/kills.py --placement FullySharded --devices 4

A process trains a small flow with a checkpoint every 25 steps, and takes at least 10 ms for a
step. It is killed (SIGKILL) at a random step, at most `--most-steps` after it has started,
and started again by the same command, until it has been killed often enough; then it may end.
Steps are counted, not seconds: on a busy machine a process may take long to start, to compile
and to save, and would be killed again and again before its first checkpoint. Weights,
average, moments and history are compared bit by bit. Results go to
`benchmarks/results/kills_<placement>.json`.
"""

import dataclasses
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import _report
import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    kills: int = 20
    """How often the process is killed."""
    placement: Literal["OneDevice", "Replicated", "FullySharded", "Pmapped"] = (
        "OneDevice"
    )
    """How the training is spread over devices."""
    devices: int = 1
    """Virtual devices of a CPU."""
    num_steps: int = 3000
    """Steps of the training."""
    most_steps: int = 200
    """After how many of its steps a process is killed at the latest. Its first checkpoint is
    complete after 50 of them, since the next one waits for it."""
    seed: int = 0
    """Random seed of the steps at which it is killed."""
    folder: str | None = None
    """Train there, and print the digest of the result: what the benchmark itself calls."""


def train(config: Config, folder: str) -> None:
    import jax
    import jax.random as jr
    import numpy as np
    import optax

    import flowkit as fk

    def slowed(state, step):
        if step == 0:
            return
        time.sleep(0.01)
        print("step", step, flush=True)

    def loss(flow, batch, key):
        return fk.flow_matching_loss(flow, batch, key=key)

    data = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)
    result = fk.training.fit(
        loss,
        fk.Flow(fk.nn.MLP(2, hidden_sizes=(32, 32), key=jr.key(0))),
        fk.data.batches(data, 32),
        optimizer=optax.adam(1e-3),
        num_steps=config.num_steps,
        parallel=getattr(fk.training, config.placement)(),
        checkpoints=fk.training.Checkpoints(folder, every=25),
        callbacks=[slowed],
        progress=False,
        key=jr.key(1),
    )

    digest = hashlib.sha256()
    state = (result.model, result.state.average, result.state.opt_state)
    for leaf in jax.tree.leaves((state, result.history)):
        if isinstance(leaf, jax.Array | np.ndarray):
            digest.update(np.asarray(leaf).tobytes())
    print("digest", digest.hexdigest(), flush=True)


def start(config: Config, folder: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--folder", folder]
    command += ["--placement", config.placement, "--num-steps", str(config.num_steps)]
    flags = f"--xla_force_host_platform_device_count={config.devices}"
    # A process that is halted for a while has not failed.
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=3600"
    environment = os.environ | {"XLA_FLAGS": flags}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def digest_of(process: subprocess.Popen) -> str:
    output, _ = process.communicate()
    lines = [line for line in output.splitlines() if line.startswith("digest")]
    if process.returncode or not lines:
        raise SystemExit(f"the training ended with status {process.returncode}")
    return lines[0].split()[1]


def killed_at(process: subprocess.Popen, num_steps: int) -> int | None:
    """The last step that it printed; `None` if it came to its end before."""
    out: Any = process.stdout
    lines = [out.readline() for _ in range(num_steps)]
    # Whatever it does now: the next step, or a checkpoint in the background.
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    if process.returncode > 0:
        raise SystemExit(f"the training ended with status {process.returncode}")
    lines += rest.splitlines()
    if any(line.startswith("digest") for line in lines):
        return None
    steps = [line for line in lines if line.startswith("step ")]
    return int(steps[-1].split()[1])


def main(config: Config) -> None:
    if config.folder is not None:
        train(config, config.folder)
        return

    draws = random.Random(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = digest_of(start(config, str(Path(folder, "undisturbed"))))
        steps = []
        while len(steps) < config.kills:
            process = start(config, str(Path(folder, "killed")))
            step = killed_at(process, draws.randint(1, config.most_steps))
            if step is None:
                break
            steps.append(step)
            print(f"killed after step {step}", flush=True)
        ended = digest_of(start(config, str(Path(folder, "killed"))))

    rows = [
        {
            "placement": config.placement,
            "devices": config.devices,
            "kills": len(steps),
            "same bits": ended == undisturbed,
        }
    ]
    _report.show("Killed at random steps", rows)
    results = {"rows": rows, "killed after": steps}
    name = f"kills_{config.placement.lower()}"
    _report.save(name, config.seed, config=dataclasses.asdict(config), results=results)


if __name__ == "__main__":
    main(tyro.cli(Config))
