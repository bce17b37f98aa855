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
    PathLike,
    point_area,
    require,
    style_axes,
    style_legend,
    style_space,
)


def point_clouds(
    clouds: Clouds,
    masks: Masks = None,
    titles: Sequence[str] | None = None,
    weights: Weights = None,
    *,
    point_labels: Ids | None = None,
    limits: Limits = None,
    columns: int | None = None,
    color: str = colors["prior_z"],
    up: int = 2,
    view: tuple[Number, Number] = (20, -60),
    path: PathLike = None,
) -> Figure:
    """A grid of point clouds, one panel each, all with the same limits; 36 clouds make 6 x 6.

    Clouds in space are seen without perspective; far points are pale and covered by near ones.

    **Arguments:**

    - `clouds`: `(b, n, 2)` or `(b, n, 3)`, or a list of `(n_i, d)`. The y axis points up; points that are not finite
      are left out.
    - `masks`: which points are valid; others are not drawn.
    - `titles`: a short text for each panel.
    - `weights`: one number per point, light for the smallest and dark for the largest.
    - `point_labels`: one integer per point, such as the object or the slot it belongs to; the same one has the same
      colour in all panels, and negative ones are grey. Instead of `weights`.
    - `limits`: `(low, high)` of every axis; by default the smallest square around all points as they are seen.
    - `columns`: panels in a row, by default as many as make the grid nearly square.
    - `up`: in space, the axis that points up; 1 for most collections of shapes.
    - `view`: in space, elevation and azimuth of the eye in degrees.
    """
    number = len(clouds)
    require(number > 0, "`clouds` is empty; there is nothing to draw.")
    check_lengths(
        number, masks=masks, titles=titles, weights=weights, point_labels=point_labels
    )
    require(
        weights is None or point_labels is None,
        "`weights` and `point_labels` both colour the points; give one.",
    )
    columns = math.ceil(math.sqrt(number)) if columns is None else columns
    require(columns > 0, f"`columns` is {columns}; a grid needs at least one.")
    points = [as_points("clouds", c, entry(masks, i)) for i, c in enumerate(clouds)]
    if point_labels is not None:
        shades = _colors_by_id(clouds, masks, point_labels)
    elif weights is not None:
        shades = [
            _colors_by_weight(clouds[i], entry(masks, i), weights[i], color)
            for i in range(number)
        ]
    else:
        shades = [plain(color, len(p)) for p in points]
    texts = [""] * number if titles is None else titles
    panels = [Panel(*panel) for panel in zip(points, shades, texts, strict=True)]
    return draw_panels(panels, columns, limits, Camera(up, view), path)


def samples_2d(
    target: Float[AnyArray, "n d"],
    generated: Float[AnyArray, "m d"],
    *,
    limits: Limits = None,
    path: PathLike = None,
) -> Figure:
    """Three panels, target | generated | both, for samples of a distribution in two (or three) dimensions."""
    require(
        len(target) > 0 and len(generated) > 0,
        "`target` and `generated` need at least one point each.",
    )
    points = {
        "target": as_points("target", target),
        "generated": as_points("generated", generated),
    }
    shades = {"target": colors["output_x_hat"], "generated": colors["prior_z"]}
    size = target.shape[1]
    lows, highs = box(points.values(), size, limits)
    figure = new_figure(11, 3.9)
    projection = {"projection": "3d"} if size == 3 else {}
    panels = [figure.add_subplot(1, 3, i + 1, **projection) for i in range(3)]
    for axes, title in zip(panels, ("target", "generated", "overlay"), strict=True):
        style_axes(axes, title)
        for name, xs in points.items():
            if title in (name, "overlay"):
                area = point_area(len(xs), 3.4, 0.08)
                alpha = 0.45 if title == "overlay" else 0.7
                axes.scatter(
                    *xs.T,
                    s=area,
                    linewidths=0,
                    alpha=alpha,
                    color=shades[name],
                    label=name,
                )
        style_space(axes, lows, highs)
    style_legend(panels[2], loc="upper right")
    return finish(figure, path)


def _colors_by_id(clouds: Clouds, masks: Masks, point_labels: Ids) -> list[np.ndarray]:
    ids = [
        drawn("point_labels", c, entry(masks, i), point_labels[i])
        for i, c in enumerate(clouds)
    ]
    number = 1 + max((int(i.max()) for i in ids if len(i)), default=0)
    return [id_colors(i, number) for i in ids]


def _colors_by_weight(cloud: Any, mask: Any, weights: Any, color: str) -> np.ndarray:
    """From nearly white for the smallest weight to a dark shade of the colour for the largest."""
    kept = drawn("weights", cloud, mask, np.asarray(weights, np.float64))
    spread = np.ptp(kept) if len(kept) else 0.0
    shades = (
        0.15 + 0.85 * (kept - kept.min()) / spread if spread > 0 else np.ones(len(kept))
    )
    darkness = LinearSegmentedColormap.from_list(
        "darkness", ["#f2f2f2", color, "#000000"]
    )
    return darkness(shades / 1.3)[:, :3]
