"""Images side by side, pixel by pixel, and what they share."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from flowkit._checks import check_units
from flowkit._types import AnyArray
from flowkit.plotting._style import (
    finish,
    INK,
    new_figure,
    Number,
    own_look,
    PathLike,
    require,
)


# Pixels without a value. Tinted, so that it is no gray of an image with one channel.
UNSEEN = "#a3aebf"

_SMALLEST = 1.2  # inches
_DOTS_PER_PIXEL = 2
_DPI = 150  # of files, as in `finish`
_GAP = 0.04  # between images of a grid, as a part of their sides
_TITLE: dict[str, Any] = {
    "fontsize": 8,
    "color": INK,
    "horizontalalignment": "center",
    "verticalalignment": "bottom",
}

TITLE_HEIGHT = 0.25  # inches


@own_look()
def image_grid(
    images: Float[AnyArray, "n h w c"],
    *,
    columns: int | None = None,
    low: Number = -1.0,
    titles: Sequence[str] | None = None,
    path: PathLike = None,
) -> Figure:
    """A grid of images; 36 of them make 6 x 6. Pixels are squares of one color.

    **Arguments:**

    - `images (n, h, w, c)`: one channel for gray, or three. Values from `[low, 1]` are
      mapped to `[0, 1]`, and clipped. Pixels that are not finite are bluish gray.
    - `columns`: images in a row, by default as many as make the grid nearly square.
    - `low`: the value of black, -1 or 0.
    - `titles`: a short text for each image.
    """
    number = len(images)
    require(number > 0, "`images` is empty; there is nothing to draw.")
    require(
        titles is None or len(titles) == number,
        f"`titles` must have one text for each of the {number} images.",
    )
    columns = math.ceil(math.sqrt(number)) if columns is None else columns
    require(columns > 0, f"`columns` is {columns}; a grid needs at least one.")

    pixels = as_rgb("images", images, low)
    columns = min(columns, number)
    rows = math.ceil(number / columns)

    width, height = panel_size(pixels)
    title_height = 0.0 if titles is None else TITLE_HEIGHT
    row_height = height + title_height
    figure = new_figure(columns * width, rows * row_height)

    # All images share one set of axes, whose unit is an inch: hundreds of sets take seconds.
    axes = figure.add_subplot()
    for i in range(number):
        row, column = divmod(i, columns)
        center = (column + 0.5) * width
        top = row * row_height + title_height
        extent = _extent(center, top + height / 2, width, height)
        show_pixels(axes, pixels[i], extent=extent)
        if titles is not None:
            axes.text(center, top, titles[i], **_TITLE)

    axes.set_xlim(0, columns * width)
    axes.set_ylim(rows * row_height, 0)
    return finish(figure, path)


def _extent(x: float, y: float, width: float, height: float) -> tuple[float, ...]:
    """The sides of an image around `(x, y)`, `y` downward, with a gap to its neighbors."""
    half_width = (1 - _GAP) * width / 2
    half_height = (1 - _GAP) * height / 2
    return x - half_width, x + half_width, y + half_height, y - half_height


def as_rgb(name: str, images: Any, low: Number) -> np.ndarray:
    """Images `(..., h, w, c)` as colors `(..., h, w, 3)` in `[0, 1]`."""
    values = unit_values(name, images, low)
    known = np.asarray(np.isfinite(values).all(-1))
    rgb = np.broadcast_to(np.clip(values, 0, 1), (*values.shape[:-1], 3))
    return hide(rgb, known)


def unit_values(name: str, images: Any, low: Number) -> np.ndarray:
    """Values from `[low, 1]` mapped to `[0, 1]`, not clipped."""
    values = np.asarray(images, np.float64)
    require(low < 1, f"`low` is {low}; it is the value of black, and white is 1.")
    require(
        values.ndim >= 3 and values.shape[-1] in (1, 3) and 0 not in values.shape,
        f"`{name}` has shape {values.shape}; images (h, w, c) with one or three channels "
        "can be drawn, channels last.",
    )
    check_units(name, values)
    return (values - low) / (1 - low)


def hide(rgb: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Colors `(..., 3)`, with a separate color for the pixels that are not seen."""
    return np.where(seen[..., None], rgb, to_rgb(UNSEEN))


def panel_size(pixels: np.ndarray) -> tuple[float, float]:
    """Width and height in inches for images `(..., h, w, 3)`.

    Small images are enlarged, and large ones keep two dots for each pixel.
    """
    height, width = pixels.shape[-3:-1]
    inches = max(_SMALLEST / max(height, width), _DOTS_PER_PIXEL / _DPI)
    return width * inches, height * inches


def show_pixels(axes: Any, pixels: np.ndarray, title: str = "", **style: Any) -> Any:
    """Draws colors `(h, w, 3)`, or numbers `(h, w)` in a color map, without axes."""
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=8, color=INK, pad=3)
    return axes.imshow(pixels, interpolation="nearest", **style)
