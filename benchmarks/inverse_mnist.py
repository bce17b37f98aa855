"""Digits from a fifth of their pixels: every method of `fk.inverse`, and an amortized model.

    python benchmarks/inverse_mnist.py --minutes 20

Two models are trained for the same time: a flow of MNIST, which sees no observation in
training and is used by all methods, and a `fk.pipelines.SparseFlow`, which sees the
observed pixels. Both have the same U-Net on patches. A fifth of the pixels of a test image
is observed, with noise. Each row is a mean over images: PSNR of the mean of 20 samples, and
at the hidden pixels the coverage of 90% intervals and the CRPS. The misfit is the root mean
square of the residual of the observation, in units of its noise; the correct value is 1.
`TwistedSMC` uses five times as many particles, and their effective number is reported, too.

Results go to `benchmarks/results/inverse_mnist.json` and `.png`.
"""

import dataclasses
import functools as ft
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import _report
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _timed import fit_for
from _unets import lean_unet

import flowkit as fk
from flowkit import inverse


SIDE = 28
COORDS = np.asarray(fk.data.pixel_coords(SIDE, SIDE))
METHODS = {
    "TwistedSMC": inverse.TwistedSMC(50),
    "PiGDM": inverse.PiGDM(50),
    "OTODE": inverse.OTODE(50),
    "DPS": inverse.DPS(100, 0.3),
    "RePaint": inverse.RePaint(50, 4),
    "PnPFlow": inverse.PnPFlow(50),
    "DFlow": inverse.DFlow(30, num_steps=4),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    minutes: float = 20.0
    """Time of each training, without compilation."""
    num_images: int = 10
    """Test images, from the first on."""
    num_samples: int = 20
    """Samples of each image."""
    noise_std: float = 0.02
    """Noise of the observation; intensities are in [0, 1]."""
    batch_size: int = 64
    """Images of a training step."""
    learning_rate: float = 2e-3
    """Peak learning rate, with warm-up and cosine decay."""
    seed: int = 0
    """Random seed."""


def train_flow(images: np.ndarray, config: Config) -> tuple[fk.Flow, dict[str, float]]:
    """A flow of images in [-1, 1]."""

    def loss(flow, x1, key):
        return fk.flow_matching_loss(flow, x1, key=key)

    flow = fk.Flow(lean_unet())
    return fit_for(config.minutes, loss, flow, 2 * images - 1, **options_of(config))


def train_amortized(
    images: np.ndarray, config: Config
) -> tuple[fk.pipelines.SparseFlow, dict[str, float]]:
    """A flow that sees noisy pixels, other ones in every epoch."""

    def loss(model, images, key):
        pixel_key, noise_key, key = jr.split(key, 3)
        pixels = fk.data.sparse_pixels(images, output_ratio=0, key=pixel_key)
        values = pixels.input_values
        noise = config.noise_std * jr.normal(noise_key, values.shape, values.dtype)
        pixels = pixels._replace(input_values=values + noise)
        return model.loss(images, pixels, key=key)

    sizes = fk.pipelines.SparseFlowConfig(
        shape=(SIDE, SIDE, 1),
        network="unet",
        start="noise",
        width_size=32,
        multipliers=(1, 2),
        patch_size=2,
    )
    model = sizes.build(key=jr.key(config.seed))
    return fit_for(config.minutes, loss, model, images, **options_of(config))


def options_of(config: Config) -> dict[str, Any]:
    return {
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "key": jr.key(config.seed + 1),
    }


class Samples(NamedTuple):
    """Images in [0, 1], and their effective number if the method reports one."""

    values: np.ndarray  # (images, samples, h, w, 1)
    effective: float | None = None


def by_method(flow, method, mask, observed, config: Config) -> Samples:
    """One image after another."""
    number = config.num_samples
    if isinstance(method, inverse.TwistedSMC):
        number *= 5

    @eqx.filter_jit
    def solve(flow, mask, observed, key):
        return inverse.reconstruct(
            flow,
            inverse.PixelMask(mask),
            2 * observed - 1,
            noise_std=2 * config.noise_std,
            method=method,
            num_samples=number,
            key=key,
        )

    keys = jr.split(jr.key(config.seed + 2), len(observed))
    found = [solve(flow, *row) for row in zip(mask, observed, keys, strict=True)]
    values = np.stack([(np.asarray(one.values) + 1) / 2 for one in found])
    sizes = [one.effective_sample_size for one in found]
    known = [float(size) for size in sizes if size is not None]
    return Samples(values, float(np.mean(known)) if known else None)


def by_model(model, pixels, config: Config) -> Samples:
    """One sample of all images after another."""
    options: Any = {"solver": dfx.Midpoint(), "num_steps": 10}
    seen = (pixels.input_coords, pixels.input_values)
    several = [
        model.sample(*seen, COORDS, key=jr.key(config.seed + 3 + i), **options)
        for i in range(config.num_samples)
    ]
    shape = (-1, config.num_samples, SIDE, SIDE, 1)
    return Samples(np.stack(several, axis=1).reshape(shape))


def scores(samples, truth, mask, observed, noise_std) -> dict[str, float]:
    samples = np.asarray(samples, np.float32)
    mean = np.clip(samples.mean(axis=1), 0, 1)
    hidden = ~mask
    drawn = samples.swapaxes(0, 1)[:, hidden]
    left = (samples - observed[:, None]).swapaxes(0, 1)[:, mask]
    return {
        "PSNR": float(jnp.mean(jax.vmap(fk.metrics.psnr)(mean, truth))),
        "coverage": float(fk.metrics.interval_coverage(drawn, truth[hidden])),
        "CRPS": float(np.mean(fk.metrics.crps(drawn, truth[hidden]))),
        "misfit": float(np.sqrt(np.mean(left**2)) / noise_std),
    }


def main(config: Config) -> None:
    split = fk.data.load_mnist()
    images = fk.data.as_images(split.train.images, low=0.0)
    truth = fk.data.as_images(split.test.images[: config.num_images], low=0.0)
    pixels = fk.data.sparse_pixels(truth, output_ratio=0, key=jr.key(config.seed))
    noise = config.noise_std * jr.normal(jr.key(1), pixels.input_values.shape)
    pixels = pixels._replace(input_values=pixels.input_values + noise)
    mask = np.asarray(fk.data.pixel_mask(pixels.input_indices, SIDE, SIDE))
    observed = np.zeros((len(truth), SIDE * SIDE, 1), np.float32)
    indices = np.asarray(pixels.input_indices)[..., None]
    np.put_along_axis(observed, indices, np.asarray(pixels.input_values), axis=1)
    observed = observed.reshape(truth.shape)

    flow, costs = train_flow(images, config)
    model, model_costs = train_amortized(images, config)
    results: dict[str, Any] = {"training": {"flow": costs, "amortized": model_costs}}

    rows = []
    shown = [truth, observed]
    calls: dict[str, Callable[[], Samples]] = {
        name: ft.partial(by_method, flow, method, mask, observed, config)
        for name, method in METHODS.items()
    }
    calls["amortized"] = ft.partial(by_model, model, pixels, config)
    for name, call in calls.items():
        start = time.perf_counter()
        samples = call()
        seconds = time.perf_counter() - start
        judged = scores(
            samples.values, truth, mask[..., None], observed, config.noise_std
        )
        costs = {"effective": samples.effective, "seconds": seconds}
        rows.append({"method": name} | judged | costs)
        shown.append(samples.values[:, 0])
        print(rows[-1], flush=True)

    results["methods"] = rows
    _report.show("MNIST from a fifth of its pixels", rows)
    settings = dataclasses.asdict(config)
    _report.save("inverse_mnist", config.seed, config=settings, results=results)
    figure = fk.plotting.image_grid(
        np.concatenate(shown), columns=config.num_images, low=0.0
    )
    figure.savefig(_report.RESULTS / "inverse_mnist.png", dpi=70)


if __name__ == "__main__":
    main(tyro.cli(Config))
