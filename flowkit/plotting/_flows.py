"""Trajectories, velocity fields and densities."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.collections import LineCollection
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


def trajectories(
    times: Float[AnyArray, " t"],
    points: Float[AnyArray, "n t d"],
    *,
    target: Float[AnyArray, "m d"] | None = None,
    limits: Limits = None,
    title: str = "",
    path: PathLike = None,
) -> Figure:
    """Paths of points from noise to data; in one dimension over time, else in the plane or in space.

    **Arguments:**

    - `times (t,)` and `points (n, t, d)`, `d` at most 3, as a vmapped solve saves them; steps that are not finite are
      left out.
    - `target (m, d)`: data to draw behind.
    - `limits`: `(low, high)` of every spatial axis.
    """
    paths = np.asarray(points, np.float64)
    size = paths.shape[-1]
    require(size in (1, 2, 3), f"`points` has {size} dimensions; 1, 2 or 3 can be drawn.")
    require(len(paths) > 0 and len(times) > 1, "`points` needs at least one trajectory of two times.")
    background = np.zeros((0, size)) if target is None else np.asarray(target, np.float64)
    if size == 1:
        figure = _draw_over_time(np.asarray(times, np.float64), paths[..., 0], background[:, 0], limits, title)
    else:
        figure = _draw_in_space(paths, background, limits, title)
    return finish(figure, path)


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
    require(resolution > 1, f"`resolution` is {resolution}; a grid needs at least two arrows along each axis.")
    lows, highs = box([], 2, limits)
    side = np.linspace(lows[0], highs[0], resolution + 2)[1:-1]
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    arrows = np.asarray(on_grid(velocity, jnp.asarray(times, jnp.float32), grid))
    require(arrows.shape == (len(times), len(grid), 2), f"`velocity` gives shape {arrows.shape[2:]}, not (2,).")
    speeds = np.linalg.norm(arrows, axis=-1)
    fastest = float(np.nanmax(speeds, initial=1e-12, where=np.isfinite(speeds)))
    figure = new_figure(3.1 * len(times) + 0.7, 3.3)
    panels = [figure.add_subplot(1, len(times), i + 1) for i in range(len(times))]
    for axes, t, arrow, speed in zip(panels, times, arrows, speeds, strict=True):
        style_axes(axes, f"t = {t:.2f}")
        if points is not None:
            area = point_area(len(points), 2.6, 0.06)
            axes.scatter(*np.asarray(points).T, s=area, linewidths=0, color=colors["data_x"], alpha=0.35)
        # The longest arrow of all spans one and a half cells of the grid.
        scale = fastest / (1.5 * (side[1] - side[0]))
        drawn = axes.quiver(
            *grid.T, *arrow.T, speed, angles="xy", scale_units="xy", scale=scale, cmap="viridis", width=0.005
        )
        drawn.set_clim(0, fastest)
        style_space(axes, lows, highs)
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8, pad=0.01)
    bar.set_label("speed", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, labelcolor=INK, color=FAINT)
    bar.outline.set_visible(False)  # pyright: ignore
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
    named = dict(samples) if isinstance(samples, Mapping) else {"samples": samples}
    finite = {k: (v := np.asarray(a, np.float64))[np.isfinite(v)] for k, a in named.items()}
    require(any(map(len, finite.values())), "`samples` holds no finite value; there is nothing to draw.")
    lows, highs = box([v[:, None] for v in finite.values()], 1, limits)
    edges = np.linspace(lows[0], highs[0], bins + 1)
    figure = new_figure(5.6, 3.5)
    axes = figure.add_subplot()
    style_axes(axes, "", "x", "density")
    for i, (name, values) in enumerate(finite.items()):
        color = (colors["prior_z"], colors["data_x"], colors["latent_z_hat"], colors["coupling_infer"])[i % 4]
        # Divided by all samples, so that what lies outside the limits is not made up for.
        weights = np.full(len(values), 1 / (max(len(values), 1) * (edges[1] - edges[0])))
        axes.hist(values, edges, weights=weights, color=color, alpha=0.4, label=name, histtype="stepfilled")
    if density is not None:
        x, p = (np.asarray(a, np.float64) for a in density)
        require(x.ndim == 1 and x.shape == p.shape, f"`density` has shapes {x.shape} and {p.shape}; both are (k,).")
        axes.plot(x, p, color=colors["output_x_hat"], linewidth=1.6, label="exact")
    axes.set_xlim(lows[0], highs[0])
    axes.set_ylim(bottom=0)
    style_legend(axes)
    return finish(figure, path)


@eqx.filter_jit
def on_grid(velocity: Any, times: Array, grid: Any) -> Array:
    over_points = lambda t: jax.vmap(lambda x: velocity(t, x))(jnp.asarray(grid))
    return jax.vmap(over_points)(times)


def _draw_over_time(times, paths, target, limits, title) -> Figure:
    figure = new_figure(5.6, 3.7)
    axes = figure.add_subplot()
    style_axes(axes, title, "time  (0 noise, 1 data)", "x")
    lines = [np.stack([times, x], 1)[np.isfinite(x)] for x in paths]
    axes.add_collection(LineCollection(lines, colors=colors["coupling_infer"], **_line(len(paths))))
    if len(target):
        x = np.full(len(target), times.max() + 0.03 * np.ptp(times))
        axes.scatter(x, target, s=10, marker="x", color="black", linewidths=0.5, alpha=0.5, label="data")
    area = point_area(len(paths), 1.5)
    for index, color, label in ((0, colors["prior_z"], "start"), (-1, colors["output_x_hat"], "end")):
        axes.scatter(np.full(len(paths), times[index]), paths[:, index], s=area, color=color, label=label, zorder=3)
    lows, highs = box([paths[np.isfinite(paths)][:, None], target[:, None]], 1, limits, padding=0.1)
    axes.set_ylim(lows[0], highs[0])
    axes.set_xlim(times.min() - 0.03 * np.ptp(times), times.max() + 0.06 * np.ptp(times))
    style_legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _draw_in_space(paths, target, limits, title) -> Figure:
    size = paths.shape[-1]
    figure = new_figure(5.6, 4.7)
    axes: Any = figure.add_subplot(**({"projection": "3d"} if size == 3 else {}))
    style_axes(axes, title)
    if len(target):
        area = point_area(len(target), 4, 0.05)
        axes.scatter(*target.T, s=area, color=colors["coupling_train"], alpha=0.4, linewidths=0, label="data")
    style = {"color": colors["coupling_infer"], **_line(len(paths))}
    for one in paths:
        axes.plot(*one[np.isfinite(one).all(1)].T, **style)
    area = point_area(len(paths), 4, 0.02)
    for index, color, label in ((0, colors["prior_z"], "start"), (-1, colors["output_x_hat"], "end")):
        axes.scatter(*paths[:, index].T, s=area, color=color, alpha=0.8, linewidths=0, label=label, zorder=3)
    flat = paths.reshape(-1, size)
    lows, highs = box([flat[np.isfinite(flat).all(1)], target], size, limits, padding=0.1)
    style_space(axes, lows, highs)
    style_legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _line(number: int) -> dict[str, Any]:
    """Thin and faint where there are many."""
    return {"linewidth": 0.7, "alpha": float(np.clip(4 / np.sqrt(number), 0.1, 0.6))}
