"""Point clouds side by side."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._panels import (
    Camera,
    check_lengths,
    Clouds,
    draw_panels,
    drawn,
    entry,
    id_colors,
    Ids,
    Masks,
    Panel,
    plain,
    Weights,
)
from flowkit.plotting._style import (
    as_points,
    box,
    colors,
    finish,
    Limits,
    new_figure,
    Number,
    own_look,
    PathLike,
    point_area,
    require,
    style_axes,
    style_legend,
    style_space,
)


@own_look()
def point_clouds(
    clouds: Clouds,
    masks: Masks = None,
    titles: Sequence[str] | None = None,
    weights: Weights = None,
    *,
    point_labels: Ids | None = None,
    limits: Limits = None,
    columns: int | None = None,
    color: str | Sequence[str] = colors["output_x_hat"],
    up: int = 2,
    view: tuple[Number, Number] = (20, -60),
    path: PathLike = None,
) -> Figure:
    """A grid of point clouds with the same limits and dots; 36 clouds make 6 x 6.

    Clouds in space are seen without perspective; far points are pale and covered by
    near ones.

    **Arguments:**

    - `clouds`: `(b, n, 2)` or `(b, n, 3)`, or a list of `(n_i, d)`. The y axis points
      up. Points that are not finite are left out.
    - `masks`: which points are valid; others are not drawn.
    - `titles`: a short text for each panel.
    - `weights`: one number per point, light for the smallest and dark for the largest.
    - `point_labels`: one integer per point, such as the object or the slot it belongs
      to. The same label has the same color in all panels, and negative ones are gray.
      Excludes `weights`.
    - `limits`: `(low, high)` of every axis; by default the smallest square around all
      points as they are seen.
    - `columns`: panels in a row, by default as many as make the grid nearly square.
    - `color`: one color, or one for each cloud. The default is that of samples; use
      `fk.plotting.colors["data_x"]` for data.
    - `up`: the axis that points up in space; 1 for most collections of shapes.
    - `view`: elevation and azimuth of the eye in degrees, in space.
    """
    number = len(clouds)
    require(number > 0, "`clouds` is empty; there is nothing to draw.")

    shades = [color] * number if isinstance(color, str) else list(color)
    values = {"masks": masks, "titles": titles, "weights": weights}
    check_lengths(number, **values, point_labels=point_labels, color=shades)
    require(
        weights is None or point_labels is None,
        "`weights` and `point_labels` both color the points; give one.",
    )

    columns = math.ceil(math.sqrt(number)) if columns is None else columns
    require(columns > 0, f"`columns` is {columns}; a grid needs at least one.")

    points = [as_points("clouds", c, entry(masks, i)) for i, c in enumerate(clouds)]
    if point_labels is not None:
        rgb = _colors_by_id(clouds, masks, point_labels)
    elif weights is not None:
        rgb = [
            _colors_by_weight(clouds[i], entry(masks, i), weights[i], shades[i])
            for i in range(number)
        ]
    else:
        rgb = [plain(shades[i], len(points[i])) for i in range(number)]

    texts = [""] * number if titles is None else titles
    panels = [Panel(*panel) for panel in zip(points, rgb, texts, strict=True)]
    return draw_panels(panels, columns, limits, Camera(up, view), path)


@own_look()
def samples_2d(
    target: Float[AnyArray, "n d"],
    generated: Float[AnyArray, "m d"],
    *,
    limits: Limits = None,
    path: PathLike = None,
) -> Figure:
    """Three panels of points in two or three dimensions: data, samples, and both.

    **Arguments:**

    - `target (n, d)`: samples of the distribution that was learned, the data.
    - `generated (m, d)`: samples of the model.
    - `limits`: `(low, high)` of every axis.
    """
    require(
        len(target) > 0 and len(generated) > 0,
        "`target` and `generated` need at least one point each.",
    )

    # Data first: in the overlay the samples lie on top of them.
    points = {
        "target": as_points("target", target),
        "generated": as_points("generated", generated),
    }
    roles = {"target": "data_x", "generated": "output_x_hat"}
    size = target.shape[1]
    lows, highs = box(points.values(), size, limits)
    area = point_area([len(xs) for xs in points.values()], 3.4, 0.08)

    figure = new_figure(11, 3.9)
    projection = "3d" if size == 3 else "rectilinear"
    for i, title in enumerate(("target", "generated", "overlay")):
        axes = figure.add_subplot(1, 3, i + 1, projection=projection)
        style_axes(axes, title)
        for name, xs in points.items():
            if title in (name, "overlay"):
                alpha = 0.45 if title == "overlay" and name == "target" else 0.7
                style = {"color": colors[roles[name]], "label": name, "linewidths": 0}
                axes.scatter(*xs.T, s=area, alpha=alpha, **style)
        style_space(axes, lows, highs)
        if title == "overlay":
            style_legend(axes, loc="upper right")

    return finish(figure, path)


def _colors_by_id(clouds: Clouds, masks: Masks, point_labels: Ids) -> list[np.ndarray]:
    ids = [
        drawn("point_labels", c, entry(masks, i), point_labels[i])
        for i, c in enumerate(clouds)
    ]
    number = 1 + max((int(i.max()) for i in ids if len(i)), default=0)
    return [id_colors(i, number) for i in ids]


def _colors_by_weight(cloud: Any, mask: Any, weights: Any, color: str) -> np.ndarray:
    """Nearly white for the smallest weight, a dark shade for the largest."""
    kept = drawn("weights", cloud, mask, np.asarray(weights, np.float64))
    spread = np.ptp(kept) if len(kept) else 0.0
    strength = np.ones(len(kept))
    if spread > 0:
        strength = 0.15 + 0.85 * (kept - kept.min()) / spread

    shades = ["#f2f2f2", color, "#000000"]
    darkness = LinearSegmentedColormap.from_list("darkness", shades)
    # Divided, so that the largest weight is not quite black.
    return darkness(strength / 1.3)[:, :3]
