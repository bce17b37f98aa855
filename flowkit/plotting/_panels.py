"""Grids of panels with one cloud each, which all figures of clouds use."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Integer
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._style import (
    box,
    finish,
    INK,
    LEVEL,
    Limits,
    new_figure,
    NO_CLASS,
    Number,
    PathLike,
    point_area,
    require,
    style_space,
)


PANEL = 1.5
HAZE = 0.7  # the fraction of the background that shines through the farthest point

Clouds: TypeAlias = Float[AnyArray, "_ _ _"] | Sequence[Float[AnyArray, "_ _"]]
Masks: TypeAlias = Bool[AnyArray, "_ _"] | Sequence[Bool[AnyArray, " _"]] | None
Weights: TypeAlias = Float[AnyArray, "_ _"] | Sequence[Float[AnyArray, " _"]] | None
Ids: TypeAlias = Integer[AnyArray, "_ _"] | Sequence[Integer[AnyArray, " _"]]


class Panel(NamedTuple):
    """Points `(n, d)`, their colors `(n, 3)`, a title, and segments `(s, 2, d)` behind
    them.
    """

    points: np.ndarray
    rgb: np.ndarray
    title: str = ""
    lines: np.ndarray | None = None


class Camera:
    """How space is seen, without perspective.

    **Arguments:** the axis that points up; elevation and azimuth of the eye in degrees.
    """

    def __init__(self, up: int, view: tuple[Number, Number]):
        require(up in (0, 1, 2), f"`up` is {up}; the axes of space are 0, 1 and 2.")

        elevation, azimuth = np.radians(view)
        sine = np.sin(elevation)
        cosine = np.cos(elevation)

        # To the right and upward on the screen, and toward the eye, with the third axis up.
        right = [-np.sin(azimuth), np.cos(azimuth), 0]
        upward = [-sine * np.cos(azimuth), -sine * np.sin(azimuth), cosine]
        directions = [right, upward, np.cross(right, upward)]
        # The axes are permuted cyclically, which keeps space right-handed.
        self._directions = np.roll(directions, up - 2, axis=1)

    @property
    def towards(self) -> np.ndarray:
        """The direction from the scene to the eye."""
        return self._directions[2]

    def flat(self, points: np.ndarray) -> np.ndarray:
        """Points `(..., 3)` as they are seen, `(..., 2)`; points of a plane stay as
        they are.
        """
        if points.shape[-1] == 2:
            return points
        return points @ self._directions[:2].T

    def nearness(self, points: np.ndarray) -> np.ndarray:
        """From 0 for the farthest point to 1 for the nearest; 1 in a plane."""
        if points.shape[-1] == 2 or not len(points):
            return np.ones(len(points))
        depth = points @ self.towards
        # Points of equal depth are all among the nearest.
        return 1 - (depth.max() - depth) / max(float(np.ptp(depth)), 1e-12)


def draw_panels(
    panels: list[Panel], columns: int, limits: Limits, camera: Camera, path: PathLike
) -> Figure:
    """A figure of equal square panels with the same limits and dots, in rows of
    `columns`.
    """
    size = panels[0].points.shape[1]
    require(
        all(panel.points.shape[1] == size for panel in panels),
        "all clouds of a figure must have the same dimension.",
    )

    lines = [
        panel.lines.reshape(-1, size) for panel in panels if panel.lines is not None
    ]
    clouds = [panel.points for panel in panels]
    lows, highs = _limits(clouds + lines, size, limits, camera)
    area = point_area([len(points) for points in clouds], PANEL)

    rows = math.ceil(len(panels) / columns)
    titles = [panel.title for panel in panels]
    title_rows = sum(any(titles[i * columns : (i + 1) * columns]) for i in range(rows))

    figure = new_figure(columns * PANEL, rows * PANEL + 0.2 * title_rows)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        style_space(axes, lows, highs, ticks=False)
        _draw(axes, panel, camera, area)

    return finish(figure, path)


def _limits(
    clouds: list[np.ndarray], size: int, limits: Limits, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the square that is shown; limits of space are seen as a cube."""
    if size == 2 or limits is None:
        return box([camera.flat(points) for points in clouds], 2, limits)
    lows, highs = box([], 3, limits)
    sides = zip(lows, highs, strict=True)
    corners = np.asarray(list(itertools.product(*sides)))
    return box([camera.flat(corners)], 2, padding=0)


