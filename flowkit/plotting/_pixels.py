"""The flow of one pixel, channel by channel."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._style import (
    finish,
    INK,
    new_figure,
    own_look,
    PAPER,
    PathLike,
    require,
    style_axes,
    style_legend,
)
from flowkit.plotting._trajectories import line_style


# Red, green and blue of equal weight on paper; names and colors of the channels.
_CHANNELS = {"red": "#d6272f", "green": "#23933b", "blue": "#2a5fd0"}


@own_look()
def pixel_flow(
    times: Float[AnyArray, " t"],
    values: Float[AnyArray, "n t c"],
    truth: Float[AnyArray, " c"] | None = None,
    *,
    title: str = "",
    path: PathLike = None,
) -> Figure:
    """The values of one pixel on their way from noise to data, a line for each channel.

    Dots mark the ends of the trajectories. The spread of the dots of one color shows
    how uncertain the model is about that channel.

    **Arguments:**

    - `times (t,)` and `values (n, t, c)`: trajectories of one pixel as a vmapped solve
      saves them, in three channels or in one, which is gray.
    - `truth (c,)`: the value of the pixel in the data, a diamond and a dashed line.
    - `title`: the title of the figure.
    """
    ts = np.asarray(times, np.float64)
    paths = np.asarray(values, np.float64)
    require(
        paths.ndim == 3 and len(paths) > 0 and paths.shape[2] in (1, 3),
        f"`values` has shape {paths.shape}; trajectories (n, t, c) of one pixel with one "
        "or three channels can be drawn.",
    )
    number, num_times, size = paths.shape
    require(
        num_times > 1,
        "`times` holds one time; a trajectory needs at least two.",
    )

    figure = new_figure(5.6, 3.5)
    axes = figure.add_subplot()
    style_axes(axes, title, "time  (0 noise, 1 data)", "value")
    ends = np.full(number, ts[-1])
    lines = line_style(number)
    for i, (name, color) in enumerate(_channels(size).items()):
        channel = paths[:, :, i]
        axes.plot(ts, channel.T, color=color, **lines)
        style = {"s": 14, "linewidths": 0, "alpha": 0.8, "zorder": 3}
        axes.scatter(ends, channel[:, -1], color=color, label=name, **style)

    span = float(np.ptp(ts))
    if truth is not None:
        # Next to the ends of the trajectories, which it would cover.
        _draw_truth(axes, ts[-1] + 0.03 * span, np.asarray(truth, np.float64))
    axes.set_xlim(ts.min() - 0.02 * span, ts.max() + 0.06 * span)
    style_legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, path)


def _channels(size: int) -> dict[str, str]:
    return _CHANNELS if size == 3 else {"gray": INK}


def _draw_truth(axes: Any, time: float, truth: np.ndarray) -> None:
    """A dashed level and a diamond for each channel."""
    style = {"marker": "D", "s": 30, "facecolor": PAPER, "linewidths": 1.5}
    for value, color in zip(truth, _channels(len(truth)).values(), strict=True):
        axes.axhline(value, color=color, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.scatter([time], [value], edgecolor=color, zorder=3, **style)
    # An empty cloud gives the legend its entry.
    axes.scatter([], [], edgecolor=INK, label="truth", **style)
