"""Figures of a training run: its curves, and the velocity that a model explains."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from flowkit._types import AnyArray
from flowkit.plotting._style import (
    finish,
    INK,
    LEVEL,
    new_figure,
    Number,
    own_look,
    PathLike,
    require,
    series_color,
    style_axes,
    style_legend,
    tint,
)


_TOTALS = ("loss", "total", "total_loss")
_METRIC_WORDS = ("chamfer", "emd", "w2", "nna", "mmd", "coverage", "distance")
# What `fit` and its callbacks record about a run that is no part of its loss.
_BOOKKEEPING = ("grad_norm", "skipped", "seconds")

_DASHES = (0, (4, 3))
# Shorter curves are drawn with a marker for each value and are not smoothed.
_SHORT = 40

History: TypeAlias = Mapping[str, tuple[Any, Any]]


class _Run(NamedTuple):
    """The curves of all stages on one axis of steps.

    - `curves`: name -> `(steps, values)` of each stage that has this curve.
    - `starts`: stage -> the step at which it begins.
    - `end`: the last step.
    """

    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    starts: dict[str, float]
    end: float


@own_look()
def loss_trajectory(
    history: History | Mapping[str, History],
    *,
    panels: Mapping[str, Sequence[str]] | None = None,
    smoothing: Number = 0.02,
    path: PathLike = None,
) -> Figure:
    """The curves of a training run, of one stage or of several.

    The panels are the total loss, its components on a logarithmic axis, metrics, the
    components on a linear axis, and the explained velocity. A panel that would be empty
    is left out.

    A long noisy curve is drawn faint, with its running mean on top, and a short one
    with markers. Several stages follow one another on one axis of steps; a dashed line
    with the name of the stage marks where it begins.

    ```python
    results = fk.training.fit_stages(stages, model, key=key)
    histories = {name: result.history for name, result in results.items()}
    fk.plotting.loss_trajectory(histories)
    ```

    **Arguments:**

    - `history`: name -> `(steps, values)`, as `fk.training.fit` returns it, or stage ->
      such a history. `loss` or `total` is the total. Names that contain `explained` or
      `r2`, or the name of a distance such as `chamfer` or `emd`, go to their own
      panels. `grad_norm`, `skipped`, `seconds`, and values that are not scalars are
      left out. All other curves are components.
    - `panels`: title -> names, in place of these rules. A title that contains "log"
      asks for a logarithmic axis.
    - `smoothing`: the window of the running mean as a fraction of the curve; 0 turns
      smoothing off.
    """
    require(len(history) > 0, "`history` is empty; pass name -> (steps, values).")
    require(
        0 <= smoothing < 1,
        f"`smoothing` is {smoothing}; it is a fraction of the curve, at least 0 and below 1.",
    )

    run = _as_run(history)
    groups = _default_panels(run) if panels is None else panels
    for name in (n for names in groups.values() for n in names):
        require(
            name in run.curves,
            f"`panels` names {name!r}, which is not in `history`: {sorted(run.curves)}.",
        )
        _check_scalar(name, run)

    shown = {title: names for title, names in groups.items() if names}
    require(
        len(shown) > 0,
        "`history` holds no curve of a loss or a metric; name some in `panels`.",
    )

    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)

    figure = new_figure(5.2 * columns, 3.3 * rows)
    for i, (title, names) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        style_axes(axes, title, "step")
        _draw_curves(axes, title, list(names), run, smoothing)
        _mark_stages(axes, run)

    return finish(figure, path)


@own_look()
def explained_velocity(
    times: Float[AnyArray, " bins"],
    r2: Float[AnyArray, " bins"] | Mapping[str, Float[AnyArray, " _"]],
    *,
    title: str = "explained velocity",
    path: PathLike = None,
) -> Figure:
    """The fraction of the velocity's variance that a model explains, over the time of
    the flow.

    One is perfect and zero is no better than the mean. Unlike the loss, this number has
    a meaning by itself: low values show the times at which the model is still poor.

    **Arguments:**

    - `times (bins,)`: the centers of the bins.
    - `r2 (bins,)`: the values there, or name -> `(bins,)` for several curves, such as
      those of several steps of a run, which are drawn from light to dark.
    - `title`: the title of the figure.
    """
    curves = dict(r2) if isinstance(r2, Mapping) else {"": r2}
    require(len(curves) > 0, "`r2` is empty; pass an array, or name -> array.")

    for name, values in curves.items():
        require(
            len(values) == len(times),
            f"`r2` {name} has {len(values)} bins and `times` has {len(times)}.",
        )

    figure = new_figure(5.6, 3.5)
    axes = figure.add_subplot()
    style_axes(axes, title, "time  (0 noise, 1 data)", "$R^2$")
    for level in (0, 1):
        axes.axhline(level, color=LEVEL, linewidth=0.8, linestyle=_DASHES, zorder=1)

    color = series_color(0)
    xs = np.asarray(times, np.float64)
    arrays = {name: np.asarray(values, np.float64) for name, values in curves.items()}
    # The last curve, or the only one, has the full color.
    strengths = np.linspace(1, 0.3, len(arrays))[::-1]
    style = {"linewidth": 1.8, "marker": "o", "markersize": 4}

    for strength, (name, values) in zip(strengths, arrays.items(), strict=True):
        axes.plot(xs, values, label=name or None, color=tint(color, strength), **style)
    if len(arrays) == 1:
        (values,) = arrays.values()
        axes.fill_between(xs, 0, values, color=color, alpha=0.12, linewidth=0)

    every = np.concatenate(list(arrays.values()))
    low = float(np.min(every, initial=0.0, where=np.isfinite(every)))
    # A poor model may have any negative value, which would flatten all other curves.
    axes.set_ylim(max(min(low - 0.06, -0.04), -1.04), 1.06)
    axes.set_xlim(0, 1)
    style_legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, path)


def _as_run(history: History | Mapping[str, History]) -> _Run:
    """The curves of all stages, with the steps of each stage counted from the end of
    the one before.
    """
    nested = [isinstance(value, Mapping) for value in history.values()]
    require(
        all(nested) or not any(nested),
        "`history` mixes curves and stages; "
        "pass name -> (steps, values), or stage -> such a history.",
    )

    stages: Any = history if all(nested) else {"": history}
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    starts = {}
    end = 0.0
    for stage, series in stages.items():
        start = end
        starts[stage] = start
        place = f"history[{stage!r}]" if stage else "history"
        for name, pair in series.items():
            steps, values = _curve(f"{place}[{name!r}]", *pair)
            curves.setdefault(name, []).append((start + steps, values))
            end = max(end, start + float(steps.max()))

    return _Run(curves, starts, end)


def _curve(label: str, steps: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    steps = np.asarray(steps, np.float64)
    values = np.asarray(values, np.float64)
    require(
        steps.ndim == 1 and values.shape[:1] == steps.shape and len(steps) > 0,
        f"`{label}` has steps of shape {steps.shape} and values of shape {values.shape}; "
        "both must be (k,) with k > 0.",
    )
    return steps, values


def _is_scalar(name: str, run: _Run) -> bool:
    return all(values.ndim == 1 for _, values in run.curves[name])


def _check_scalar(name: str, run: _Run) -> None:
    shapes = [values.shape for _, values in run.curves[name]]
    require(
        _is_scalar(name, run),
        f"`panels` names {name!r}, whose values have shape {shapes[0]}; "
        "only scalars (k,) can be drawn.",
    )


def _default_panels(run: _Run) -> dict[str, list[str]]:
    """Titles and names, by the rules in the docstring of `loss_trajectory`."""
    groups: dict[str, list[str]] = {
        "total": [],
        "explained": [],
        "metric": [],
        "other": [],
    }
    for name in run.curves:
        if name not in _BOOKKEEPING and _is_scalar(name, run):
            groups[_kind(name)].append(name)

    return {
        "loss": groups["total"],
        "components (log scale)": groups["other"],
        "metrics": groups["metric"],
        "components (linear)": groups["other"],
        "explained velocity": groups["explained"],
    }


def _kind(name: str) -> str:
    if name in _TOTALS:
        return "total"
    if "explained" in name or "r2" in name:
        return "explained"
    if any(word in name.lower() for word in _METRIC_WORDS):
        return "metric"
    return "other"


def _draw_curves(
    axes: Any, title: str, names: list[str], run: _Run, smoothing: Number
) -> None:
    """The named curves, with a legend unless the title already names the only one."""
    every = []
    for i, name in enumerate(names):
        color = INK if title in _TOTALS and len(names) == 1 else series_color(i)
        label: str | None = name
        for steps, values in run.curves[name]:
            _draw_curve(axes, steps, values, smoothing, color=color, label=label)
            every.append(values)
            # The pieces of a curve have one entry in the legend.
            label = None

    _scale(axes, title, np.concatenate(every))
    if [name.replace("_", " ") for name in names] != [title]:
        style_legend(axes)


def _draw_curve(
    axes: Any, steps: np.ndarray, values: np.ndarray, smoothing: Number, **style: Any
) -> None:
    window = round(smoothing * len(values))
    if len(values) <= _SHORT:
        axes.plot(steps, values, linewidth=1.5, marker="o", markersize=3, **style)
    elif window < 2:
        axes.plot(steps, values, linewidth=1.0, **style)
    else:
        axes.plot(steps, values, linewidth=0.6, alpha=0.25, color=style["color"])
        axes.plot(steps, _running_mean(values, window), linewidth=1.6, **style)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the finite values in a centered window, which is cut off at the
    ends.
    """
    finite = np.isfinite(values)
    total = _window_sums(np.where(finite, values, 0.0), window // 2)
    number = _window_sums(finite.astype(float), window // 2)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _window_sums(values: np.ndarray, half: int) -> np.ndarray:
    """The sums of each value and up to `half` of its neighbors on both sides.

    The values are cut into blocks as long as a window, so that each window is the end of
    a block and the beginning of the next. Differences of cumulative sums would cost the
    same, but one spike would leave no digits of what follows.
    """
    width = 2 * half + 1
    rest = -(len(values) + 2 * half) % width
    blocks = np.pad(values, (half, half + rest)).reshape(-1, width)
    beginnings = np.cumsum(blocks, axis=1).ravel()
    ends = np.cumsum(blocks[:, ::-1], axis=1)[:, ::-1].ravel()

    start = np.arange(len(values))
    # A window that is one whole block has no part in the next.
    return ends[start] + np.where(start % width, beginnings[start + width - 1], 0)


def _mark_stages(axes: Any, run: _Run) -> None:
    """A dashed line and a name where each of several stages begins."""
    if len(run.starts) < 2:
        return
    # The names stand between the axes and the title.
    axes.set_title(axes.get_title(), fontsize=10, color=INK, pad=14)
    axes.set_xlim(-0.02 * run.end, 1.02 * run.end)

    for name, start in run.starts.items():
        if start > 0:
            axes.axvline(start, color=LEVEL, linewidth=0.8, linestyle=_DASHES, zorder=1)
        # The x coordinate is a step and the y coordinate a fraction of the axes.
        place = axes.get_xaxis_transform()
        style = {"fontsize": 7, "color": INK, "ha": "left", "va": "bottom"}
        axes.text(start, 1.0, f" {name}", transform=place, **style)


def _scale(axes: Any, title: str, values: np.ndarray) -> None:
    """A logarithmic axis if the title asks for it or a total spans more than a decade;
    R2 ends at one.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return
    low = float(finite.min())
    high = float(finite.max())
    asked = "log" in title or (title == "loss" and high > 10 * low)
    if title == "explained velocity":
        axes.axhline(1, color=LEVEL, linewidth=0.8, linestyle=_DASHES)
        axes.set_ylim(max(low - 0.05, -1.0), 1.05)
    elif low > 0 and asked:
        axes.set_yscale("log")
        # A label for every decade alone would leave a narrow range without labels.
        subs = (1, 2, 5) if high < 100 * low else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
        axes.yaxis.set_minor_locator(NullLocator())


def _plain_number(value: float, _position: int | None = None) -> str:
    return f"{value:g}"
