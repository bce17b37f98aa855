"""Grids of panels with one cloud each, in the plane or in space, which all figures of clouds are made of."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._style import (
    box,
    finish,
    INK,
    Limits,
    new_figure,
    Number,
    PathLike,
    point_area,
    require,
    style_space,
)


PANEL = 1.5
HAZE = 0.7  # how much of the background shines through the farthest point

Clouds: TypeAlias = Float[AnyArray, "_ _ _"] | Sequence[Float[AnyArray, "_ _"]]
Masks: TypeAlias = Bool[AnyArray, "_ _"] | Sequence[Bool[AnyArray, " _"]] | None
Weights: TypeAlias = Float[AnyArray, "_ _"] | Sequence[Float[AnyArray, " _"]] | None
Ids: TypeAlias = Int[AnyArray, "_ _"] | Sequence[Int[AnyArray, " _"]]


class Panel(NamedTuple):
    """The points that are drawn, `(n, d)`, their colours `(n, 3)`, a title, and segments `(s, 2, d)` behind them."""

    points: np.ndarray
    rgb: np.ndarray
    title: str = ""
    lines: np.ndarray | None = None


class Camera:
    """How space is seen, without perspective: the axis that points up, elevation and azimuth in degrees."""

    def __init__(self, up: int, view: tuple[Number, Number]):
        require(up in (0, 1, 2), f"`up` is {up}; the axes of space are 0, 1 and 2.")
        elevation, azimuth = np.radians(view)
        sine, cosine = np.sin(elevation), np.cos(elevation)
        right = [-np.sin(azimuth), np.cos(azimuth), 0]
        upwards = [-sine * np.cos(azimuth), -sine * np.sin(azimuth), cosine]
        self._directions = np.roll(
            [right, upwards, np.cross(right, upwards)], up - 2, axis=1
        )

    @property
    def towards(self) -> np.ndarray:
        """The direction from the scene to the eye."""
        return self._directions[2]

    def flat(self, points: np.ndarray) -> np.ndarray:
        """Points `(..., 3)` as they are seen, `(..., 2)`; points of a plane stay as they are."""
        return points if points.shape[-1] == 2 else points @ self._directions[:2].T

    def nearness(self, points: np.ndarray) -> np.ndarray:
        """From 0 for the farthest point to 1 for the nearest; 1 in a plane."""
        if points.shape[-1] == 2 or not len(points):
            return np.ones(len(points))
        depth = points @ self.towards
        return 1 - (depth.max() - depth) / max(float(np.ptp(depth)), 1e-12)


def draw_panels(
    panels: list[Panel], columns: int, limits: Limits, camera: Camera, path: PathLike
) -> Figure:
    """A figure of equal square panels with the same limits, so many to a row."""
    size = panels[0].points.shape[1]
    require(
        all(p.points.shape[1] == size for p in panels),
        "all clouds of a figure must have the same dimension.",
    )
    lines = [p.lines.reshape(-1, size) for p in panels if p.lines is not None]
    lows, highs = _limits([p.points for p in panels] + lines, size, limits, camera)
    rows = math.ceil(len(panels) / columns)
    title_rows = sum(
        any(p.title for p in panels[i * columns : (i + 1) * columns])
        for i in range(rows)
    )
    figure = new_figure(columns * PANEL, rows * PANEL + 0.2 * title_rows)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        style_space(axes, lows, highs, ticks=False)
        _draw(axes, panel, camera)
    return finish(figure, path)


def _limits(
    clouds: list[np.ndarray], size: int, limits: Limits, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    if size == 3 and limits is not None:
        corners = np.asarray(
            list(itertools.product(*zip(*box([], 3, limits), strict=True)))
        )
        return box([camera.flat(corners)], 2, padding=0)
    return box([camera.flat(points) for points in clouds], 2, limits)


def _draw(axes: Any, panel: Panel, camera: Camera) -> None:
    if panel.lines is not None:
        style = {
            "colors": "#9a9a9a",
            "linewidths": 0.6,
            "linestyles": (0, (4, 3)),
            "zorder": 0.5,
        }
        axes.add_collection(LineCollection(list(camera.flat(panel.lines)), **style))
    nearness = camera.nearness(panel.points)
    order = np.argsort(
        nearness, kind="stable"
    )  # far points first, so that near ones cover them
    haze = (HAZE * (1 - nearness))[:, None]
    rgb = haze + (1 - haze) * panel.rgb
    area = point_area(len(panel.points), PANEL)
    axes.scatter(
        *camera.flat(panel.points)[order].T,
        s=area,
        linewidths=0,
        alpha=0.9,
        c=rgb[order],
    )
    if panel.title:
        axes.set_title(panel.title, fontsize=8, color=INK, pad=3)


def cell_borders(points: np.ndarray, cells: int, camera: Camera) -> np.ndarray:
    """The borders `(s, 2, d)` of `cells` equal cells along each axis of the points' bounding box.

    In space only those on the three faces behind the points.
    """
    size = points.shape[1]
    if not len(points):
        return np.zeros((0, 2, size))
    ticks = np.linspace(points.min(0), points.max(0), cells + 1)
    back = np.where(camera.towards > 0, 0, cells)
    segments = []
    for axis in range(size):
        others = [a for a in range(size) if a != axis]
        for index in itertools.product(range(cells + 1), repeat=size - 1):
            if size == 2 or any(
                i == back[a] for i, a in zip(index, others, strict=True)
            ):
                segment = np.stack([ticks[0], ticks[-1]])
                segment[:, others] = ticks[list(index), others]
                segments.append(segment)
    return np.asarray(segments)


def class_colors(number: int) -> np.ndarray:
    """Colours `(number, 3)` of classes: the first ten of `tab10`, twenty of `tab20`, more from a rainbow."""
    if number <= 10:
        return np.asarray(colormaps["tab10"].colors)[:number]  # pyright: ignore
    if number <= 20:
        return np.asarray(colormaps["tab20"].colors)[:number]  # pyright: ignore
    return colormaps["turbo"](np.linspace(0.04, 0.96, number))[:, :3]


def id_colors(ids: np.ndarray, number: int) -> np.ndarray:
    """A colour for every point, `(n, 3)`; grey where the id is negative, which says that there is none."""
    palette = np.concatenate([class_colors(max(number, 1)), [to_rgb("#b5b5b5")]])
    return palette[np.where(ids < 0, -1, ids)]


def plain(color: str, number: int) -> np.ndarray:
    """One colour for so many points."""
    return np.tile(to_rgb(color), (number, 1))


def drawn(name: str, cloud: Any, mask: Any, values: Any) -> np.ndarray:
    """Of values `(n,)` those of the points that are drawn: the valid and finite ones."""
    values = np.asarray(values)
    require(
        len(values) == len(cloud),
        f"`{name}` has {len(values)} numbers for a cloud of {len(cloud)} points.",
    )
    keep = np.isfinite(np.asarray(cloud, np.float64)).all(1)
    return values[keep if mask is None else keep & np.asarray(mask)]


def entry(values: Any, i: int) -> Any:
    """That of one cloud, or `None`."""
    return None if values is None else values[i]


def check_lengths(number: int, **values: Any) -> None:
    """There must be one entry for each cloud."""
    for name, value in values.items():
        require(
            value is None or len(value) == number,
            f"`{name}` must have one entry for each of the {number} clouds.",
        )
