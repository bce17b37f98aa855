"""Densities of samples on the line and in the plane, next to exact ones."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._style import (
    box,
    check_path,
    colors,
    FAINT,
    finish,
    INK,
    Limits,
    new_figure,
    own_look,
    PathLike,
    require,
    series_color,
    style_axes,
    style_legend,
    style_space,
)


@own_look()
def density_1d(
    samples: Float[AnyArray, " n"] | Mapping[str, Float[AnyArray, " _"]],
    density: tuple[Any, Any] | None = None,
    *,
    bins: int = 60,
    limits: Limits = None,
    path: PathLike = None,
) -> Figure:
    """Histograms of samples on the line, scaled to densities, with an exact density on
    top.

    **Arguments:**

    - `samples (n,)`, or name -> `(n,)` for several.
    - `density`: `(x, p)`, a grid and the exact density there, each `(k,)`.
    - `bins`: the number of bins, which all histograms share.
    - `limits`: `(low, high)` of the axis.
    """
    finite = _finite(samples, 1)
    require(bins > 0, f"`bins` is {bins}; a histogram needs at least one.")
    lows, highs = box(finite.values(), 1, limits)

    figure = new_figure(5.6, 3.5)
    axes = figure.add_subplot()
    style_axes(axes, "", "x", "density")
    for i, (name, values) in enumerate(finite.items()):
        color = colors["output_x_hat"] if len(finite) == 1 else series_color(i)
        style = {"color": color, "alpha": 0.4, "label": name}
        histogram(axes, values, lows, highs, bins, **style)

    if density is not None:
        x = np.asarray(density[0], np.float64)
        p = np.asarray(density[1], np.float64)
        require(
            x.ndim == 1 and x.shape == p.shape,
            f"`density` has shapes {x.shape} and {p.shape}; both are (k,).",
        )
        axes.plot(x, p, color=INK, linewidth=1.6, label="exact")

    axes.set_ylim(bottom=0)
    style_legend(axes)
    return finish(figure, path)


@own_look()
def density_2d(
    samples: Float[AnyArray, "n 2"] | Mapping[str, Float[AnyArray, "_ 2"]],
    log_prob: Callable[..., Any] | None = None,
    *,
    resolution: int = 80,
    limits: Limits = None,
    path: PathLike = None,
) -> Figure:
    """Densities in the plane as heat maps: of samples, and the exact one.

    All panels have the same colors.

    **Arguments:**

    - `samples (n, 2)`, or name -> `(n, 2)` for several: drawn as histograms that are
      scaled to densities.
    - `log_prob`: `x (2,) -> ()`, such as that of `fk.GaussianMixture`; it is vmapped
      and compiled here.
    - `resolution`: the number of cells along each axis.
    - `limits`: `(low, high)` of both axes.
    """
    named = _finite(samples, 2)
    require(
        resolution > 1,
        f"`resolution` is {resolution}; a heat map needs at least two cells along each axis.",
    )
    # Before the density is evaluated, which may take long.
    check_path(path)

    lows, highs = box(named.values(), 2, limits)
    sides = zip(lows, highs, strict=True)
    edges = [np.linspace(low, high, resolution + 1) for low, high in sides]
    maps = {name: _heat(xs, edges) for name, xs in named.items()}
    if log_prob is not None:
        maps["exact"] = _exact(log_prob, edges)
    highest = max(float(np.nanmax(density)) for density in maps.values())

    figure = new_figure(3.1 * len(maps) + 0.7, 3.3)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    style = {"origin": "lower", "vmin": 0, "vmax": highest, "cmap": "viridis"}
    extent = (lows[0], highs[0], lows[1], highs[1])
    for axes, (name, density) in zip(panels, maps.items(), strict=True):
        style_axes(axes, name)
        axes.grid(False)
        drawn = axes.imshow(density, extent=extent, **style)
        style_space(axes, lows, highs)

    color_bar(figure, list(panels), drawn, "density")
    return finish(figure, path)


def _heat(points: np.ndarray, edges: list[np.ndarray]) -> np.ndarray:
    """The density in each cell; rows are the second coordinate."""
    counts, *_ = np.histogram2d(*points.T, bins=edges)
    area = (edges[0][1] - edges[0][0]) * (edges[1][1] - edges[1][0])
    # Divided by all samples: the mass outside the limits is missing, as it should be.
    return counts.T / (max(len(points), 1) * area)


def _exact(log_prob: Callable[..., Any], edges: list[np.ndarray]) -> np.ndarray:
    """The density at the centers of the cells."""
    centers = [(edge[:-1] + edge[1:]) / 2 for edge in edges]
    points = np.stack(np.meshgrid(*centers), -1).astype(np.float32)
    logs = np.asarray(_of_points(log_prob, points.reshape(-1, 2)), np.float64)
    require(
        logs.shape == (len(centers[0]) * len(centers[1]),),
        "`log_prob` must give one number for a point (2,).",
    )
    return np.exp(logs).reshape(points.shape[:2])


@eqx.filter_jit
def _of_points(fn: Any, points: Any) -> Array:
    return jax.vmap(fn)(jnp.asarray(points))


def _finite(samples: Any, size: int) -> dict[str, np.ndarray]:
    """The finite samples by name, `(n, size)`."""
    named = dict(samples) if isinstance(samples, Mapping) else {"samples": samples}
    finite = {}
    for name, array in named.items():
        values = np.asarray(array, np.float64)
        if size == 1:
            values = values[:, None]
        require(
            values.shape[1:] == (size,),
            f"`samples` has {name!r} of shape {values.shape}; (n, {size}) can be drawn.",
        )
        finite[name] = values[np.isfinite(values).all(1)]

    require(
        any(len(values) > 0 for values in finite.values()),
        "`samples` holds no finite value; there is nothing to draw.",
    )

    return finite


def histogram(
    axes: Any,
    values: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    bins: int = 60,
    **style: Any,
) -> None:
    """A histogram of values `(n, 1)`, scaled to a density: the mass outside the limits
    is missing.
    """
    edges = np.linspace(lows[0], highs[0], bins + 1)
    # Not `density=True`, which would spread the mass outside the limits over the bins
    # inside.
    weights = np.full(len(values), 1 / (max(len(values), 1) * (edges[1] - edges[0])))
    axes.hist(values[:, 0], edges, weights=weights, histtype="stepfilled", **style)
    axes.set_xlim(lows[0], highs[0])


def color_bar(
    figure: Figure, panels: list, drawn: Any, label: str, *, pad: float = 0.01
) -> None:
    """A color bar without a frame to the right of the panels.

    **Arguments:** `pad`: the gap, as a fraction of the width of all these panels.
    """
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8, pad=pad)
    bar.set_label(label, fontsize=9, color=INK)
    style_color_bar(bar)


def style_color_bar(bar: Any) -> None:
    """Small text and no frame."""
    bar.ax.tick_params(labelsize=8, labelcolor=INK, color=FAINT)
    bar.outline.set_visible(False)
