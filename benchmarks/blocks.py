"""How many examples to work on at a time: the automatic choice against every other block.

    python benchmarks/blocks.py                     # all cases
    python benchmarks/blocks.py mlp_256 convolution

Each row is the median time of the loss and its gradient with one `block=`. Results go to
`benchmarks/results/blocks.json`; the cases that are not named stay as they are there.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import _report
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from _unets import torchcfm_unet

import flowkit as fk
from flowkit import pipelines


SEED = 0
AUTOMATIC = fk.AutomaticBlock()


class Case(NamedTuple):
    """A model, its loss `(model, x, key, block)`, the shape of a batch, and blocks to try."""

    model: Any
    loss: Callable
    shape: tuple[int, ...]
    blocks: tuple[int | None, ...]


class ConvNet(eqx.Module):
    """A convolutional network as users write it, from Equinox's own layers."""

    layers: list

    def __init__(self, *, key):
        sizes = (2, 32, 32, 1)
        keys = jr.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(sizes[i], sizes[i + 1], 3, padding=1, key=keys[i])
            for i in range(3)
        ]

    def __call__(self, t, x, cond):
        channels = jnp.transpose(x, (2, 0, 1))
        time = jnp.full((1, *channels.shape[1:]), t)
        y = jnp.concatenate([channels, time])
        for layer in self.layers[:-1]:
            y = jax.nn.silu(layer(y))
        return jnp.transpose(self.layers[-1](y), (1, 2, 0))


def flow_loss(model, x, key, block):
    return fk.flow_matching_loss(model, x, key=key, block=block)


def flow_loss_given_latent(model, x, key, block):
    latents = jnp.ones((x.shape[0], 1, 32))
    return fk.flow_matching_loss(model, x, latents, key=key, block=block)


def mean_flow_loss(model, x, key, block):
    return fk.few_step.mean_flow_loss(model, x, key=key, block=block)


def set_loss(model, x, key, block):
    return fk.latent.set_flow_loss(model, x, key=key, block=block)[0]


def mlp(batch: int) -> Case:
    flow = fk.Flow(fk.nn.MLP(2, key=jr.key(SEED)))
    return Case(flow, flow_loss, (batch, 2), (None, 16, 64, 256))


def mean_flow() -> Case:
    network = fk.nn.MLP(2, time_embedding=fk.nn.RawTime(2), key=jr.key(SEED))
    flow_map = fk.few_step.FlowMap(network)
    return Case(flow_map, mean_flow_loss, (1024, 2), (None, 32, 128, 512))


def wide_mlp() -> Case:
    sizes = (1024, 1024, 1024)
    flow = fk.Flow(fk.nn.MLP(64, hidden_sizes=sizes, key=jr.key(SEED)))
    return Case(flow, flow_loss, (256, 64), (None, 8, 32, 64, 128))


def adaln() -> Case:
    network = fk.nn.AdaLNMLP(2, 32, key=jr.key(SEED))
    blocks = (None, 1, 2, 4, 8, 16)
    return Case(fk.Flow(network), flow_loss_given_latent, (64, 500, 2), blocks)


def dit() -> Case:
    network = fk.nn.DiT(2, 32, key=jr.key(SEED))
    blocks = (None, 1, 2, 4, 8, 16)
    return Case(fk.Flow(network), flow_loss_given_latent, (64, 100, 2), blocks)


def wide_dit() -> Case:
    network = fk.nn.DiT(2, 32, width_size=256, num_heads=8, key=jr.key(SEED))
    blocks = (None, 1, 4, 8, 16)
    return Case(fk.Flow(network), flow_loss_given_latent, (32, 100, 2), blocks)


def set_flow(encoder) -> Case:
    conditioner = fk.nn.Pool()
    network = fk.nn.AdaLNMLP(2, 32, conditioner=conditioner, key=jr.key(SEED))
    flow = fk.Flow(network)
    model = fk.latent.SetFlow(encoder, flow, fk.Normal())
    return Case(model, set_loss, (64, 500, 2), (None, 1, 2, 4, 8, 16))


def point_net() -> Case:
    return set_flow(fk.nn.PointNet(2, 32, key=jr.key(SEED)))


def main_job() -> Case:
    """The model of `examples/point_clouds.py`."""
    model = pipelines.SetFlowConfig(in_size=2).build()
    return Case(model, set_loss, (64, 64, 2), (None, 4, 8, 16, 32))


def slot_attention() -> Case:
    return set_flow(fk.nn.SlotAttention(2, 32, key=jr.key(SEED)))


def convolution() -> Case:
    return Case(
        fk.Flow(ConvNet(key=jr.key(SEED))), flow_loss, (64, 28, 28, 1), (None, 16)
    )


def unet() -> Case:
    return Case(fk.Flow(torchcfm_unet()), flow_loss, (64, 28, 28, 1), (None, 1, 4, 8))


CASES = {
    "mlp_256": lambda: mlp(256),
    "mlp_4096": lambda: mlp(4096),
    "mean_flow": mean_flow,
    "wide_mlp": wide_mlp,
    "adaln": adaln,
    "dit": dit,
    "wide_dit": wide_dit,
    "point_net": point_net,
    "main_job": main_job,
    "slot_attention": slot_attention,
    "convolution": convolution,
    "unet": unet,
}


def gradient_of(case: Case, block: Any) -> Callable[[], Any]:
    """The loss and its gradient, as a call without arguments."""
    xkey, key = jr.split(jr.key(SEED))
    x = jr.normal(xkey, case.shape)

    @eqx.filter_jit
    def step(model, x):
        loss = lambda model: case.loss(model, x, key, block)
        return eqx.filter_value_and_grad(loss)(model)

    return lambda: step(case.model, x)


def rows_of(name: str) -> list[dict]:
    case = CASES[name]()
    blocks = (*case.blocks, AUTOMATIC)
    calls = {block: gradient_of(case, block) for block in blocks}
    times = _report.median_seconds_in_turns(calls)
    best = min(times.values())
    return [
        {
            "case": name,
            "batch": case.shape[0],
            "block": "automatic" if block is AUTOMATIC else block,
            "milliseconds": 1e3 * time,
            "time / best": time / best,
        }
        for block, time in times.items()
    ]


def main(names: list[str]) -> None:
    path = _report.RESULTS / "blocks.json"
    steps = json.loads(path.read_text())["steps"] if path.exists() else []
    for name in names:
        rows = rows_of(name)
        _report.show(name, rows)
        steps = [row for row in steps if row["case"] != name] + rows
        _report.save("blocks", SEED, steps=steps)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
