"""Paths of points from noise to data."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from flowkit._types import AnyArray
from flowkit.plotting._style import (
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


class Paths(NamedTuple):
    """Paths of points from noise to data, and what belongs to them: one panel of `comparison`, or `trajectories`.

    - `times`: `(t,)`.
    - `points`: `(n, t, d)`, as a vmapped solve saves them; of a one-step map its start and end, with two times.
    - `target`: `(m, d)`, data to draw behind.
    - `one_step`: `(n, d)`, where a one-step map takes the same starts.
    - `coupling`: `(x0, x1)`, each `(m, d)`, pairs that the model was trained on.
    """

    times: Float[AnyArray, " t"]
    points: Float[AnyArray, "n t d"]
    target: Float[AnyArray, "m d"] | None = None
    one_step: Float[AnyArray, "n d"] | None = None
    coupling: tuple[Float[AnyArray, "k d"], Float[AnyArray, "k d"]] | None = None


def trajectories(
    times: Float[AnyArray, " t"],
    points: Float[AnyArray, "n t d"],
    *,
    target: Float[AnyArray, "m d"] | None = None,
    one_step: Float[AnyArray, "n d"] | None = None,
    coupling: tuple[Float[AnyArray, "k d"], Float[AnyArray, "k d"]] | None = None,
    limits: Limits = None,
    title: str = "",
    path: PathLike = None,
) -> Figure:
    """Paths of points from noise to data; in one dimension over time, else in the plane or in space.

    **Arguments:**

    - `times (t,)` and `points (n, t, d)`, `d` at most 3, as a vmapped solve saves them; steps that are not finite are
      left out. Paths of a one-step map have two times.
    - `target (m, d)`: data to draw behind.
    - `one_step (n, d)`: where a one-step map takes the same starts; its distance from the ends of the paths is written
      into the figure.
    - `coupling`: pairs `(x0, x1)` of training, each `(k, d)`.
    - `limits`: `(low, high)` of every spatial axis.
    """
    panel = as_arrays(Paths(times, points, target, one_step, coupling))
    size = panel.points.shape[-1]
    figure = new_figure(5.6, 3.7 if size == 1 else 4.7)
    axes: Any = figure.add_subplot(**({"projection": "3d"} if size == 3 else {}))
    style_axes(axes, title)
    draw_paths(
        axes, panel, *box(finite_points(panel), size, limits, padding=0.1), inches=4
    )
    style_legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, path)


def as_arrays(panel: Paths) -> Paths:
    """The same panel as NumPy arrays, empty ones for what is not there, with shapes that fit together."""
    times, points = (np.asarray(a, np.float64) for a in panel[:2])
    number, _, size = points.shape
    require(
        size in (1, 2, 3), f"`points` has {size} dimensions; 1, 2 or 3 can be drawn."
    )
    require(
        number > 0 and len(times) > 1,
        "`points` needs at least one trajectory of two times.",
    )
    require(
        len(times) == points.shape[1],
        f"`points` has {points.shape[1]} steps for {len(times)} `times`.",
    )
    empty = np.zeros((0, size))
    others = {
        "target": (panel.target,),
        "one_step": (panel.one_step,),
        "coupling": panel.coupling or (None, None),
    }
    arrays = {}
    for name, values in others.items():
        arrays[name] = [
            empty if value is None else np.asarray(value, np.float64)
            for value in values
        ]
        for array in arrays[name]:
            require(
                array.shape[1:] == (size,),
                f"`{name}` has shape {array.shape}, but points have dimension {size}.",
            )
    require(
        len(arrays["one_step"][0]) in (0, number),
        f"`one_step` must have one end for each of the {number} paths.",
    )
    x0, x1 = arrays["coupling"]
    require(len(x0) == len(x1), f"`coupling` has {len(x0)} starts and {len(x1)} ends.")
    return Paths(times, points, arrays["target"][0], arrays["one_step"][0], (x0, x1))


def finite_points(panel: Any) -> list[np.ndarray]:
    """All places of a panel of arrays, for its limits."""
    flat = panel.points.reshape(-1, panel.points.shape[-1])
    clouds = [flat, panel.target, panel.one_step, *panel.coupling]
    return [cloud[np.isfinite(cloud).all(1)] for cloud in clouds]


def draw_paths(
    axes: Any, panel: Any, lows: np.ndarray, highs: np.ndarray, inches: float
) -> None:
    """Draws on axes so large: from below to above pairs, data, paths, one-step ends, starts, ends."""
    if panel.points.shape[-1] == 1:
        _draw_over_time(axes, panel, lows, highs, inches)
    else:
        _draw_in_space(axes, panel, lows, highs, inches)
    if len(panel.one_step):
        gap = np.linalg.norm(panel.points[:, -1] - panel.one_step, axis=-1)
        text = f"|path - one step|\n{gap.mean():.3f} ± {gap.std():.3f}"
        write = axes.text2D if panel.points.shape[-1] == 3 else axes.text
        box_style = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
        style = {
            "va": "top",
            "fontsize": 7,
            "color": INK,
            "zorder": 4,
            "bbox": box_style,
        }
        write(0.03, 0.97, text, transform=axes.transAxes, **style)


def _draw_over_time(
    axes: Any, panel: Any, lows: np.ndarray, highs: np.ndarray, inches: float
) -> None:
    times, paths = panel.times, panel.points[..., 0]
    axes.set_xlabel("time  (0 noise, 1 data)", fontsize=9, color=INK)
    first, last = min(times.min(), 0.0), max(times.max(), 1.0)
    ends = lambda starts, ends: [
        ((times[0], a), (times[-1], b)) for (a,), (b,) in zip(starts, ends, strict=True)
    ]
    _add_lines(axes, ends(*panel.coupling), "coupling_train", "training pairs")
    lines = [np.stack([times, x], 1)[np.isfinite(x)] for x in paths]
    _add_lines(axes, lines, "coupling_infer", None, **line_style(len(paths)))
    if len(panel.target):
        x = np.full(len(panel.target), last + 0.03)
        axes.scatter(
            x,
            panel.target,
            s=10,
            marker="x",
            color="black",
            linewidths=0.5,
            alpha=0.5,
            label="data",
        )
    area = point_area(len(paths), inches * 0.4)
    if len(panel.one_step):
        _add_lines(axes, ends(panel.points[:, 0], panel.one_step), "data_x", "one step")
        x = np.full(len(paths), times[-1])
        axes.scatter(
            x,
            panel.one_step[:, 0],
            s=area,
            marker="s",
            color=colors["data_x"],
            zorder=3,
        )
    for index, color, label in (
        (0, colors["prior_z"], "start"),
        (-1, colors["output_x_hat"], "end"),
    ):
        axes.scatter(
            np.full(len(paths), times[index]),
            paths[:, index],
            s=area,
            color=color,
            label=label,
            zorder=3,
        )
    axes.set_ylim(lows[0], highs[0])
    axes.set_xlim(first - 0.03, last + 0.06)


def _draw_in_space(
    axes: Any, panel: Any, lows: np.ndarray, highs: np.ndarray, inches: float
) -> None:
    paths = panel.points
    _add_lines(
        axes, list(np.stack(panel.coupling, 1)), "coupling_train", "training pairs"
    )
    if len(panel.target):
        area = point_area(len(panel.target), inches, 0.05)
        axes.scatter(
            *panel.target.T,
            s=area,
            color=colors["coupling_train"],
            alpha=0.4,
            linewidths=0,
            label="data",
        )
    finite = [one[np.isfinite(one).all(1)] for one in paths]
    _add_lines(axes, finite, "coupling_infer", None, **line_style(len(paths)))
    area = point_area(len(paths), inches, 0.02)
    if len(panel.one_step):
        square = {
            "marker": "s",
            "color": colors["data_x"],
            "alpha": 0.8,
            "linewidths": 0,
        }
        axes.scatter(*panel.one_step.T, s=area, label="one step", zorder=3, **square)
    for index, color, label in (
        (0, colors["prior_z"], "start"),
        (-1, colors["output_x_hat"], "end"),
    ):
        axes.scatter(
            *paths[:, index].T,
            s=area,
            color=color,
            alpha=0.8,
            linewidths=0,
            label=label,
            zorder=3,
        )
    style_space(axes, lows, highs)


def _add_lines(
    axes: Any, lines: list, role: str, label: str | None, *, linewidth=0.5, alpha=0.3
) -> None:
    if lines:
        collection = Line3DCollection if axes.name == "3d" else LineCollection
        axes.add_collection(
            collection(
                lines,
                colors=colors[role],
                linewidths=linewidth,
                alpha=alpha,
                label=label,
            )
        )


def line_style(number: int) -> dict[str, Any]:
    """Thin and faint where there are many."""
    return {"linewidth": 0.7, "alpha": float(np.clip(4 / np.sqrt(number), 0.1, 0.6))}
