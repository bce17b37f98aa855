"""Velocity fields, densities, and clouds on their way."""

import math
from collections.abc import Callable, Mapping, Sequence
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
    colors,
    FAINT,
    finish,
    INK,
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


def vector_field(
    velocity: Callable[..., Any],
    limits: tuple[Number, Number] = (-1.5, 1.5),
    times: Sequence[Number] = (0.0, 0.33, 0.67, 1.0),
    *,
    points: Float[AnyArray, "n 2"] | None = None,
    resolution: int = 20,
    path: PathLike = None,
) -> Figure:
    """Arrows of a planar velocity field on a grid, one panel per time, coloured by speed.

    All panels share one scale of arrows and of colours.

    **Arguments:**

    - `velocity`: `(t, x) -> dx` for one point `x (2,)`; vmapped and compiled here.
    - `limits`: `(low, high)` of both axes.
    - `points (n, 2)`: data to draw behind.
    - `resolution`: arrows along each axis.
    """
    require(len(times) > 0, "`times` is empty; name at least one.")
    require(
        resolution > 1,
        f"`resolution` is {resolution}; a grid needs at least two arrows along each axis.",
    )
    lows, highs = box([], 2, limits)
    side = np.linspace(lows[0], highs[0], resolution + 2)[1:-1]
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    arrows = np.asarray(on_grid(velocity, jnp.asarray(times, jnp.float32), grid))
    require(
        arrows.shape == (len(times), len(grid), 2),
        f"`velocity` gives shape {arrows.shape[2:]}, not (2,).",
    )
    speeds = np.linalg.norm(arrows, axis=-1)
    fastest = float(np.nanmax(speeds, initial=1e-12, where=np.isfinite(speeds)))
    figure = new_figure(3.1 * len(times) + 0.7, 3.3)
    panels = [figure.add_subplot(1, len(times), i + 1) for i in range(len(times))]
    for axes, t, arrow, speed in zip(panels, times, arrows, speeds, strict=True):
        style_axes(axes, f"t = {t:.2f}")
        if points is not None:
            area = point_area(len(points), 2.6, 0.06)
            axes.scatter(
                *np.asarray(points).T,
                s=area,
                linewidths=0,
                color=colors["data_x"],
                alpha=0.35,
            )
        # The longest arrow of all spans one and a half cells of the grid.
        scale = fastest / (1.5 * (side[1] - side[0]))
        drawn = axes.quiver(
            *grid.T,
            *arrow.T,
            speed,
            angles="xy",
            scale_units="xy",
            scale=scale,
            cmap="viridis",
            width=0.005,
        )
        drawn.set_clim(0, fastest)
        style_space(axes, lows, highs)
    _color_bar(figure, panels, drawn, "speed")
    return finish(figure, path)


def density_1d(
    samples: Float[AnyArray, " n"] | Mapping[str, Float[AnyArray, " _"]],
    density: tuple[Any, Any] | None = None,
    *,
    bins: int = 60,
    limits: Limits = None,
    path: PathLike = None,
) -> Figure:
    """Histograms of samples on the line, scaled to densities, with an exact density on top.

    **Arguments:** samples `(n,)`, or name -> `(n,)` for several; `density = (x, p)`, a grid and the values there;
    the number of bins, which all histograms share; `limits` of the axis.
    """
    finite = _finite(samples, 1)
    lows, highs = box(finite.values(), 1, limits)
    figure = new_figure(5.6, 3.5)
    axes = figure.add_subplot()
    style_axes(axes, "", "x", "density")
    for i, (name, values) in enumerate(finite.items()):
        color = (
            colors["prior_z"],
            colors["data_x"],
            colors["latent_z_hat"],
            colors["coupling_infer"],
        )[i % 4]
        _histogram(
            axes,
            values[:, 0],
            lows[0],
            highs[0],
            color,
            alpha=0.4,
            label=name,
            bins=bins,
        )
    if density is not None:
        x, p = (np.asarray(a, np.float64) for a in density)
        require(
            x.ndim == 1 and x.shape == p.shape,
            f"`density` has shapes {x.shape} and {p.shape}; both are (k,).",
        )
        axes.plot(x, p, color=colors["output_x_hat"], linewidth=1.6, label="exact")
    axes.set_ylim(bottom=0)
    style_legend(axes)
    return finish(figure, path)


def density_2d(
    samples: Float[AnyArray, "n 2"] | Mapping[str, Float[AnyArray, "_ 2"]],
    log_prob: Callable[..., Any] | None = None,
    *,
    resolution: int = 80,
    limits: Limits = None,
    path: PathLike = None,
) -> Figure:
    """Densities in the plane as heat maps, one panel each with the same colours: of samples, and the exact one.

    **Arguments:**

    - `samples (n, 2)`, or name -> `(n, 2)` for several: drawn as histograms, scaled to densities.
    - `log_prob`: `x (2,) -> ()`, such as that of `fk.GaussianMixture`; vmapped and compiled here.
    - `resolution`: cells along each axis.
    - `limits`: `(low, high)` of both axes.
    """
    named = _finite(samples, 2)
    require(
        resolution > 1,
        f"`resolution` is {resolution}; a heat map needs at least two cells along each axis.",
    )
    lows, highs = box(named.values(), 2, limits)
    edges = [
        np.linspace(low, high, resolution + 1)
        for low, high in zip(lows, highs, strict=True)
    ]
    area = np.prod((highs - lows) / resolution)
    # Divided by all samples, so that what lies outside the limits is not made up for.
    maps = {
        name: np.histogram2d(*xs.T, bins=edges)[0].T / (max(len(xs), 1) * area)
        for name, xs in named.items()
    }
    if log_prob is not None:
        centres = np.stack(
            np.meshgrid(*((e[:-1] + e[1:]) / 2 for e in edges)), -1
        ).astype(np.float32)
        maps["exact"] = np.exp(
            np.asarray(_of_points(log_prob, centres.reshape(-1, 2)), np.float64)
        )
        require(
            maps["exact"].shape == (resolution**2,),
            "`log_prob` must give one number for a point (2,).",
        )
        maps["exact"] = maps["exact"].reshape(resolution, resolution)
    highest = max(float(np.nanmax(density)) for density in maps.values())
    figure = new_figure(3.1 * len(maps) + 0.7, 3.3)
    panels = [figure.add_subplot(1, len(maps), i + 1) for i in range(len(maps))]
    extent = (lows[0], highs[0], lows[1], highs[1])
    for axes, (name, density) in zip(panels, maps.items(), strict=True):
        style_axes(axes, name)
        axes.grid(False)
        drawn = axes.imshow(
            density, origin="lower", extent=extent, vmin=0, vmax=highest, cmap="viridis"
        )
        style_space(axes, lows, highs)
    _color_bar(figure, panels, drawn, "density")
    return finish(figure, path)


