"""Latents: where they lie, and their moments."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._densities import style_color_bar
from flowkit.plotting._panels import class_colors
from flowkit.plotting._style import (
    colors,
    FAINT,
    finish,
    INK,
    LEVEL,
    new_figure,
    own_look,
    PathLike,
    point_area,
    require,
    style_axes,
    style_legend,
)


@own_look()
def embedding(
    xy: Float[AnyArray, "n 2"],
    labels: Integer[AnyArray, " n"] | None = None,
    *,
    names: Sequence[str] | None = None,
    title: str = "",
    path: PathLike = None,
) -> Figure:
    """A map of latents in the plane, such as t-SNE, colored by class.

    The axes carry no numbers, since those of such a map have no meaning. Points that
    are not finite are left out.

    **Arguments:**

    - `xy (n, 2)`: the points.
    - `labels (n,)`: their classes in `0 .. num_classes - 1`.
    - `names`: the names of the classes in the legend, by default their numbers.
    - `title`: the title of the figure.
    """
    points = np.asarray(xy, np.float64)
    require(len(points) > 0, "`xy` is empty; there is nothing to draw.")

    # Shuffled, so that no class covers another because of its number.
    finite = np.flatnonzero(np.isfinite(points).all(1))
    order = np.random.default_rng(0).permutation(finite)
    style = {"s": point_area([len(points)], 4.5, 0.1), "linewidths": 0, "alpha": 0.8}

    figure = new_figure(5.4 if labels is None else 6.4, 5.2)
    axes = figure.add_subplot()
    _bare(axes, title)
    if labels is None:
        axes.scatter(*points[order].T, color=colors["latent_z_hat"], **style)
        return finish(figure, path)

    ids = np.asarray(labels)
    number = int(ids.max()) + 1
    require(
        int(ids.min()) >= 0,
        "`labels` holds negative numbers; classes are counted from 0.",
    )
    require(
        names is None or len(names) >= number,
        f"`names` must name all {number} classes.",
    )

    names = [str(k) for k in range(number)] if names is None else names
    palette = class_colors(number)
    axes.scatter(*points[order].T, c=palette[ids[order]], **style)
    # Empty clouds give the legend its entries.
    for k in np.unique(ids):
        axes.scatter([], [], color=palette[k], label=names[k])

    columns = 1 if number <= 20 else 2
    style_legend(axes, loc="center left", bbox_to_anchor=(1, 0.5), ncols=columns)
    return finish(figure, path)


class _Table(NamedTuple):
    """A heat map with a row for each class and a column for each latent entry."""

    values: np.ndarray
    title: str
    colormap: str
    low: float
    high: float


@own_look()
def latent_statistics(
    mean: Float[AnyArray, "..."],
    std: Float[AnyArray, "..."],
    class_mean: Float[AnyArray, "..."] | None = None,
    class_std: Float[AnyArray, "..."] | None = None,
    *,
    names: Sequence[str] | None = None,
    path: PathLike = None,
) -> Figure:
    """Mean and standard deviation of every latent dimension, overall and by class.

    The bars at the top reach from `mean - std` to `mean + std`. Below them, a table
    shows how far the mean of each class is from the mean of all, in units of the
    standard deviation of all: a dimension with a strong column separates classes.
    Another table shows the standard deviation within each class in the same unit: it is
    1 if the class explains nothing.

    **Arguments:** the fields of `fk.metrics.LatentStatistics`.

    - `mean`, `std`: arrays of one shape `(...)`, which are flattened.
    - `class_mean`, `class_std`: shape `(num_classes, ...)`, NaN for a class without
      examples.
    - `names`: the names of the classes, by default their numbers.
    """
    mean = np.asarray(mean, np.float64).reshape(-1)
    std = np.asarray(std, np.float64).reshape(-1)
    require(
        mean.shape == std.shape and len(mean) > 0,
        f"`mean` and `std` have {mean.size} and {std.size} entries.",
    )
    require(
        (class_mean is None) == (class_std is None),
        "`class_mean` and `class_std` belong together: give both.",
    )

    tables = []
    number = 0
    if class_mean is not None:
        tables = _tables(mean, std, class_mean, class_std)
        number = len(tables[0].values)
    require(
        names is None or len(names) == number,
        f"`names` must name all {number} classes.",
    )

    names = [str(k) for k in range(number)] if names is None else names

    heights = [2.2] + [max(1.4, 0.22 * number + 0.5)] * len(tables)
    width = float(np.clip(2 + 0.16 * len(mean), 6.5, 14))

    figure = new_figure(width, sum(heights))
    shape = {"nrows": len(heights), "height_ratios": heights}
    panels = figure.subplots(**shape, sharex=True, squeeze=False)[:, 0]
    _draw_overall(panels[0], mean, std)
    for axes, table in zip(panels[1:], tables, strict=True):
        _heat_map(figure, axes, table, names)

    panels[-1].set_xlabel("latent dimension", fontsize=9, color=INK)
    return finish(figure, path)


def _tables(
    mean: np.ndarray, std: np.ndarray, class_mean: Any, class_std: Any
) -> list[_Table]:
    """Moments of the classes relative to those of all examples."""
    # A latent that never varies keeps its own unit.
    scale = np.where(std > 0, std, 1)
    shift = (_by_class(class_mean, len(mean)) - mean) / scale
    spread = _by_class(class_std, len(mean)) / scale
    require(
        len(shift) == len(spread),
        f"`class_mean` and `class_std` have {len(shift)} and {len(spread)} classes.",
    )

    # Symmetric, so that white is no shift.
    limit = max(float(np.nanmax(np.abs(shift), initial=0)), 1e-6)
    widest = float(np.nanmax(spread))
    return [
        _Table(shift, "(mean of class - mean) / std", "RdBu_r", -limit, limit),
        _Table(spread, "std of class / std", "viridis", 0.0, widest),
    ]


def _by_class(values: Any, size: int) -> np.ndarray:
    table = np.asarray(values, np.float64)
    require(
        table.ndim > 0 and len(table) > 0 and table.size == len(table) * size,
        f"moments by class have shape {table.shape}; "
        f"(num_classes, ...) with {size} latent entries is needed.",
    )
    return table.reshape(len(table), -1)


def _draw_overall(axes: Any, mean: np.ndarray, std: np.ndarray) -> None:
    """A bar of one standard deviation on each side of every mean."""
    style_axes(axes, "all examples: mean and standard deviation")
    positions = np.arange(len(mean))
    bar = {"color": colors["latent_z_hat"], "alpha": 0.35, "linewidth": 0}
    axes.bar(positions, 2 * std, 0.75, mean - std, **bar)
    dash = {"marker": "_", "markersize": 6 if len(mean) <= 64 else 2}
    axes.plot(positions, mean, color=INK, linewidth=0, **dash)
    axes.axhline(0, color=LEVEL, linewidth=0.8)

    # Bars stick to their lower end and would touch the frame.
    axes.use_sticky_edges = False
    axes.autoscale_view(scalex=False)
    axes.set_xlim(-0.6, len(mean) - 0.4)


def _heat_map(figure: Figure, axes: Any, table: _Table, names: Sequence[str]) -> None:
    style_axes(axes, table.title, "", "class")
    axes.grid(False)
    limits = {"vmin": table.low, "vmax": table.high, "cmap": table.colormap}
    cells = {"aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(table.values, **cells, **limits)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    style_color_bar(figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03))


def _bare(axes: Any, title: str) -> None:
    """Axes with a frame and nothing else."""
    style_axes(axes, title)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(FAINT)
