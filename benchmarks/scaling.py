"""What a training step on point clouds and the distances between clouds cost, against their sizes.

    python benchmarks/scaling.py

The step is that of PointNet, AdaLNMLP and a flow prior, with Adam. Beside it stand the same networks stepped whole,
and their matrix products alone: counted, and divided by the highest rate that this machine reaches on products of
these shapes. Results go to `benchmarks/results/scaling.json`.
"""

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
LATENT, WIDTH, DEPTH = 32, 64, 6
ENCODER_SIZES = (64, 128, 256)
BATCHES = ((64, 64, 16), (256, 64, 16), (256, 500, 8))
CLOUD_SIZES = (1_000, 10_000, 100_000)


def step_seconds(num_clouds: int, num_points: int, block: int | None) -> float:
    """The median training step."""
    ekey, fkey, pkey, xkey, skey = jr.split(jr.key(SEED), 5)
    prior = fk.latent.FlowPrior(
        fk.Flow(fk.nn.MLP(LATENT, hidden_sizes=(128,) * 5, key=pkey)), LATENT
    )
    flow = fk.Flow(fk.nn.AdaLNMLP(2, LATENT, width_size=WIDTH, depth=DEPTH, key=fkey))
    encoder = fk.nn.PointNet(2, LATENT, hidden_sizes=ENCODER_SIZES, key=ekey)
    model = fk.latent.SetFlow(encoder, flow, prior)
    optimizer = optax.adam(1e-3)
    loss = lambda model, points, key: fk.latent.set_flow_loss(
        model, points, key=key, block=block
    )
    step = fk.training.make_step(loss, optimizer)
    state = fk.training.init_state(model, optimizer, key=skey)
    points = jr.normal(xkey, (num_clouds, num_points, 2))

    def call():
        nonlocal state
        state, metrics = step(state, points)
        return metrics

    return _report.median_seconds(call)


def product_operations(num_points: int) -> int:
    """Multiplications and additions of the products on points in one step: forward, and twice that backward."""
    layers = [
        *itertools.pairwise((2, *ENCODER_SIZES)),
        (2, WIDTH),
        *[(WIDTH, WIDTH)] * DEPTH,
        (WIDTH, 2),
    ]
    return 3 * 2 * num_points * sum(a * b for a, b in layers)


def peak_rate() -> float:
    """The highest number of operations a second over products of the shapes of a block, and of large squares."""
    multiply = jax.jit(jnp.matmul)

    def rate(rows: int, inner: int, columns: int) -> float:
        a, b = jnp.ones((rows, inner)), jnp.ones((inner, columns))
        jax.block_until_ready(multiply(a, b))
        times = []
        for _ in range(30):
            start = time.perf_counter()
            jax.block_until_ready(multiply(a, b))
            times.append(time.perf_counter() - start)
        return 2 * rows * inner * columns / min(times)

    return max(
        rate(*shape)
        for shape in (
            (4000, 64, 64),
            (4000, 64, 128),
            (4000, 128, 256),
            (2048, 2048, 2048),
        )
    )


def training_steps() -> list[dict]:
    rate = peak_rate()
    rows = []
    for num_clouds, num_points, block in BATCHES:
        whole, blocked = (
            step_seconds(num_clouds, num_points, size) for size in (None, block)
        )
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
        x, y = np.random.default_rng(SEED).normal(size=(2, size, 2)).astype(np.float32)
        seconds = _report.median_seconds(
            lambda x=x, y=y: fk.metrics.chamfer(x, y), repeats=3
        )
        rows.append(
            {
                "points": size,
                "chamfer_seconds": seconds,
                "pairs_per_second": size**2 / seconds,
            }
        )
    return rows


def main() -> None:
    steps, chamfer = training_steps(), distances()
    _report.show("training step", steps)
    _report.show("Chamfer distance of two clouds", chamfer)
    _report.save("scaling", SEED, training_steps=steps, chamfer=chamfer)


if __name__ == "__main__":
    main()
