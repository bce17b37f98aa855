"""Paths of points from noise to data, and how curved they are."""

from collections.abc import Iterable, Mapping
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
    own_look,
    PAPER,
    PathLike,
    point_area,
    require,
    series_color,
    style_axes,
    style_legend,
    style_space,
)


class Paths(NamedTuple):
    """Paths of points from noise to data, a panel of `comparison`.

    - `times`: shape `(t,)`.
    - `points`: shape `(n, t, d)`, as a vmapped solve saves them. Paths of a one-step
      map have two times.
    - `target`: data to draw behind the paths, shape `(m, d)`.
    - `one_step`: the outputs of a one-step map for the same starts, shape `(n, d)`.
    - `coupling`: pairs `(x0, x1)` that the model was trained on, each of shape `(k,
      d)`.
    """

    times: Float[AnyArray, " t"]
    points: Float[AnyArray, "n t d"]
    target: Float[AnyArray, "m d"] | None = None
    one_step: Float[AnyArray, "n d"] | None = None
    coupling: tuple[Float[AnyArray, "k d"], Float[AnyArray, "k d"]] | None = None


class Dots(NamedTuple):
    """Areas of dots, of data and of what is drawn on top, in all panels of a figure."""

    data: float
    front: float


@own_look()
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
    """Paths of points from noise to data.

    In one dimension they are drawn over time, otherwise in the plane or in space.

    **Arguments:**

    - `times (t,)` and `points (n, t, d)`: paths as a vmapped solve saves them, with `d`
      at most 3. Steps that are not finite are left out. Paths of a one-step map have
      two times.
    - `target (m, d)`: data to draw behind the paths.
    - `one_step (n, d)`: the outputs of a one-step map for the same starts. Their
      distance from the finite ends of the paths is written into the figure.
    - `coupling`: training pairs `(x0, x1)`, each `(k, d)`.
    - `limits`: `(low, high)` of every spatial axis.
    - `title`: the title of the figure.
    """
    panel = as_arrays(Paths(times, points, target, one_step, coupling))
    size = panel.points.shape[-1]
    lows, highs = box(finite_points(panel), size, limits, padding=0.1)

    figure = new_figure(5.6, 3.7 if size == 1 else 4.7)
    projection = "3d" if size == 3 else "rectilinear"
    axes = figure.add_subplot(projection=projection)
    style_axes(axes, title)
    draw_paths(axes, panel, lows, highs, dots_for([panel], inches=4))
    style_legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, path)


@own_look()
def curvature(
    times: Float[AnyArray, " _"],
    paths: Float[AnyArray, "_ _ _"] | Mapping[str, Float[AnyArray, "_ _ _"]],
    *,
    path: PathLike = None,
) -> Figure:
    r"""How curved paths are: the mean over the paths of $\|\mathrm d^2 x / \mathrm
    dt^2\|$, over time.

    It is zero for straight paths at constant speed, which a single Euler step follows
    exactly.

    **Arguments:**

    - `times (t,)`: increasing, at least three.
    - `paths (n, t, d)`, or name -> `(n, t, d)` for several models. Paths that are not
      finite are left out.

    **Raises:** `ValueError` for times and paths that do not fit together.
    """
    named = dict(paths) if isinstance(paths, Mapping) else {"": paths}
    ts = np.asarray(times, np.float64)
    require(len(named) > 0, "`paths` is empty; pass an array, or name -> array.")
    require(
        len(ts) > 2 and bool(np.all(np.diff(ts) > 0)),
        f"`times` must hold three or more increasing times, got {len(ts)}.",
    )

    for name, points in named.items():
        require(
            points.shape[1] == len(ts) and len(points) > 0,
            f"`paths` {name} has shape {points.shape}; "
            f"with these times it must be (n, {len(ts)}, d), and not empty.",
        )
        require(
            bool(np.isfinite(points).all((1, 2)).any()),
            f"`paths` {name} holds no finite path; there is nothing to draw.",
        )

    figure = new_figure(5.6, 3.5)
    axes = figure.add_subplot()
    label = r"mean of $\|\mathrm{d}^2x/\mathrm{d}t^2\|$"
    style_axes(axes, "curvature of the paths", "time  (0 noise, 1 data)", label)
    for i, (name, points) in enumerate(named.items()):
        lengths = _second_derivative(ts, np.asarray(points, np.float64))
        color = series_color(i)
        axes.plot(ts[1:-1], lengths, label=name or None, color=color, linewidth=1.6)

    axes.set_ylim(bottom=0)
    style_legend(axes)
    return finish(figure, path)