def snapshots(
    times: Float[AnyArray, " t"],
    points: Float[AnyArray, "n t d"],
    *,
    target: Float[AnyArray, "m d"] | None = None,
    num: int = 6,
    columns: int = 3,
    limits: Limits = None,
    path: PathLike = None,
) -> Figure:
    """How a cloud of points looks on its way from noise to data: a panel for each of some evenly spaced steps.

    In one dimension these are histograms, in the plane the points themselves.

    **Arguments:**

    - `times (t,)` and `points (n, t, d)`, `d` at most 2, as a vmapped solve saves them.
    - `target (m, d)`: data to draw faintly behind.
    - `num`, `columns`: how many steps, the first and the last one included, and how many panels in a row.
    - `limits`: `(low, high)` of every spatial axis.
    """
    steps, clouds = np.asarray(times, np.float64), np.asarray(points, np.float64)
    size = clouds.shape[-1]
    require(size in (1, 2), f"`points` has {size} dimensions; 1 or 2 can be drawn.")
    require(
        2 <= num <= len(steps),
        f"`num` is {num}; it must lie between 2 and the number of times, {len(steps)}.",
    )
    require(columns > 0, f"`columns` is {columns}; a grid needs at least one.")
    behind = np.zeros((0, size)) if target is None else np.asarray(target, np.float64)
    chosen = np.round(np.linspace(0, len(steps) - 1, num)).astype(int)
    moving = [
        cloud[np.isfinite(cloud).all(1)] for cloud in clouds[:, chosen].swapaxes(0, 1)
    ]
    lows, highs = box([*moving, behind], size, limits)
    rows = math.ceil(num / columns)
    figure = new_figure(2.6 * columns, 2.8 * rows)
    for i, (step, cloud) in enumerate(zip(chosen, moving, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        style_axes(axes, f"t = {steps[step]:.2f}")
        if size == 1:
            _histogram(
                axes,
                behind[:, 0],
                lows[0],
                highs[0],
                colors["output_x_hat"],
                alpha=0.25,
            )
            _histogram(
                axes, cloud[:, 0], lows[0], highs[0], colors["prior_z"], alpha=0.5
            )
        else:
            for xs, color, alpha in (
                (behind, colors["output_x_hat"], 0.25),
                (cloud, colors["prior_z"], 0.7),
            ):
                axes.scatter(
                    *xs.T,
                    s=point_area(len(xs), 2.2, 0.08),
                    linewidths=0,
                    color=color,
                    alpha=alpha,
                )
            style_space(axes, lows, highs)
    return finish(figure, path)


def _finite(samples: Any, size: int) -> dict[str, np.ndarray]:
    """Samples by name, those that are finite, `(n, size)`."""
    named = dict(samples) if isinstance(samples, Mapping) else {"samples": samples}
    finite = {}
    for name, array in named.items():
        values = np.asarray(array, np.float64)
        values = values[:, None] if size == 1 else values
        require(
            values.shape[1:] == (size,),
            f"`samples` has {name!r} of shape {values.shape}; (n, {size}) can be drawn.",
        )
        finite[name] = values[np.isfinite(values).all(1)]
    require(
        any(map(len, finite.values())),
        "`samples` holds no finite value; there is nothing to draw.",
    )
    return finite


def _histogram(
    axes: Any, values: np.ndarray, low: float, high: float, color: str, **options: Any
) -> None:
    """A histogram scaled to a density, divided by all values: what lies outside is not made up for."""
    bins = options.pop("bins", 60)
    edges = np.linspace(low, high, bins + 1)
    weights = np.full(len(values), 1 / (max(len(values), 1) * (edges[1] - edges[0])))
    axes.hist(
        values, edges, weights=weights, color=color, histtype="stepfilled", **options
    )
    axes.set_xlim(low, high)


def _color_bar(figure: Figure, panels: list, drawn: Any, label: str) -> None:
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8, pad=0.01)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, labelcolor=INK, color=FAINT)
    bar.outline.set_visible(False)  # pyright: ignore


@eqx.filter_jit
def _of_points(fn: Any, points: Any) -> Array:
    return jax.vmap(fn)(jnp.asarray(points))


@eqx.filter_jit
def on_grid(velocity: Any, times: Array, grid: Any) -> Array:
    over_points = lambda t: jax.vmap(lambda x: velocity(t, x))(jnp.asarray(grid))
    return jax.vmap(over_points)(times)
