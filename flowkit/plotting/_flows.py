"""Velocity fields, and clouds on their way from noise to data."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from flowkit._checks import check_time
from flowkit._types import AnyArray
from flowkit.plotting._densities import color_bar, histogram
from flowkit.plotting._style import (
    box,
    check_path,
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
    style_space,
)


@own_look()
def vector_field(
    velocity: Callable[..., Any],
    limits: tuple[Number, Number] = (-1.5, 1.5),
    times: Sequence[Number] | Float[AnyArray, " t"] = (0.0, 0.33, 0.67, 1.0),
    *,
    points: Float[AnyArray, "n 2"] | None = None,
    resolution: int = 20,
    path: PathLike = None,
) -> Figure:
    """Arrows of a velocity field in the plane, colored by speed, a panel per time.

    All panels have the same scales of arrows and colors.

    **Arguments:**

    - `velocity`: `(t, x) -> dx` for one point `x (2,)`; it is vmapped and compiled
      here.
    - `limits`: `(low, high)` of both axes.
    - `times`: the time of each panel, in [0, 1].
    - `points (n, 2)`: data to draw behind the arrows.
    - `resolution`: the number of arrows along each axis.
    """
    _check_times(times)
    require(
        resolution > 1,
        f"`resolution` is {resolution}; a grid needs at least two arrows along each axis.",
    )
    # Before the velocity is evaluated, which may take long.
    check_path(path)

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
    # The longest arrow of all spans one and a half cells of the grid.
    scale = fastest / (1.5 * (side[1] - side[0]))
    style = {"angles": "xy", "scale_units": "xy", "scale": scale, "width": 0.005}

    figure = new_figure(3.1 * len(times) + 0.7, 3.3)
    panels = figure.subplots(1, len(times), squeeze=False)[0]
    for i, axes in enumerate(panels):
        style_axes(axes, f"t = {times[i]:.2f}")
        if points is not None:
            area = point_area([len(points)], 2.6, 0.06)
            _draw_points(axes, np.asarray(points), "data_x", area, alpha=0.35)
        drawn = axes.quiver(*grid.T, *arrows[i].T, speeds[i], cmap="viridis", **style)
        drawn.set_clim(0, fastest)
        style_space(axes, lows, highs)

    color_bar(figure, list(panels), drawn, "speed")
    return finish(figure, path)


def _check_times(times: Any) -> None:
    require(len(times) > 0, "`times` is empty; name at least one.")
    for t in times:
        check_time("times", t)


@own_look()
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
    """A cloud of points at evenly spaced steps on its way from noise to data.

    In one dimension the panels are histograms, in the plane they show the points. Noise
    at time 0, samples at time 1 and points between them have the colors of their roles.

    **Arguments:**

    - `times (t,)` and `points (n, t, d)`: paths as a vmapped solve saves them, with `d`
      at most 2.
    - `target (m, d)`: data to draw faintly behind the points.
    - `num`: the number of panels, including the first and the last time.
    - `columns`: panels in a row.
    - `limits`: `(low, high)` of every spatial axis.
    """
    ts = np.asarray(times, np.float64)
    clouds = np.asarray(points, np.float64)
    size = clouds.shape[-1]
    require(size in (1, 2), f"`points` has {size} dimensions; 1 or 2 can be drawn.")
    require(
        2 <= num <= len(ts),
        f"`num` is {num}; it must lie between 2 and the number of times, {len(ts)}.",
    )
    require(columns > 0, f"`columns` is {columns}; a grid needs at least one.")

    data = np.zeros((0, size)) if target is None else np.asarray(target, np.float64)
    data = data[np.isfinite(data).all(1)]
    chosen = np.round(np.linspace(0, len(ts) - 1, num)).astype(int)
    moving = [
        cloud[np.isfinite(cloud).all(1)] for cloud in clouds[:, chosen].swapaxes(0, 1)
    ]
    lows, highs = box([*moving, data], size, limits)
    area = point_area([len(cloud) for cloud in (data, *moving)], 2.2, 0.08)

    rows = math.ceil(num / columns)

    figure = new_figure(2.6 * columns, 2.8 * rows)
    for i, (t, cloud) in enumerate(zip(ts[chosen], moving, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        style_axes(axes, f"t = {t:.2f}")
        role = _role_at(t)
        if size == 1:
            histogram(axes, data, lows, highs, color=colors["data_x"], alpha=0.3)
            histogram(axes, cloud, lows, highs, color=colors[role], alpha=0.5)
        else:
            _draw_points(axes, data, "data_x", area, alpha=0.3)
            _draw_points(axes, cloud, role, area, alpha=0.7)
            style_space(axes, lows, highs)

    return finish(figure, path)


def _role_at(t: float) -> str:
    """The role of the points of a flow at a time."""
    if t == 0:
        return "prior_z"
    return "output_x_hat" if t == 1 else "coupling_infer"


def _draw_points(
    axes: Any, points: np.ndarray, role: str, area: float, alpha: float
) -> None:
    axes.scatter(*points.T, s=area, linewidths=0, color=colors[role], alpha=alpha)


@eqx.filter_jit
def on_grid(velocity: Any, times: Array, grid: Any) -> Array:
    """The velocity at all times and points, `(t, n, d)`."""
    points = jnp.asarray(grid)
    over_points = lambda t: jax.vmap(lambda x: velocity(t, x))(points)
    return jax.vmap(over_points)(times)