def _second_derivative(times: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Its mean length at the inner times, by differences of the slopes on both
    sides.
    """
    finite = points[np.isfinite(points).all((1, 2))]
    steps = np.diff(times)[:, None]
    slopes = np.diff(finite, axis=1) / steps
    # Slopes belong to the middles of the steps, which are this far apart.
    between = (steps[:-1] + steps[1:]) / 2
    second = np.diff(slopes, axis=1) / between
    return np.linalg.norm(second, axis=-1).mean(0)


def as_arrays(panel: Paths) -> Paths:
    """The same panel as NumPy arrays that fit together, empty ones for what is
    missing.
    """
    times = np.asarray(panel.times, np.float64)
    points = np.asarray(panel.points, np.float64)
    require(
        points.ndim == 3,
        f"`points` has shape {points.shape}; paths are (n, t, d).",
    )
    number, num_times, size = points.shape
    require(
        size in (1, 2, 3), f"`points` has {size} dimensions; 1, 2 or 3 can be drawn."
    )
    require(
        number > 0 and len(times) > 1,
        "`points` needs at least one trajectory of two times.",
    )
    require(
        len(times) == num_times,
        f"`points` has {num_times} steps for {len(times)} `times`.",
    )

    target = _rows("target", panel.target, size)
    one_step = _rows("one_step", panel.one_step, size)
    starts, ends = panel.coupling or (None, None)
    x0 = _rows("coupling", starts, size)
    x1 = _rows("coupling", ends, size)
    require(
        len(one_step) in (0, number),
        f"`one_step` must have one end for each of the {number} paths.",
    )
    require(len(x0) == len(x1), f"`coupling` has {len(x0)} starts and {len(x1)} ends.")

    return Paths(times, points, target, one_step, (x0, x1))


def _rows(name: str, value: Any, size: int) -> np.ndarray:
    if value is None:
        return np.zeros((0, size))
    array = np.asarray(value, np.float64)
    require(
        array.shape[1:] == (size,),
        f"`{name}` has shape {array.shape}, but points have dimension {size}.",
    )
    return array


def finite_points(panel: Any) -> list[np.ndarray]:
    """All places of a panel of arrays, for its limits."""
    flat = panel.points.reshape(-1, panel.points.shape[-1])
    clouds = [flat, panel.target, panel.one_step, *panel.coupling]
    return [cloud[np.isfinite(cloud).all(1)] for cloud in clouds]


def dots_for(panels: Iterable[Any], inches: float, more: Iterable[int] = ()) -> Dots:
    """The areas for panels of arrays, and for more clouds with these numbers of
    points.
    """
    panels = list(panels)
    data = point_area([len(panel.target) for panel in panels], inches, 0.05)
    counts = [len(panel.points) for panel in panels]
    return Dots(data, point_area([*counts, *more], inches, 0.02))


def draw_paths(
    axes: Any, panel: Any, lows: np.ndarray, highs: np.ndarray, dots: Dots
) -> None:
    """Draws, from the back to the front: pairs, data, paths, one-step ends, starts,
    ends.
    """
    if panel.points.shape[-1] == 1:
        _draw_over_time(axes, panel, dots)
        axes.set_ylim(lows[0], highs[0])
    else:
        _draw_in_space(axes, panel, dots)
        style_space(axes, lows, highs)
    if len(panel.one_step):
        _write_gap(axes, panel)


def _draw_over_time(axes: Any, panel: Any, dots: Dots) -> None:
    times = panel.times
    paths = panel.points[..., 0]
    _add_lines(
        axes, _straight(times, *panel.coupling), "coupling_train", "training pairs"
    )
    lines = [np.stack([times, x], 1)[np.isfinite(x)] for x in paths]
    _add_lines(axes, lines, "coupling_infer", "paths", **line_style(len(paths)))

    # Data are drawn at time 1, even if the paths end earlier.
    last = max(times.max(), 1.0)
    if len(panel.target):
        at = np.full(len(panel.target), last + 0.03)
        cross = {"marker": "x", "s": 10, "linewidths": 0.6, "alpha": 0.6}
        axes.scatter(at, panel.target, color=colors["data_x"], label="data", **cross)

    starts = np.full(len(paths), times[0])
    ends = np.full(len(paths), times[-1])
    if len(panel.one_step):
        jumps = _straight(times, panel.points[:, 0], panel.one_step)
        _add_lines(axes, jumps, "one_step", "one step")
        square = _dot(dots, "one_step") | {"marker": "s"}
        axes.scatter(ends, panel.one_step[:, 0], **square)

    axes.scatter(starts, paths[:, 0], label="start", **_dot(dots, "prior_z"))
    axes.scatter(ends, paths[:, -1], label="end", **_dot(dots, "output_x_hat"))
    axes.set_xlabel("time  (0 noise, 1 data)", fontsize=9, color=INK)
    axes.set_xlim(min(times.min(), 0.0) - 0.03, last + 0.06)


def _draw_in_space(axes: Any, panel: Any, dots: Dots) -> None:
    pairs = list(np.stack(panel.coupling, 1))
    _add_lines(axes, pairs, "coupling_train", "training pairs")
    if len(panel.target):
        style = {"s": dots.data, "alpha": 0.4, "linewidths": 0, "label": "data"}
        axes.scatter(*panel.target.T, color=colors["data_x"], **style)

    lines = [one[np.isfinite(one).all(1)] for one in panel.points]
    _add_lines(axes, lines, "coupling_infer", "paths", **line_style(len(lines)))
    if len(panel.one_step):
        square = _dot(dots, "one_step") | {"marker": "s", "label": "one step"}
        axes.scatter(*panel.one_step.T, **square)
    starts = panel.points[:, 0]
    ends = panel.points[:, -1]
    axes.scatter(*starts.T, label="start", **_dot(dots, "prior_z"))
    axes.scatter(*ends.T, label="end", **_dot(dots, "output_x_hat"))


def _dot(dots: Dots, role: str) -> dict[str, Any]:
    style = {"s": dots.front, "alpha": 0.8, "linewidths": 0, "zorder": 3}
    return style | {"color": colors[role]}


def _straight(times: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> list[Any]:
    """Lines over time from starts to ends, each of shape `(k, 1)`."""
    first = np.concatenate([np.full_like(starts, times[0]), starts], 1)
    last = np.concatenate([np.full_like(ends, times[-1]), ends], 1)
    return list(np.stack([first, last], 1))


def _add_lines(
    axes: Any, lines: list, role: str, label: str, *, linewidth=0.5, alpha=0.3
) -> None:
    if not lines:
        return
    style = {"linewidths": linewidth, "alpha": alpha, "label": label}
    collection = Line3DCollection if axes.name == "3d" else LineCollection
    axes.add_collection(collection(lines, colors=colors[role], **style))


def _write_gap(axes: Any, panel: Any) -> None:
    """The distance between paths and one step at their ends: mean and deviation."""
    gap = np.linalg.norm(panel.points[:, -1] - panel.one_step, axis=-1)
    gap = gap[np.isfinite(gap)]
    if not len(gap):
        return

    text = f"|path - one step|\n{gap.mean():.3f} ± {gap.std():.3f}"
    paper = {"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "pad": 1.5}
    style = {"va": "top", "fontsize": 7, "color": INK, "zorder": 4, "bbox": paper}
    write = axes.text2D if axes.name == "3d" else axes.text
    write(0.03, 0.97, text, transform=axes.transAxes, **style)


def line_style(number: int) -> dict[str, Any]:
    """Thin lines, which are fainter if there are many."""
    return {"linewidth": 0.7, "alpha": float(np.clip(4 / np.sqrt(number), 0.1, 0.6))}
