"""The cost of convolutions and U-Nets, outside and inside loops, next to torch and torchcfm.

    python benchmarks/images_steps.py                      # some ten minutes
    python benchmarks/images_steps.py --peer-python PATH   # with torchcfm, in its Python

- A training step of a 3 x 3 convolution, alone and inside `lax.scan`, in milliseconds. It
  takes the batch in the blocks that all losses choose; torch takes it whole.
- The velocity of a U-Net, called and inside a solver, in milliseconds of an evaluation.
- Images per second in training: the U-Net of torchcfm's example on MNIST (1,075,361
  parameters, batch 128), and a lean one on patches. The cores work together on one block
  of the batch after another, or each core is a device and takes its share of the batch.

All of flowkit and its peer take turns. Results go to `benchmarks/results/images_steps.json`.
"""

import dataclasses
import statistics
import sys
from collections.abc import Callable
from typing import Any

import _report
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import tyro
from _peer import peer_versions, run_peer
from _unets import flow_loss, lean_unet, torchcfm_unet

import flowkit as fk
from flowkit import nn
from flowkit._blocks import mean_over_batch


PEER = "_torchcfm_images.py"
DIVIDED = "_divided_unets.py"

CONVOLUTIONS = [(32, 28, 64), (64, 14, 128), (64, 32, 32)]
"""Batch size, side and channels."""

SCAN_LENGTH = 5
"""Steps inside a loop."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    peer_python: str | None = None
    """Path of a Python that can import torch and torchcfm."""
    rounds: int = 3
    """Number of times that everything is timed, flowkit and the peer in turn."""
    batch_size: int = 128
    """Images of a training step."""
    seed: int = 0
    """Random seed."""


def convolution_calls(shape: tuple[int, int, int]) -> dict[str, Callable[[], Any]]:
    """A forward pass with all gradients, alone and in a loop."""
    batch, side, channels = shape
    layer = nn.Conv(channels, channels, key=jr.key(0))
    x = jr.normal(jr.key(1), (batch, side, side, channels))

    def error(layer, x):
        return jnp.mean(jnp.square(layer(x))), None

    def loss(layer_and_x):
        mean, _ = mean_over_batch(error, *layer_and_x, block=fk.AutomaticBlock())
        return mean

    step = eqx.filter_jit(eqx.filter_grad(loss))

    @eqx.filter_jit
    def loop(layer, x):
        arrays, static = eqx.partition(layer, eqx.is_array)

        def body(carry, _):
            grads = eqx.filter_grad(loss)((eqx.combine(carry[0], static), carry[1]))
            layer_grads, x_grads = grads
            move = lambda a, b: None if a is None else a - 1e-3 * b
            return jax.tree.map(move, carry, (layer_grads, x_grads)), None

        return jax.lax.scan(body, (arrays, x), length=SCAN_LENGTH)[0]

    return {"alone": lambda: step((layer, x)), "in a loop": lambda: loop(layer, x)}


def velocity_calls() -> dict[str, Callable[[], Any]]:
    """The velocity of a batch, and ten steps of Euler's method with it."""
    flow = fk.Flow(nn.UNet(1, key=jr.key(0)))
    x = jr.normal(jr.key(1), (64, 28, 28, 1))
    call = eqx.filter_jit(lambda flow, x: jax.vmap(lambda x: flow(0.5, x))(x))

    def solve():
        options: Any = {"solver": dfx.Euler(), "num_steps": 10}
        return fk.sample(flow, x.shape[1:], num_samples=len(x), x0=x, **options)

    return {"called": lambda: call(flow, x), "in a solver": lambda: solve().values}


def milliseconds(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    medians = _report.median_seconds_in_turns(calls, 3)
    return {name: 1e3 * value for name, value in medians.items()}


def convolutions(config: Config) -> list[dict[str, Any]]:
    calls = [convolution_calls(shape) for shape in CONVOLUTIONS]
    ours = []
    theirs = []
    for _ in range(config.rounds):
        ours.append([milliseconds(call) for call in calls])
        if config.peer_python is not None:
            peer = run_peer(config.peer_python, PEER, "convolutions")
            theirs.append(peer["milliseconds"])

    rows = []
    for i, shape in enumerate(CONVOLUTIONS):
        median = lambda name, i=i: statistics.median(turn[i][name] for turn in ours)
        alone = median("alone")
        looped = median("in a loop") / SCAN_LENGTH
        row = {"batch, side, channels": str(shape), "alone": alone, "in a loop": looped}
        row["loop / alone"] = looped / alone
        if theirs:
            row["torch"] = statistics.median(turn[i] for turn in theirs)
            row["loop / torch"] = looped / row["torch"]
        rows.append(row)
    return rows


def velocity() -> list[dict[str, Any]]:
    times = milliseconds(velocity_calls())
    # The solver evaluates once per step.
    solved = times["in a solver"] / 10
    called = times["called"]
    return [{"called": called, "in a solver": solved, "ratio": solved / called}]


def training(config: Config) -> list[dict[str, Any]]:
    networks = {"torchcfm's U-Net": torchcfm_unet(), "lean U-Net": lean_unet()}
    x1 = jr.normal(jr.key(1), (config.batch_size, 28, 28, 1))
    calls = {
        name: _report.step_call(flow_loss, fk.Flow(network), x1)
        for name, network in networks.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in networks}
    divided = []
    theirs = []
    arguments = (str(config.batch_size), "3")
    for _ in range(config.rounds):
        for name, call in calls.items():
            seconds = _report.median_seconds(call, 3)
            rates[name].append(config.batch_size / seconds)
        divided.append(run_peer(sys.executable, DIVIDED, *arguments))
        if config.peer_python is not None:
            peer = run_peer(config.peer_python, PEER, "unet", *arguments)
            theirs.append(peer["images_per_second"])

    rows = []
    for name, network in networks.items():
        size = _report.num_parameters(network)
        row = {"network": name, "parameters": size}
        row["images / s"] = statistics.median(rates[name])
        row["by each core"] = statistics.median(turn[str(size)] for turn in divided)
        if theirs:
            peer = statistics.median(theirs)
            row["torchcfm, its U-Net"] = peer
            row["ratio"] = row["images / s"] / peer
            row["ratio by each core"] = row["by each core"] / peer
        rows.append(row)
    return rows


def main(config: Config) -> None:
    versions = peer_versions(config.peer_python, PEER)
    results = {
        "convolutions, ms": convolutions(config),
        "U-Net, ms": velocity(),
        "training": training(config),
    }
    for title, rows in results.items():
        _report.show(title, rows)
    _report.save(
        "images_steps",
        config.seed,
        peer_versions=versions,
        config=dataclasses.asdict(config) | {"peer_python": None},
        results=results,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
