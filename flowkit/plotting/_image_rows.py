"""One row of panels for each image: its observed pixels, and what a model made of that."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._densities import color_bar
from flowkit.plotting._images import (
    as_rgb,
    hide,
    panel_size,
    show_pixels,
    TITLE_HEIGHT,
    unit_values,
    UNSEEN,
)
from flowkit.plotting._style import (
    finish,
    new_figure,
    Number,
    own_look,
    PathLike,
    require,
)


_BAR_WIDTH = 0.7  # inches
_LARGEST_ERROR = 0.5


@own_look()
def image_reconstructions(
    truth: Float[AnyArray, "b h w c"],
    mask: Bool[AnyArray, "b h w"],
    samples: Float[AnyArray, "b s h w c"],
    *,
    low: Number = -1.0,
    num_shown: int = 4,
    path: PathLike = None,
) -> Figure:
    """Rows of images: truth, observed pixels, samples, and their mean and deviation.

    The standard deviation is that of all samples, the root of its mean square over the
    channels. All rows share its scale, which has the unit of the data. With one sample
    there is no deviation, and the row ends with the sample.

    **Arguments:**

    - `truth (b, h, w, c)`: one row for each image, with one channel or three.
    - `mask (b, h, w)`: which pixels were observed; others are bluish gray.
    - `samples (b, s, h, w, c)`: reconstructions given the observed pixels.
    - `low`: the value of black, as in `image_grid`.
    - `num_shown`: how many of the samples are drawn.
    """
    number = len(truth)
    require(num_shown > 0, f"`num_shown` is {num_shown}; draw at least one sample.")
    exact = as_rgb("truth", truth, low)
    drawn = as_rgb("samples", samples, low)

    num_samples = drawn.shape[1]
    shown = min(num_shown, num_samples)
    columns = {"truth": exact, "observed": hide(exact, np.asarray(mask))}
    for i in range(shown):
        name = "sample" if num_samples == 1 else f"sample {i + 1}"
        columns[name] = drawn[:, i]
    if num_samples == 1:
        figure, _ = _draw_rows(columns, number)
        return finish(figure, path)

    values = np.asarray(samples, np.float64)
    # Samples that diverged leave holes, and no warning.
    with np.errstate(invalid="ignore"):
        mean = np.mean(values, axis=1)
        deviation = np.sqrt(np.mean(np.var(values, axis=1), axis=-1))
    columns["mean"] = as_rgb("samples", mean, low)
    figure, panels = _draw_rows(columns, number, more=1)
    highest = float(np.max(deviation, initial=1e-6, where=np.isfinite(deviation)))
    maps = [("std" if i == 0 else "", deviation[i]) for i in range(number)]
    _draw_maps(figure, panels, maps, "viridis", highest, "standard deviation")
    return finish(figure, path)


@own_look()
def image_errors(
    truth: Float[AnyArray, "b h w c"],
    prediction: Float[AnyArray, "b h w c"],
    input_mask: Bool[AnyArray, "b h w"],
    target_mask: Bool[AnyArray, "b h w"] | None = None,
    *,
    low: Number = -1.0,
    path: PathLike = None,
) -> Figure:
    """Rows of images: truth, input, target and predicted pixels, and the absolute error.

    The error is the mean over the channels, in the unit in which black is 0 and white is
    1. Its colors run from 0 to 0.5, and its title is the mean over the target pixels.

    **Arguments:**

    - `truth`, `prediction`: shape `(b, h, w, c)`, one row for each image.
    - `input_mask (b, h, w)`: which pixels the model was given.
    - `target_mask (b, h, w)`: which pixels it had to predict, by default all of them.
      Others are bluish gray.
    - `low`: the value of black, as in `image_grid`.
    """
    exact = as_rgb("truth", truth, low)
    found = as_rgb("prediction", prediction, low)
    number = len(exact)
    seen = np.asarray(input_mask)
    wanted = np.ones(seen.shape, bool)
    if target_mask is not None:
        wanted = np.asarray(target_mask)
    require(
        bool(wanted.any((1, 2)).all()),
        "`target_mask` leaves an image without pixels to predict; drop that image.",
    )

    columns = {
        "ground truth": exact,
        "input pixels": hide(exact, seen),
        "target pixels": hide(exact, wanted),
        "predicted pixels": hide(found, wanted),
    }
    figure, panels = _draw_rows(columns, number, more=1, every_row_titled=True)
    # Of the values themselves, since clipped ones would hide how far off a pixel is.
    difference = unit_values("prediction", prediction, low)
    difference = difference - unit_values("truth", truth, low)
    error = np.mean(np.abs(difference), axis=-1)
    titles = [f"MAE {np.mean(error[i][wanted[i]]):.3f}" for i in range(number)]
    shown = np.where(wanted, error, np.nan)
    maps = list(zip(titles, shown, strict=True))
    _draw_maps(figure, panels, maps, "hot", _LARGEST_ERROR, "absolute error")
    return finish(figure, path)


def _draw_rows(
    columns: dict[str, np.ndarray],
    number: int,
    *,
    more: int = 0,
    every_row_titled: bool = False,
) -> tuple[Figure, list[Any]]:
    """A figure with a row for each image, and the axes of the empty columns at its end.

    **Arguments:** `columns`: title -> images `(number, h, w, 3)`.
    """
    width, height = panel_size(columns[next(iter(columns))])
    title_rows = number if every_row_titled else 1
    total = len(columns) + more
    figure = new_figure(
        total * width + more * _BAR_WIDTH, number * height + title_rows * TITLE_HEIGHT
    )
    panels = figure.subplots(number, total, squeeze=False)
    for j, (title, images) in enumerate(columns.items()):
        for i in range(number):
            show_pixels(panels[i, j], images[i], title if i == 0 else "")
    return figure, list(panels[:, len(columns) :].reshape(-1))


def _draw_maps(
    figure: Figure,
    panels: list[Any],
    maps: list[tuple[str, np.ndarray]],
    colormap: str,
    highest: float,
    label: str,
) -> None:
    """Numbers `(h, w)` from 0 to `highest` in colors, with one color bar for all."""
    palette = colormaps[colormap].with_extremes(bad=UNSEEN)
    style = {"cmap": palette, "vmin": 0, "vmax": highest}
    drawn = None
    for axes, (title, values) in zip(panels, maps, strict=True):
        drawn = show_pixels(axes, values, title, **style)
    # One column of panels is narrow, so the gap is a large fraction of it.
    color_bar(figure, panels, drawn, label, pad=0.08)
