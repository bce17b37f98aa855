"""What a `SparseFlow` makes of held-out images: numbers and pictures."""

import os
from pathlib import Path
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Float

from flowkit import metrics, plotting, training
from flowkit._checks import check_units
from flowkit._types import PRNGKey
from flowkit.data import pixel_coords, pixel_mask, SparsePixels
from flowkit.pipelines._sparse_flow import SparseFlow


_NUM_ROWS = 4  # images of a figure
_NUM_PATHS = 20  # trajectories of a pixel
_LEVEL = 0.9
_FEWEST = 19  # samples that bound a central interval of that probability


class SparseFlowReport(eqx.Module):
    """Judges and draws a `fk.pipelines.SparseFlow` on held-out images.

    ```python
    pixels = fk.data.sparse_pixels(images, key=key)
    report = fk.pipelines.SparseFlowReport(images, pixels)
    numbers = report.write(model, "folder", num_samples=20, key=key)
    ```

    **Arguments:**

    - `images`: `(b, h, w, c)`, intensities in [0, 1].
    - `pixels`: the pixels of each that are observed, and those to predict.
    - `batch_size`: images that are reconstructed at a time. Only full batches are used.
    - `solver`: how the flow is solved.
    - `keep_observed`: whether reconstructions keep the observed values, or what the flow
        makes of them.
    """

    images: Float[np.ndarray, "b h w c"]
    pixels: SparsePixels
    batch_size: int = 16
    solver: dfx.AbstractSolver = dfx.Heun()
    keep_observed: bool = True

    def __check_init__(self):
        check_units("images", self.images, signed=False)
        if not 1 <= self.batch_size <= len(self.images):
            raise ValueError(
                f"`batch_size` must be between 1 and the {len(self.images)} `images`, got "
                f"{self.batch_size}."
            )

    def monitor(
        self, model: SparseFlow, *, num_batches: int = 10, num_steps: int, key: PRNGKey
    ) -> dict[str, float]:
        """The squared and the absolute error of one sample of the output pixels."""
        tracker = metrics.Tracker()
        for i in range(self._number(num_batches)):
            _, pixels = self._batch(i)
            # The same noise at every call, so that readings can be compared.
            found = self._predict(model, pixels, num_steps, jr.fold_in(key, i))
            error = np.abs(found - pixels.output_values)
            tracker = tracker.add(test_mse=error**2, test_mae=error)
        return tracker.means()

    def draw_predictions(
        self,
        model: SparseFlow,
        path: str | os.PathLike[str],
        *,
        num_steps: int,
        key: PRNGKey,
    ) -> None:
        """A figure of inputs, targets, predictions and errors, always of the same images."""
        images, pixels = self._batch(0)
        found = self._predict(model, pixels, num_steps, key)[:_NUM_ROWS]
        images = images[:_NUM_ROWS]
        number, height, width, channels = images.shape

        drawn = np.zeros((number, height * width, channels), np.float32)
        indices = np.asarray(pixels.output_indices)[:number]
        np.put_along_axis(drawn, indices[..., None], found, axis=1)
        inputs = self._mask(pixels)[:number]
        outputs = np.asarray(pixel_mask(indices, height, width))
        drawn = drawn.reshape(images.shape)
        plotting.image_errors(images, drawn, inputs, outputs, low=0.0, path=path)

    def write(
        self,
        model: SparseFlow,
        folder: str | os.PathLike[str],
        *,
        num_batches: int = 50,
        num_samples: int = 20,
        num_steps: int = 100,
        resolution: int | None = None,
        key: PRNGKey,
    ) -> dict[str, Any]:
        """Writes the pictures to the folder, and returns the numbers of whole images.

        `mse`, `mae`, `psnr` and `ssim` are of one sample, on the whole image;
        `psnr_of_mean` and `ssim_of_mean` of the mean of all samples. `crps` and
        `coverage_90`, how often the truth lies in a central interval of 90%, are of the
        hidden pixels, and need 2 and 19 samples. Without hidden pixels, these two and their
        pictures are left out. Windows of `ssim` are uniform, 7 x 7.

        **Arguments:**

        - `num_batches`: the maximum number of batches of images.
        - `num_samples`: samples of each image.
        - `num_steps`: solver steps.
        - `resolution`: pixels of a side of images that are drawn at another resolution,
            by `SparseFlow.sample_image`.
        """
        sample_key, path_key, side_key = jr.split(key, 3)
        tracker = metrics.Tracker()
        for i in range(self._number(num_batches)):
            images, pixels = self._batch(i)
            samples = self._samples(
                model, i, num_samples, num_steps, key=jr.fold_in(sample_key, i)
            )
            tracker = tracker.add(**_scores(images, self._mask(pixels), samples))
            if i == 0:
                self._draw(model, samples, folder, num_steps, key=path_key)

        if resolution is not None:
            path = Path(folder) / "resolution.png"
            self._draw_at(model, resolution, path, num_steps, key=side_key)
        print(tracker)
        return {"images": tracker.counts()["psnr"]} | tracker.means()

    def callbacks(
        self,
        folder: str | os.PathLike[str],
        *,
        steps_per_epoch: int,
        measure_every: int = 2,
        draw_every: int = 5,
        num_batches: int = 10,
        num_steps: int,
        key: PRNGKey,
    ) -> list[training.Every]:
        """`monitor` and `draw_predictions` of averaged weights, for `fk.training.fit`.

        **Arguments:**

        - `folder`: the folder of the figures, `epoch_0005.png` and so on.
        - `steps_per_epoch`: training steps of an epoch.
        - `measure_every`, `draw_every`: the numbers of epochs between them.
        - `num_batches`, `num_steps`: as in `monitor`.
        """
        folder = Path(folder)

        def measure(state, step):
            return self.monitor(
                state.ema, num_batches=num_batches, num_steps=num_steps, key=key
            )

        def draw(state, step):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"epoch_{step // steps_per_epoch:04d}.png"
            self.draw_predictions(state.ema, path, num_steps=num_steps, key=key)

        return [
            training.Every(measure_every * steps_per_epoch, measure),
            training.Every(draw_every * steps_per_epoch, draw),
        ]

    def _number(self, num_batches: int) -> int:
        # A smaller last batch would compile another program.
        return min(num_batches, len(self.images) // self.batch_size)

    def _batch(self, i: int) -> tuple[np.ndarray, SparsePixels]:
        rows = slice(i * self.batch_size, (i + 1) * self.batch_size)
        pixels = jax.tree.map(lambda leaf: np.asarray(leaf[rows]), self.pixels)
        return self.images[rows], pixels

    def _mask(self, pixels: SparsePixels) -> np.ndarray:
        _, height, width, _ = self.images.shape
        return np.asarray(pixel_mask(np.asarray(pixels.input_indices), height, width))

    def _predict(self, model, pixels, num_steps, key) -> np.ndarray:
        model = eqx.nn.inference_mode(model)
        options = {"solver": self.solver, "num_steps": num_steps}
        return np.asarray(model.predict(pixels, **options, key=key))

    def _samples(self, model, i, num_samples, num_steps, *, key) -> np.ndarray:
        """Reconstructions `(s, b, h, w, c)` of a batch."""
        images, pixels = self._batch(i)
        observed = self._mask(pixels)[..., None] & self.keep_observed
        grid = pixel_coords(*images.shape[1:3])

        drawn = []
        # One after another: all samples of a batch would take as many times the memory.
        for sample_key in jr.split(key, num_samples):
            values = model.sample(
                pixels.input_coords,
                pixels.input_values,
                grid,
                solver=self.solver,
                num_steps=num_steps,
                key=sample_key,
            )
            found = np.asarray(values).reshape(images.shape)
            drawn.append(np.where(observed, images, found))
        return np.stack(drawn)

    def _draw(self, model, samples, folder, num_steps, *, key) -> None:
        images, pixels = self._batch(0)
        mask = self._mask(pixels)
        rows = slice(0, _NUM_ROWS)
        drawn = np.moveaxis(samples, 0, 1)[rows]
        figure = plotting.image_reconstructions
        shown = (images[rows], mask[rows])
        name = Path(folder) / "reconstruction.png"
        figure(*shown, drawn[:, :1], low=0.0, path=name)
        if len(samples) > 1:
            figure(*shown, drawn, low=0.0, path=Path(folder) / "samples.png")

        # All images have the same number of observed pixels.
        if mask.all():
            return
        mean = np.mean(drawn, axis=1)
        name = Path(folder) / "errors.png"
        hidden = ~mask[rows]
        plotting.image_errors(
            images[rows], mean, mask[rows], hidden, low=0.0, path=name
        )
        self._draw_pixel(
            model, samples, Path(folder) / "pixel_flow.png", num_steps, key
        )

    def _draw_pixel(self, model, samples, path, num_steps, key) -> None:
        """The flow of the hidden pixel of the first image at which samples differ most."""
        images, pixels = self._batch(0)
        spread = np.std(samples[:, 0], axis=0).mean(-1)
        # An observed pixel is known, whatever the flow returns there.
        spread = np.where(self._mask(pixels)[0], -1, spread)
        row, column = np.unravel_index(np.argmax(spread), spread.shape)
        height, width = spread.shape

        repeat = lambda rows: np.repeat(rows[:1], _NUM_PATHS, axis=0)
        times = np.linspace(0, 1, num_steps + 1, dtype=np.float32)
        paths = model.trajectories(
            repeat(pixels.input_coords),
            repeat(pixels.input_values),
            pixel_coords(height, width),
            times,
            solver=self.solver,
            num_steps=num_steps,
            key=key,
        )
        title = f"pixel in row {row} and column {column}, given the observed ones"
        plotting.pixel_flow(
            times,
            np.asarray(paths)[:, :, row * width + column],
            images[0, row, column],
            title=title,
            path=path,
        )

    def _draw_at(self, model, side, path, num_steps, *, key) -> None:
        """Images, what was observed of them, and samples with another number of pixels."""
        images, pixels = self._batch(0)
        rows = slice(0, _NUM_ROWS)
        seen = (pixels.input_coords[rows], pixels.input_values[rows])
        options = {"solver": self.solver, "num_steps": num_steps}
        found = np.asarray(model.sample_image(*seen, side, side, **options, key=key))

        # Pixels that are not numbers are drawn in the color of what was not observed.
        mask = self._mask(pixels)[rows]
        observed = np.where(mask[..., None], images[rows], np.nan)
        columns = [_enlarged(images[rows], side), _enlarged(observed, side), found]
        height, width = images.shape[1:3]
        titles = ("truth", f"{height} x {width} observed", f"{side} x {side}")
        plotting.image_grid(
            np.stack(columns, axis=1).reshape(-1, *found.shape[1:]),
            columns=len(columns),
            low=0.0,
            titles=titles * len(found),
            path=path,
        )


def _enlarged(images: np.ndarray, side: int) -> np.ndarray:
    """Each pixel of the result has the value of the nearest one."""
    _, height, width, _ = images.shape
    # Corners are centers of pixels at both resolutions, as in `pixel_coords`.
    rows = np.rint(np.linspace(0, height - 1, side)).astype(int)
    columns = np.rint(np.linspace(0, width - 1, side)).astype(int)
    return images[:, rows][:, :, columns]


def _scores(
    images: np.ndarray, mask: np.ndarray, samples: np.ndarray
) -> dict[str, np.ndarray | None]:
    """The scores of `SparseFlowReport.write`.

    `None` for those that need more samples, or hidden pixels.
    """
    first = samples[0]
    error = np.abs(first - images)
    scores: dict[str, Any] = {
        "mse": np.mean(error**2, axis=(1, 2, 3)),
        "mae": np.mean(error, axis=(1, 2, 3)),
        "psnr": jax.vmap(metrics.psnr)(first, images),
        "ssim": _ssim(first, images),
    }

    num_samples = len(samples)
    # Observed pixels are known, and would make every interval look calibrated.
    hidden = samples[:, ~mask]
    truth = images[~mask]
    several = num_samples > 1
    mean = np.mean(samples, axis=0)
    scores["psnr_of_mean"] = jax.vmap(metrics.psnr)(mean, images) if several else None
    scores["ssim_of_mean"] = _ssim(mean, images) if several else None
    scores |= {"crps": None, "coverage_90": None}
    if not len(truth):
        return scores
    if several:
        scores["crps"] = metrics.crps(hidden, truth)
    if num_samples >= _FEWEST:
        scores["coverage_90"] = metrics.interval_coverage(hidden, truth, _LEVEL)
    return scores


def _ssim(x: np.ndarray, y: np.ndarray) -> jax.Array | None:
    window = metrics.UniformWindow()
    # Images of fewer pixels than a window have no similarity of windows.
    if min(x.shape[1:3]) < window.size:
        return None
    return jax.vmap(lambda x, y: metrics.ssim(x, y, window=window))(x, y)
