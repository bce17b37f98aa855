"""CIFAR-10 from a fifth of its pixels: a flow, a regression network, and interpolation.

    python benchmarks/sparse_cifar10.py --minutes 120
    python benchmarks/sparse_cifar10.py --minutes 0   # interpolation only

The regression network is a `fk.pipelines.RefinedProcess`: a U-Net that predicts the image
from the mean of a Gaussian process. It is trained for most of the time. The flow, a
`fk.pipelines.SparseFlow` with the same U-Net, starts from that prediction plus what a draw
of the process adds, and is trained for the rest. Both see flips and other pixels in every
epoch. Observed pixels are kept.

For each: PSNR and SSIM of whole images, for the flow those of one sample and of the mean of
16, with the coverage of 90% intervals and the CRPS of 20 samples at the hidden pixels. The
regression is the mean of two predictions, of the image and of its mirror image, and every
other pair of samples is that of the mirror image, too. The samples of a pair start on both
sides of the mean. The pairs make the CRPS some 2% too good, since they are not independent.
The curves over time are the PSNR of the prediction, and of the expectation that the flow has
at t = 0, on the first 100 test images, without mirror images. Results go to
`benchmarks/results/sparse_cifar10.json` and `.png`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import _report
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from _timed import fit_for
from optax.contrib import muon, MuonDimensionNumbers
from scipy.interpolate import griddata, RBFInterpolator

import flowkit as fk
from flowkit.nn import Observed


SIDE = 32
SHAPE = (SIDE, SIDE, 3)
COORDS = np.asarray(fk.data.pixel_coords(SIDE, SIDE))
NUM_OF_MEAN = 16
PROCESS = fk.inverse.GaussianProcess(0.3)


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    minutes: float = 120.0
    """Time of both trainings together, without compilation; 0 leaves both networks out."""
    num_images: int = 1000
    """Test images, from the first on; a multiple of 50."""
    num_samples: int = 20
    """Samples of each image, an even number."""
    num_steps: int = 4
    """Steps of the midpoint rule for a sample."""
    regression_share: float = 0.85
    """The part of the time that the regression network is trained."""
    width_size: int = 64
    """Width of each U-Net, on patches of 2 x 2 pixels."""
    batch_size: int = 32
    """Images of a step."""
    learning_rate: float = 3e-3
    """Peak learning rate of Muon, with warm-up and cosine decay."""
    seed: int = 0
    """Random seed."""


class Test(NamedTuple):
    """Test images, the observed pixels of each, and the mean of the process given those."""

    images: np.ndarray
    pixels: fk.data.SparsePixels
    mean: np.ndarray

    def first(self, num: int) -> "Test":
        return jax.tree.map(lambda a: a[:num], self)

    def parts(self, size: int) -> list["Test"]:
        cut = range(0, len(self.images), size)
        return [jax.tree.map(lambda a, i=i: a[i : i + size], self) for i in cut]


def options_of_networks(config: Config) -> dict[str, Any]:
    return {
        "width_size": config.width_size,
        "multipliers": (1, 2),
        "patch_size": 2,
    }


def new_process(config: Config) -> fk.pipelines.RefinedProcess:
    options = options_of_networks(config) | {"key": jr.key(config.seed)}
    return fk.pipelines.RefinedProcess(SHAPE, process=PROCESS, **options)


def new_flow(
    process: fk.pipelines.RefinedProcess, config: Config
) -> fk.pipelines.SparseFlow:
    options = options_of_networks(config)
    sizes = fk.pipelines.SparseFlowConfig(shape=SHAPE, network="unet", **options)
    return sizes.build(process=process, key=jr.key(config.seed + 3))


@jax.jit
@jax.vmap
def process_mean(coords, values):
    return PROCESS.mean(coords, values, COORDS)


def load(config: Config) -> tuple[np.ndarray, Test]:
    """The training images, and the test images with their pixels."""
    split = fk.data.load_cifar10()
    images = np.asarray(split.test.images[: config.num_images], np.float32)
    pixels = fk.data.sparse_pixels(images, output_ratio=0, key=jr.key(config.seed + 1))
    pixels = jax.tree.map(np.asarray, pixels)
    mean = process_mean(pixels.input_coords, pixels.input_values)
    return np.asarray(split.train.images, np.float32), Test(images, pixels, mean)


# Classical interpolation.


def interpolators() -> dict[str, Callable]:
    """Name -> `(coords, values) -> (h w, c)`. Outside the hull, the nearest value holds."""

    def nearest(coords, values):
        return griddata(coords, values, COORDS, method="nearest")

    def inside(method):
        def interpolate(coords, values):
            found = griddata(coords, values, COORDS, method=method)
            return np.where(np.isnan(found), nearest(coords, values), found)

        return interpolate

    def thin_plate(coords, values):
        return RBFInterpolator(coords, values, kernel="thin_plate_spline")(COORDS)

    return {
        "nearest": nearest,
        "linear": inside("linear"),
        "cubic": inside("cubic"),
        "thin plate": thin_plate,
    }


def classical(test: Test) -> list[dict[str, Any]]:
    rows = []
    for name, interpolate in interpolators().items():
        pairs = zip(test.pixels.input_coords, test.pixels.input_values, strict=True)
        found = np.stack([interpolate(*pair) for pair in pairs])
        rows.append({"method": name} | scores(found, test))
    rows.append({"method": "Gaussian process"} | scores(test.mean, test))
    return rows


def scores(found: Any, test: Test) -> dict[str, float]:
    """PSNR and SSIM of whole images, in which the observed pixels are kept."""
    found = np.clip(np.asarray(found), 0, 1)
    indices = np.asarray(test.pixels.input_indices)
    np.put_along_axis(found, indices[..., None], test.pixels.input_values, axis=1)
    images = found.reshape(test.images.shape).astype(np.float32)
    return {
        "PSNR": float(jnp.mean(jax.vmap(fk.metrics.psnr)(images, test.images))),
        "SSIM": float(jnp.mean(similarity(images, test.images))),
    }


similarity = jax.jit(jax.vmap(fk.metrics.ssim))


# Networks.


def flow_loss(model, images, key):
    """Flow matching from draws of the process to images."""
    images, pixels = drawn(images, key=key)
    return model.loss(images, pixels, key=jr.fold_in(key, 1))


def regression_loss(process, images, key):
    """The squared error of the mean of the process plus what the network adds."""
    return process.loss(*drawn(images, key=key))


def drawn(images, *, key):
    """Images mirrored at random, and their pixels."""
    flip_key, pixel_key = jr.split(key)
    flips = jr.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
    images = jnp.where(flips, images[:, :, ::-1], images)
    return images, fk.data.sparse_pixels(images, output_ratio=0, key=pixel_key)


def mirror_coords(coords):
    """The coordinates of the same pixels in the mirror image."""
    return coords * jnp.asarray([-1.0, 1.0]) + jnp.asarray([1.0, 0.0])


def mirror_image(values):
    """The mirror images of `(..., h w, c)`."""
    rows = values.reshape(*values.shape[:-2], SIDE, SIDE, -1)
    return rows[..., ::-1, :].reshape(values.shape)


def symmetric_predictions(process, test: Test):
    """The mean of the predictions for an image and for its mirror image."""
    pixels = test.pixels._replace(input_coords=mirror_coords(test.pixels.input_coords))
    mirrored = predictions(process, test._replace(pixels=pixels))
    return (predictions(process, test) + mirror_image(mirrored)) / 2


@eqx.filter_jit
def predictions(process, test: Test):
    rows = (test.pixels.input_coords, test.pixels.input_values)
    return jax.lax.map(lambda row: process.mean(*row), rows, batch_size=20)


@eqx.filter_jit
def expectations(model, test: Test):
    """What the flow expects at `t = 0`: the start plus the velocity."""

    def expectation(row):
        coords, values, key = row
        start, mean = model.process.sample_image(coords, values, SIDE, SIDE, key=key)
        seen = Observed(COORDS, coords, values)
        return start + model.flow(0.0, start, (seen, mean))

    keys = jr.split(jr.key(0), len(test.images))
    rows = (test.pixels.input_coords, test.pixels.input_values, keys)
    return jax.lax.map(expectation, rows, batch_size=20)


def train(
    model: Any,
    loss: Callable,
    predict: Callable,
    images: np.ndarray,
    test: Test,
    config: Config,
    *,
    minutes: float,
):
    """The averaged model, its costs, and the curve over time."""
    few = test.first(100)
    curve = []

    def watch(model, minutes):
        psnr = scores(predict(model, few), few)["PSNR"]
        curve.append({"minutes": minutes, "PSNR": psnr})
        print(curve[-1], flush=True)

    trained, costs = fit_for(
        minutes,
        loss,
        model,
        images,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        clip=1.0,
        optimizer=by_muon,
        watch=watch,
        key=jr.key(config.seed + 2),
    )
    return trained, costs, curve


def by_muon(learning_rate: Any) -> optax.GradientTransformation:
    """Muon for the kernels of convolutions and matrices, Adam for all else."""
    return muon(
        learning_rate, consistent_rms=0.2, muon_weight_dimension_numbers=matrix_axes
    )


def matrix_axes(weights: Any) -> Any:
    """Which axes of each weight are those of inputs and outputs."""
    axes = {
        2: MuonDimensionNumbers((0,), (1,)),
        4: MuonDimensionNumbers((0, 1, 2), (3,)),
    }
    return jax.tree.map(lambda leaf: axes.get(jnp.ndim(leaf)), weights)


def samples_of(model, test: Test, config: Config) -> np.ndarray:
    """`(samples, images, h w, c)`."""
    parts = []
    for i, part in enumerate(test.parts(50)):
        values = part.pixels.input_values
        straight = part.pixels.input_coords
        flipped = mirror_coords(straight)
        several = []
        for j in range(config.num_samples):
            # Samples 2 j and 2 j + 1 are a mirrored pair.
            key = jr.fold_in(jr.key(config.seed + 4), 1000 * i + j // 2)
            options: Any = {"solver": dfx.Midpoint(), "num_steps": config.num_steps}
            options |= {"key": key, "mirrored": j % 2 == 1}
            flip = j // 2 % 2 == 1
            coords = flipped if flip else straight
            found = model.sample(coords, values, COORDS, **options)
            several.append(np.asarray(mirror_image(found) if flip else found))
        parts.append(np.stack(several))
    return np.concatenate(parts, axis=1)


def judged(model, test: Test, config: Config) -> tuple[list[dict], np.ndarray]:
    """The rows of the flow, and its samples."""
    samples = samples_of(model, test, config)
    hidden = np.ones(samples.shape[1:3], bool)
    indices = np.asarray(test.pixels.input_indices)
    np.put_along_axis(hidden, indices, False, axis=1)
    truth = test.images.reshape(samples.shape[1:])[hidden]
    drawn = samples[:, hidden]
    spread = {
        "coverage": float(fk.metrics.interval_coverage(drawn, truth)),
        "CRPS": float(np.mean(fk.metrics.crps(drawn, truth))),
    }
    mean = np.mean(samples[:NUM_OF_MEAN], axis=0)
    name = f"flow, mean of {NUM_OF_MEAN}"
    rows = [{"method": name} | scores(mean, test) | spread]
    rows.append({"method": "flow, one sample"} | scores(samples[0], test))
    return rows, samples


def main(config: Config) -> None:
    images, test = load(config)
    rows = classical(test)
    _report.show("interpolation", rows)
    results: dict[str, Any] = {"methods": rows}

    def save():
        settings = dataclasses.asdict(config)
        _report.save("sparse_cifar10", config.seed, config=settings, results=results)

    save()
    if config.minutes <= 0:
        return
    share = config.regression_share
    trained = train(
        new_process(config),
        regression_loss,
        predictions,
        images,
        test,
        config,
        minutes=share * config.minutes,
    )
    process, results["regression"], results["curve of regression"] = trained
    found = symmetric_predictions(process, test)
    rows.append({"method": "regression"} | scores(found, test))
    save()

    model = new_flow(process, config)
    trained = train(
        model,
        flow_loss,
        expectations,
        images,
        test,
        config,
        minutes=(1 - share) * config.minutes,
    )
    model, results["flow"], results["curve of flow"] = trained
    found, samples = judged(model, test, config)
    rows += found
    save()
    picture(samples, test)
    larger_picture(model, test, config)
    _report.show("CIFAR-10 from a fifth of its pixels", rows)


def picture(samples: np.ndarray, test: Test) -> None:
    """Draws six test images with samples, their mean and their deviation."""
    shape = (*samples.shape[:2], SIDE, SIDE, 3)
    several = samples.reshape(shape).swapaxes(0, 1)[:6]
    mask = fk.data.pixel_mask(test.pixels.input_indices[:6], SIDE, SIDE)
    figure = fk.plotting.image_reconstructions(
        test.images[:6], np.asarray(mask), several, low=0.0
    )
    figure.savefig(_report.RESULTS / "sparse_cifar10.png", dpi=80)


def larger_picture(model, test: Test, config: Config) -> None:
    """Draws six test images, and below each a sample of twice the height and width."""
    few = test.first(6)
    larger = model.sample_image(
        few.pixels.input_coords,
        few.pixels.input_values,
        2 * SIDE,
        2 * SIDE,
        solver=dfx.Midpoint(),
        num_steps=config.num_steps,
        key=jr.key(config.seed + 5),
    )
    truth = few.images.repeat(2, axis=1).repeat(2, axis=2)
    figure = fk.plotting.image_grid(np.concatenate([truth, larger]), columns=6, low=0.0)
    figure.savefig(_report.RESULTS / "sparse_cifar10_64.png", dpi=80)


if __name__ == "__main__":
    main(tyro.cli(Config))