def _draw(axes: Any, panel: Panel, camera: Camera, area: float) -> None:
    if panel.lines is not None:
        style = {"colors": LEVEL, "linewidths": 0.6, "linestyles": (0, (4, 3))}
        segments = list(camera.flat(panel.lines))
        axes.add_collection(LineCollection(segments, zorder=0.5, **style))

    nearness = camera.nearness(panel.points)
    # Far points fade into the paper, which replaces perspective.
    haze = (HAZE * (1 - nearness))[:, None]
    rgb = haze + (1 - haze) * panel.rgb
    # Far points first, so that near ones cover them.
    order = np.argsort(nearness, kind="stable")
    xy = camera.flat(panel.points)[order]
    axes.scatter(*xy.T, s=area, c=rgb[order], linewidths=0, alpha=0.9)
    if panel.title:
        axes.set_title(panel.title, fontsize=8, color=INK, pad=3)


def cell_borders(points: np.ndarray, cells: int, camera: Camera) -> np.ndarray:
    """The borders `(s, 2, d)` of a grid of `cells` along each axis of the bounding box.

    In space only those on the three faces behind the points.
    """
    size = points.shape[1]
    if not len(points):
        return np.zeros((0, 2, size))
    ticks = np.linspace(points.min(0), points.max(0), cells + 1)
    # Along each axis the face that is turned away from the eye.
    back = np.where(camera.towards > 0, 0, cells)

    segments = []
    for axis in range(size):
        others = [a for a in range(size) if a != axis]
        # A border along this axis starts at a node of the other ones.
        for index in itertools.product(range(cells + 1), repeat=size - 1):
            behind = any(i == back[a] for i, a in zip(index, others, strict=True))
            if size == 2 or behind:
                segment = np.stack([ticks[0], ticks[-1]])
                segment[:, others] = ticks[list(index), others]
                segments.append(segment)

    return np.asarray(segments)


def class_colors(number: int) -> np.ndarray:
    """Colors of classes, `(number, 3)`: `tab10`, `tab20`, or a rainbow for more than
    20.
    """
    if number <= 10:
        return np.asarray(colormaps["tab10"].colors)[:number]  # pyright: ignore
    if number <= 20:
        return np.asarray(colormaps["tab20"].colors)[:number]  # pyright: ignore
    return colormaps["turbo"](np.linspace(0.04, 0.96, number))[:, :3]


def id_colors(ids: np.ndarray, number: int) -> np.ndarray:
    """A color for every point, `(n, 3)`; gray for a negative id, which stands for
    none.
    """
    palette = np.concatenate([class_colors(max(number, 1)), [to_rgb(NO_CLASS)]])
    # -1 is the last color of the palette, the gray one; unsigned ids have no such number.
    return palette[np.maximum(ids.astype(int), -1)]


def plain(color: str, number: int) -> np.ndarray:
    """The same color for each of a number of points, `(number, 3)`."""
    return np.tile(to_rgb(color), (number, 1))


def drawn(name: str, cloud: Any, mask: Any, values: Any) -> np.ndarray:
    """The values of the points that are drawn, the valid and finite ones."""
    values = np.asarray(values)
    require(
        len(values) == len(cloud),
        f"`{name}` has {len(values)} numbers for a cloud of {len(cloud)} points.",
    )
    keep = np.isfinite(np.asarray(cloud, np.float64)).all(1)
    if mask is not None:
        keep &= np.asarray(mask)
    return values[keep]


def entry(values: Any, i: int) -> Any:
    """The values of one cloud, or `None` if there are none."""
    return None if values is None else values[i]


def check_lengths(number: int, **values: Any) -> None:
    """Raises unless there is one entry for each cloud."""
    for name, value in values.items():
        require(
            value is None or len(value) == number,
            f"`{name}` must have one entry for each of the {number} clouds.",
        )
