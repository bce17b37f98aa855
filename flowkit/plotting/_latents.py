"""Latents: where they lie, and their moments."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._panels import class_colors
from flowkit.plotting._style import (
    colors,
    FAINT,
    finish,
    INK,
    new_figure,
    PathLike,
    point_area,
    require,
    style_axes,
    style_legend,
)


def embedding(
    xy: Float[AnyArray, "n 2"],
    labels: Int[AnyArray, " n"] | None = None,
    *,
    names: Sequence[str] | None = None,
    title: str = "",
    path: PathLike = None,
) -> Figure:
    """Points of a planar map of latents, such as t-SNE or two principal components, coloured by class.

    The axes carry no numbers, as those of such a map mean nothing; points that are not finite are left out.

    **Arguments:** `xy (n, 2)`; `labels (n,)` in `0 .. num_classes - 1`; `names` of the classes for the legend, by
    default their numbers.
    """
    points = np.asarray(xy, np.float64)
    require(len(points) > 0, "`xy` is empty; there is nothing to draw.")
    ids = np.zeros(len(points), int) if labels is None else np.asarray(labels)
    require(
        int(ids.min()) >= 0,
        "`labels` holds negative numbers; classes are counted from 0.",
    )
    number = int(ids.max()) + 1
    require(
        names is None or len(names) >= number,
        f"`names` must name all {number} classes.",
    )
    figure = new_figure(6.4 if labels is not None else 5.4, 5.2)
    axes = figure.add_subplot()
    _bare(axes, title)
    # Shuffled, so that no class covers another because of its number.
    order = np.random.default_rng(0).permutation(
        np.flatnonzero(np.isfinite(points).all(1))
    )
    palette = class_colors(number) if labels is not None else [colors["latent_z_hat"]]
    area = point_area(len(points), 4.5, 0.1)
    shades = np.asarray(palette)[ids[order]] if labels is not None else palette[0]
    axes.scatter(*points[order].T, s=area, linewidths=0, alpha=0.8, c=shades)
    for k in np.unique(ids) if labels is not None else ():
        axes.scatter(
            [], [], color=palette[k], label=str(k) if names is None else names[k]
        )
    style_legend(
        axes, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 if number <= 20 else 2
    )
    return finish(figure, path)


def latent_statistics(
    mean: Float[AnyArray, "..."],
    std: Float[AnyArray, "..."],
    class_mean: Float[AnyArray, "..."] | None = None,
    class_std: Float[AnyArray, "..."] | None = None,
    *,
    names: Sequence[str] | None = None,
    path: PathLike = None,
) -> Figure:
    """Moments of every latent dimension: mean and standard deviation overall, and for each class.

    Above, bars from `mean - std` to `mean + std`. Below, for classes, how far the mean of a class is from the overall
    one, in units of the overall standard deviation: a dimension with a strong column tells classes apart. Then the
    standard deviation within a class, in the same unit: 1 where the class explains nothing.

    **Arguments:** the fields of `fk.metrics.LatentStatistics`: `mean`, `std` of one shape `(...)`, which is
    flattened, and `class_mean`, `class_std` `(num_classes, ...)`, NaN for a class without examples; `names` of the
    classes, by default their numbers.
    """
    mean, std = (
        np.asarray(mean, np.float64).reshape(-1),
        np.asarray(std, np.float64).reshape(-1),
    )
    require(
        mean.shape == std.shape and len(mean) > 0,
        f"`mean` and `std` have {mean.size} and {std.size} entries.",
    )
    require(
        (class_mean is None) == (class_std is None),
        "`class_mean` and `class_std` belong together: give both.",
    )
    classes = (
        []
        if class_mean is None
        else [_by_class(class_mean, mean), _by_class(class_std, mean)]
    )
    number = len(classes[0]) if classes else 0
    require(
        names is None or len(names) == number,
        f"`names` must name all {number} classes.",
    )
    heights = [2.2, *[max(1.4, 0.22 * number + 0.5)] * len(classes)]
    figure = new_figure(float(np.clip(2 + 0.16 * len(mean), 6.5, 14)), sum(heights))
    panels = figure.subplots(
        len(heights), 1, sharex=True, height_ratios=heights, squeeze=False
    )[:, 0]
    _draw_overall(panels[0], mean, std)
    scale = np.where(std > 0, std, 1)
    names = [str(k) for k in range(number)] if names is None else names
    if classes:
        shift, spread = (classes[0] - mean) / scale, classes[1] / scale
        limit = max(float(np.nanmax(np.abs(shift), initial=0)), 1e-6)
        _heat_map(
            figure,
            panels[1],
            shift,
            names,
            "(mean of class - mean) / std",
            "RdBu_r",
            (-limit, limit),
        )
        _heat_map(
            figure,
            panels[2],
            spread,
            names,
            "std of class / std",
            "viridis",
            (0, float(np.nanmax(spread))),
        )
    panels[-1].set_xlabel("latent dimension", fontsize=9, color=INK)
    return finish(figure, path)


def _by_class(values: Any, mean: np.ndarray) -> np.ndarray:
    table = np.asarray(values, np.float64)
    require(
        table.ndim > 0 and len(table) > 0 and table.size == len(table) * len(mean),
        f"moments by class have shape {table.shape}; (num_classes, ...) with {len(mean)} latent entries is needed.",
    )
    return table.reshape(len(table), -1)


def _draw_overall(axes: Any, mean: np.ndarray, std: np.ndarray) -> None:
    style_axes(axes, "all examples: mean and standard deviation")
    positions = np.arange(len(mean))
    axes.bar(
        positions,
        2 * std,
        0.75,
        mean - std,
        color=colors["latent_z_hat"],
        alpha=0.35,
        linewidth=0,
    )
    axes.plot(
        positions,
        mean,
        color=INK,
        linewidth=0,
        marker="_",
        markersize=6 if len(mean) <= 64 else 2,
    )
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.use_sticky_edges = False
    axes.autoscale_view(scalex=False)
    axes.set_xlim(-0.6, len(mean) - 0.4)


def _heat_map(
    figure: Figure,
    axes: Any,
    table: np.ndarray,
    names: Any,
    title: str,
    colormap: str,
    limits: Any,
) -> None:
    style_axes(axes, title, "", "class")
    axes.grid(False)
    image = axes.imshow(
        table,
        aspect="auto",
        cmap=colormap,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )
    axes.set_yticks(range(len(names)), names, fontsize=7)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
    bar.ax.tick_params(labelsize=8, labelcolor=INK, color=FAINT)
    bar.outline.set_visible(False)  # pyright: ignore


def _bare(axes: Any, title: str) -> None:
    style_axes(axes, title)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(FAINT)
