"""The cost of a training step on clouds, and of distances between clouds, by size.

    python benchmarks/scaling.py

The step is that of PointNet, AdaLNMLP and a flow prior, with Adam. It is compared with a
step on the whole batch at once, and with the time of its matrix products alone: their
operations, divided by the highest rate that this machine reaches on products of these
shapes. Results go to `benchmarks/results/scaling.json`.
"""

import functools
import itertools
import time

import _report
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import flowkit as fk


SEED = 0
LATENT = 32
WIDTH = 64
DEPTH = 6
ENCODER_SIZES = (64, 128, 256)
BATCHES = ((64, 64, 16), (256, 64, 16), (256, 500, 8))
"""Clouds, points of each cloud, and clouds of a block."""
CLOUD_SIZES = (1_000, 10_000, 100_000)


def step_seconds(num_clouds: int, num_points: int, block: int | None) -> float:
    """The median time of a training step."""
    ekey, fkey, pkey, xkey, skey = jr.split(jr.key(SEED), 5)
    prior = fk.latent.FlowPrior(
        fk.Flow(fk.nn.MLP(LATENT, hidden_sizes=(128,) * 5, key=pkey)), LATENT
    )
    flow = fk.Flow(fk.nn.AdaLNMLP(2, LATENT, width_size=WIDTH, depth=DEPTH, key=fkey))
    encoder = fk.nn.PointNet(2, LATENT, hidden_sizes=ENCODER_SIZES, key=ekey)
    model = fk.latent.SetFlow(encoder, flow, prior)

    def loss(model, points, key):
        return fk.latent.set_flow_loss(model, points, key=key, block=block)

    optimizer = optax.adam(1e-3)
    step = fk.training.make_step(loss, optimizer)
    state = fk.training.init_state(model, optimizer, key=skey)
    points = jr.normal(xkey, (num_clouds, num_points, 2))

    def call():
        nonlocal state
        state, metrics = step(state, points)
        return metrics

    return _report.median_seconds(call)


def product_operations(num_points: int) -> int:
    """Multiplications and additions of the products on points in one training step."""
    layers = [
        *itertools.pairwise((2, *ENCODER_SIZES)),
        (2, WIDTH),
        *[(WIDTH, WIDTH)] * DEPTH,
        (WIDTH, 2),
    ]

    # The backward pass has twice the products of the forward pass.
    return 3 * 2 * num_points * sum(a * b for a, b in layers)


def peak_rate(repeats: int = 30) -> float:
    """The highest number of operations per second.

    It is measured on products of the shapes of a block, and on large square matrices.
    """
    multiply = jax.jit(jnp.matmul)

    def rate(rows: int, inner: int, columns: int) -> float:
        a = jnp.ones((rows, inner))
        b = jnp.ones((inner, columns))
        jax.block_until_ready(multiply(a, b))
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(multiply(a, b))
            times.append(time.perf_counter() - start)
        return 2 * rows * inner * columns / min(times)

    return max(
        rate(4000, 64, 64),
        rate(4000, 64, 128),
        rate(4000, 128, 256),
        rate(2048, 2048, 2048),
    )


def training_steps() -> list[dict]:
    """Milliseconds of a step on the whole batch and in blocks, and of its products."""
    rate = peak_rate()
    rows = []
    for num_clouds, num_points, block in BATCHES:
        whole = step_seconds(num_clouds, num_points, None)
        blocked = step_seconds(num_clouds, num_points, block)
        products = product_operations(num_clouds * num_points) / rate
        rows.append(
            {
                "clouds": num_clouds,
                "points": num_points,
                "block": block,
                "whole_ms": 1e3 * whole,
                "blocked_ms": 1e3 * blocked,
                "products_ms": 1e3 * products,
                "whole/blocked": whole / blocked,
                "blocked/products": blocked / products,
            }
        )
    return rows


def distances() -> list[dict]:
    """Seconds of one Chamfer distance; its memory does not grow with the product of the sizes."""
    rows = []
    for size in CLOUD_SIZES:
        rng = np.random.default_rng(SEED)
        x, y = rng.normal(size=(2, size, 2)).astype(np.float32)
        distance = functools.partial(fk.metrics.chamfer, x, y)
        seconds = _report.median_seconds(distance, repeats=3)
        rows.append(
            {
                "points": size,
                "chamfer_seconds": seconds,
                "pairs_per_second": size**2 / seconds,
            }
        )
    return rows


def main() -> None:
    steps = training_steps()
    chamfer = distances()
    _report.show("training step", steps)
    _report.show("Chamfer distance of two clouds", chamfer)
    _report.save("scaling", SEED, training_steps=steps, chamfer=chamfer)


if __name__ == "__main__":
    main()
