"""Figures of a training run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from flowkit._types import AnyArray
from flowkit.plotting._style import (
    colors,
    finish,
    INK,
    new_figure,
    Number,
    PathLike,
    require,
    style_axes,
    style_legend,
)


_METRIC_WORDS = ("chamfer", "emd", "w2", "nna", "mmd", "coverage", "distance")


def loss_trajectory(
    history: Mapping[str, tuple[Any, Any]],
    *,
    panels: Mapping[str, Sequence[str]] | None = None,
    smoothing: Number = 0.02,
    path: PathLike = None,
) -> Figure:
    """A training run in up to four panels: total loss, components, metrics, explained velocity.

    A long noisy curve is drawn faint, with its running mean on top; a short one with markers. A panel for which there
    is nothing is left out; where explained velocity is missing the components appear once more on a linear axis.

    **Arguments:**

    - `history`: name -> `(steps, values)`. `loss` or `total` is the total; names with `explained_velocity` or `r2`,
      and with the name of a distance such as `chamfer` or `emd`, go to their panels; all others are components.
    - `panels`: title -> names, instead of that rule.
    - `smoothing`: the window of the running mean, as a fraction of the curve; 0 for none.
    """
    require(len(history) > 0, "`history` is empty; pass name -> (steps, values).")
    require(
        0 <= smoothing < 1,
        f"`smoothing` is {smoothing}; it is a fraction of the curve, at least 0 and below 1.",
    )
    curves = {name: _curve(name, *pair) for name, pair in history.items()}
    groups = _default_panels(curves) if panels is None else panels
    for name in (n for names in groups.values() for n in names):
        require(
            name in curves,
            f"`panels` names {name!r}, which is not in `history`: {sorted(curves)}.",
        )
    shown = {title: names for title, names in groups.items() if names}
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(5.2 * columns, 3.3 * rows)
    for i, (title, names) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        style_axes(axes, title, "step")
        palette = [INK] if len(names) == 1 and i == 0 else list(colors.values())
        for j, name in enumerate(names):
            _draw_curve(axes, *curves[name], name, palette[j % len(palette)], smoothing)
        _scale(axes, title, [curves[n][1] for n in names])
        if [n.replace("_", " ") for n in names] != [title]:
            style_legend(axes)
    return finish(figure, path)


def explained_velocity(
    times: Float[AnyArray, " bins"],
    r2: Float[AnyArray, " bins"] | Mapping[str, Float[AnyArray, " _"]],
    *,
    title: str = "explained velocity",
    path: PathLike = None,
) -> Figure:
    """The fraction of the velocity's variance that a model explains, over the time of the flow.

    One is perfect, zero no better than the mean. Unlike the loss it can be read: low values name the times at which
    the model is still poor.

    **Arguments:** centres `times (bins,)` and `r2 (bins,)`, or name -> `(bins,)` for several curves, say at
    several steps of a run, drawn from light to dark.
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
        axes.axhline(
            level, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1
        )
    alphas = np.linspace(0.3, 1, len(curves)) if len(curves) > 1 else [1.0]
    for alpha, (name, values) in zip(alphas, curves.items(), strict=True):
        line = {
            "color": colors["prior_z"],
            "alpha": alpha,
            "linewidth": 1.8,
            "marker": "o",
            "markersize": 4,
        }
        axes.plot(np.asarray(times), np.asarray(values), label=name or None, **line)
    if len(curves) == 1:
        axes.fill_between(
            np.asarray(times),
            0,
            np.asarray(r2),
            color=colors["prior_z"],
            alpha=0.12,
            linewidth=0,
        )
    finite = np.concatenate(
        [np.asarray(v, np.float64)[np.isfinite(v)] for v in curves.values()]
    )
    low = float(finite.min()) if len(finite) else 0.0
    axes.set_ylim(max(min(low - 0.06, -0.04), -1.04), 1.06)
    axes.set_xlim(0, 1)
    style_legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, path)


def _curve(name: str, steps: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    require(
        steps.ndim == 1 and steps.shape == values.shape and len(steps) > 0,
        f"`history[{name!r}]` has steps of shape {steps.shape} and values of shape {values.shape}; both must be "
        "(k,) with k > 0.",
    )
    return steps, values


def _default_panels(curves: Mapping[str, Any]) -> dict[str, list[str]]:
    total = [n for n in curves if n in ("loss", "total", "total_loss")]
    explained = [n for n in curves if "explained" in n or "r2" in n]
    metrics = [
        n
        for n in curves
        if any(w in n.lower() for w in _METRIC_WORDS) and n not in explained
    ]
    components = [n for n in curves if n not in (*total, *explained, *metrics)]
    last = (
        {"explained velocity": explained} if explained else {"components": components}
    )
    return {
        "loss": total,
        "components (log scale)": components,
        "metrics": metrics,
        **last,
    }


def _draw_curve(axes, steps, values, name, color, smoothing) -> None:
    window = int(round(smoothing * len(values)))
    if len(values) <= 40:
        axes.plot(
            steps,
            values,
            color=color,
            linewidth=1.5,
            marker="o",
            markersize=3,
            label=name,
        )
    elif window < 2:
        axes.plot(steps, values, color=color, linewidth=1.0, label=name)
    else:
        axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.25)
        axes.plot(
            steps, _running_mean(values, window), color=color, linewidth=1.6, label=name
        )


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over a centred window, cut off at the ends, of what is finite in it."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    start = np.maximum(np.arange(len(values)) - window // 2, 0)
    stop = np.minimum(np.arange(len(values)) + window // 2 + 1, len(values))
    number = counts[stop] - counts[start]
    return np.where(
        number > 0, (sums[stop] - sums[start]) / np.maximum(number, 1), np.nan
    )


def _scale(axes, title: str, values: list[np.ndarray]) -> None:
    """A logarithmic axis where asked for, or where a total spans more than a decade; R2 ends at one."""
    every = np.concatenate(values)
    every = every[np.isfinite(every)]
    if not len(every):
        return
    if title == "explained velocity":
        axes.axhline(1, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_ylim(max(every.min() - 0.05, -1.0), 1.05)
    elif every.min() > 0 and (
        "log" in title or (title == "loss" and every.max() > 10 * every.min())
    ):
        axes.set_yscale("log")
        subs = (1, 2, 5) if every.max() < 100 * every.min() else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
