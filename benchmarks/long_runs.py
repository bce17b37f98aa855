"""Training runs of 10,000 steps on virtual devices, in every placement: which finish.

    python benchmarks/long_runs.py

Virtual devices of a CPU share its cores. Steps that are dispatched too far ahead, or
devices that wait for each other in the wrong order, hang, and this shows only in long runs.
Each training has a process of its own, which is ended after `--seconds`. It makes one step
in a call, or ten in a loop. The time per step is the median over the tenths of a run, the
loss is the mean of its last tenth. Results go to `benchmarks/results/long_runs.json`.
"""

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time

import _report
import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    placements: tuple[str, ...] = ("Replicated", "FullySharded", "Pmapped")
    """Classes of `fk.training`; one device comes first, to compare with."""
    devices: tuple[int, ...] = (2, 4, 8)
    """Numbers of virtual devices."""
    steps_per_call: tuple[int, ...] = (1, 10)
    """Steps of one compiled call."""
    num_steps: int = 10_000
    """Steps of each training."""
    seconds: float = 600.0
    """Time after which a training run counts as hanging."""
    child: bool = False
    """Train the first of all these, and print its result: what the benchmark itself calls."""


def train(config: Config) -> None:
    import jax.random as jr
    import numpy as np
    import optax

    import flowkit as fk

    def loss(flow, batch, key):
        return fk.flow_matching_loss(flow, batch, key=key)

    tenth = config.num_steps // 10
    times = []
    note = fk.training.Every(tenth, lambda state, step: times.append(time.monotonic()))
    data = np.random.default_rng(0).normal(size=(4096, 2)).astype(np.float32)
    result = fk.training.fit(
        loss,
        fk.Flow(fk.nn.MLP(2, hidden_sizes=(32, 32), key=jr.key(0))),
        fk.data.batches(data, 64),
        optimizer=optax.adam(1e-3),
        num_steps=config.num_steps,
        steps_per_call=config.steps_per_call[0],
        parallel=getattr(fk.training, config.placements[0])(),
        callbacks=[note],
        progress=False,
        key=jr.key(1),
    )

    # The first tenth has the compilation in it.
    seconds = statistics.median(np.diff(times)[1:])
    last_losses = result.history["loss"].values[-tenth:]
    row = {"ms": 1e3 * seconds / tenth, "loss": float(np.mean(last_losses))}
    print(json.dumps(row), flush=True)


def run(config: Config, placement: str, devices: int, steps_per_call: int) -> dict:
    """One training in a process of its own."""
    command = [sys.executable, __file__, "--child", "--placements", placement]
    command += ["--steps-per-call", str(steps_per_call)]
    command += ["--num-steps", str(config.num_steps)]

    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    # A process that was halted for a while has not stood still.
    flags += (
        f" --xla_cpu_collective_call_terminate_timeout_seconds={config.seconds:.0f}"
    )
    environment = os.environ | {"XLA_FLAGS": flags}

    row = {
        "placement": placement,
        "devices": devices,
        "steps per call": steps_per_call,
    }
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment
    )
    output = output_within(process, config.seconds)
    if output is None or process.returncode:
        return row | {"ended": False}
    return row | {"ended": True} | json.loads(output.splitlines()[-1])


def output_within(process: subprocess.Popen, seconds: float) -> str | None:
    """What a process prints; `None` if it takes longer and is ended."""
    # In turns of a second: time in which this process and that one are halted together
    # does not count.
    for _ in range(math.ceil(seconds)):
        try:
            return process.communicate(timeout=1)[0]
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()
    return None


def main(config: Config) -> None:
    if config.child:
        train(config)
        return

    cases = [("OneDevice", 1, count) for count in config.steps_per_call]
    for placement in config.placements:
        for devices in config.devices:
            cases += [(placement, devices, count) for count in config.steps_per_call]

    rows = []
    for case in cases:
        rows.append(run(config, *case))
        print(rows[-1], flush=True)
        # After each of them: all together take a while.
        _report.save("long_runs", 0, config=dataclasses.asdict(config), rows=rows)
    _report.show(f"Trainings of {config.num_steps} steps", rows)


if __name__ == "__main__":
    main(tyro.cli(Config))
