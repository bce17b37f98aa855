"""Point clouds side by side."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._style import (
    as_points,
    box,
    colors,
    finish,
    INK,
    Limits,
    new_figure,
    PathLike,
    point_area,
    require,
    style_axes,
    style_legend,
    style_space,
)


PANEL = 1.5

Clouds: TypeAlias = Float[AnyArray, "_ _ _"] | Sequence[Float[AnyArray, "_ _"]]
Masks: TypeAlias = Bool[AnyArray, "_ _"] | Sequence[Bool[AnyArray, " _"]] | None
Weights: TypeAlias = Float[AnyArray, "_ _"] | Sequence[Float[AnyArray, " _"]] | None


def point_clouds(
    clouds: Clouds,
    masks: Masks = None,
    titles: Sequence[str] | None = None,
    weights: Weights = None,
    *,
    limits: Limits = None,
    columns: int | None = None,
    color: str = colors["prior_z"],
    path: PathLike = None,
) -> Figure:
    """A grid of point clouds, one panel each, all with the same limits; 36 clouds make 6 x 6.

    **Arguments:**

    - `clouds`: `(b, n, 2)` or `(b, n, 3)`, or a list of `(n_i, d)`. The y axis points up; points that are not finite
      are left out.
    - `masks`: which points are valid; others are not drawn.
    - `titles`: a short text for each panel.
    - `weights`: one number per point, light for the smallest and dark for the largest.
    - `limits`: `(low, high)` of every axis; by default the smallest cube around all points.
    - `columns`: panels in a row, by default as many as make the grid nearly square.
    """
    number = len(clouds)
    require(number > 0, "`clouds` is empty; there is nothing to draw.")
    for name, value in (("masks", masks), ("titles", titles), ("weights", weights)):
        require(value is None or len(value) == number, f"`{name}` must have one entry for each of the {number} clouds.")
    points = [as_points("clouds", c, _entry(masks, i)) for i, c in enumerate(clouds)]
    shades = [_shades(clouds[i], _entry(weights, i), _entry(masks, i)) for i in range(number)]
    columns = columns or math.ceil(math.sqrt(number))
    require(columns > 0, f"`columns` is {columns}; a grid needs at least one.")
    title_rows = 0 if titles is None else math.ceil(number / columns)
    figure, panels = _grid(points, number, columns, limits, title_rows=title_rows)
    darkness = LinearSegmentedColormap.from_list("darkness", ["#f2f2f2", color, "#000000"])
    for i, axes in enumerate(panels):
        area = point_area(len(points[i]), PANEL)
        shade = {"color": color} if weights is None else {"c": shades[i], "cmap": darkness, "vmin": 0, "vmax": 1.3}
        axes.scatter(*points[i].T, s=area, linewidths=0, alpha=0.85, **shade)
        if titles is not None:
            axes.set_title(titles[i], fontsize=8, color=INK, pad=3)
    return finish(figure, path)


def reconstructions(
    inputs: Clouds,
    samples: Clouds,
    input_masks: Masks = None,
    masks: Masks = None,
    *,
    limits: Limits = None,
    columns: int = 4,
    path: PathLike = None,
) -> Figure:
    """Pairs of panels, input | sample, `columns` pairs to a row; 16 pairs make 4 rows.

    **Arguments:**

    - `inputs`, `samples`: as many clouds in one as in the other.
    - `input_masks`: which points of the inputs the encoder saw; hidden ones are drawn red.
    - `masks`: which points of both are valid; others are not drawn.
    - `limits`: `(low, high)` of every axis; by default the smallest cube around all points.
    """
    number = len(inputs)
    require(number > 0, "`inputs` is empty; there is nothing to draw.")
    require(len(samples) == number, f"`samples` has {len(samples)} clouds and `inputs` has {number}; they are pairs.")
    require(columns > 0, f"`columns` is {columns}; a row needs at least one pair.")
    columns = min(columns, number)
    given = [as_points("inputs", x, _entry(masks, i)) for i, x in enumerate(inputs)]
    drawn = [as_points("samples", x, _entry(masks, i)) for i, x in enumerate(samples)]
    figure, panels = _grid([*given, *drawn], 2 * number, 2 * columns, limits, title_rows=1)
    for i in range(number):
        left, right = panels[2 * i], panels[2 * i + 1]
        area = point_area(len(given[i]), PANEL)
        valid, seen = _entry(masks, i), _entry(input_masks, i)
        for keep, color in _seen_and_hidden(len(inputs[i]), valid, seen):
            kept = as_points("inputs", inputs[i], keep)
            left.scatter(*kept.T, s=area, linewidths=0, alpha=0.85, color=color)
        area = point_area(len(drawn[i]), PANEL)
        right.scatter(*drawn[i].T, s=area, linewidths=0, alpha=0.85, color=colors["prior_z"])
        if i < columns:
            left.set_title("input", fontsize=9, color=INK, pad=3)
            right.set_title("sample", fontsize=9, color=INK, pad=3)
    return finish(figure, path)


def samples_2d(
    target: Float[AnyArray, "n d"],
    generated: Float[AnyArray, "m d"],
    *,
    limits: Limits = None,
    path: PathLike = None,
) -> Figure:
    """Three panels, target | generated | both, for samples of a distribution in two (or three) dimensions."""
    require(len(target) > 0 and len(generated) > 0, "`target` and `generated` need at least one point each.")
    points = {"target": as_points("target", target), "generated": as_points("generated", generated)}
    shades = {"target": colors["output_x_hat"], "generated": colors["prior_z"]}
    size = target.shape[1]
    lows, highs = box(points.values(), size, limits)
    figure = new_figure(11, 3.9)
    panels = [figure.add_subplot(1, 3, i + 1, **_projection(size)) for i in range(3)]
    for axes, title in zip(panels, ("target", "generated", "overlay"), strict=True):
        style_axes(axes, title)
        for name, xs in points.items():
            if title in (name, "overlay"):
                area = point_area(len(xs), 3.4, 0.08)
                alpha = 0.45 if title == "overlay" else 0.7
                axes.scatter(*xs.T, s=area, linewidths=0, alpha=alpha, color=shades[name], label=name)
        style_space(axes, lows, highs)
    style_legend(panels[2], loc="upper right")
    return finish(figure, path)


def _grid(
    points: list[np.ndarray], number: int, columns: int, limits: Limits, *, title_rows: int
) -> tuple[Figure, list[Any]]:
    """A figure of equal square panels for so many clouds; some rows carry titles."""
    size = points[0].shape[1]
    require(all(p.shape[1] == size for p in points), "all clouds of a figure must have the same dimension.")
    lows, highs = box(points, size, limits)
    rows = math.ceil(number / columns)
    figure = new_figure(columns * PANEL, rows * PANEL + 0.2 * title_rows)
    panels = [figure.add_subplot(rows, columns, i + 1, **_projection(size)) for i in range(number)]
    for axes in panels:
        style_space(axes, lows, highs, ticks=False)
    return figure, panels


def _projection(size: int) -> dict[str, str]:
    return {"projection": "3d"} if size == 3 else {}


def _entry(values: Any, i: int) -> Any:
    return None if values is None else values[i]


def _shades(cloud: Any, weights: Any, mask: Any) -> np.ndarray | None:
    """Weights of the points that are drawn, scaled to [0.15, 1]."""
    if weights is None:
        return None
    weights = np.asarray(weights, np.float64)
    require(len(weights) == len(cloud), f"`weights` has {len(weights)} numbers for a cloud of {len(cloud)} points.")
    keep = np.isfinite(np.asarray(cloud, np.float64)).all(1)
    if mask is not None:
        keep &= np.asarray(mask)
    kept = weights[keep]
    spread = np.ptp(kept) if len(kept) else 0.0
    return 0.15 + 0.85 * (kept - kept.min()) / spread if spread > 0 else np.ones(len(kept))


def _seen_and_hidden(number: int, valid: Any, seen: Any) -> list[tuple[np.ndarray, str]]:
    valid = np.ones(number, bool) if valid is None else np.asarray(valid)
    if seen is None:
        return [(valid, INK)]
    seen = np.asarray(seen)
    require(seen.shape == valid.shape, f"`input_masks` has a mask of shape {seen.shape} for {number} points.")
    return [(valid & seen, INK), (valid & ~seen, colors["output_x_hat"])]
