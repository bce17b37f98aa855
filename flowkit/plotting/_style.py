"""What all figures share: colors, axes, dots, limits, and how they are shown."""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import matplotlib.style
import numpy as np
from matplotlib import colormaps
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowkit._checks import check_folder


colors: Mapping[str, str] = MappingProxyType(
    {
        "prior_z": "#1f77b4",
        "data_x": "#ff7f0e",
        "latent_z_hat": "#2ca02c",
        "output_x_hat": "#d62728",
        "coupling_train": "#7f7f7f",
        "coupling_infer": "#9467bd",
        "encode_line": "#8c564b",
        "decode_line": "#e377c2",
        "one_step": "#17becf",
        "hidden_x": "#222222",
    }
)
"""One color per role, the same in every figure.

| role | color | what it is |
|---|---|---|
| `prior_z` | blue | noise: samples of the source or the prior |
| `data_x` | orange | data |
| `latent_z_hat` | green | latents of data |
| `output_x_hat` | red | samples and reconstructions |
| `coupling_train` | gray | training pairs |
| `coupling_infer` | purple | paths from noise to samples, and the points on them |
| `encode_line` | brown | from data to latents |
| `decode_line` | pink | from latents to outputs |
| `one_step` | cyan | the output of a one-step map |
| `hidden_x` | black | points of the data that a mask hides from an encoder |

Classes, slots and named curves have no role. They are numbered, and each number has its
color.
"""

# Text, the grid, frames of axes, lines at a fixed value, what belongs to no class.
INK = "#333333"
GRID = "#e9e9e9"
FAINT = "#d9d9d9"
SPINE = "#b0b0b0"
LEVEL = "#999999"
NO_CLASS = "#b5b5b5"
PAPER = "#ffffff"

PathLike: TypeAlias = str | os.PathLike[str] | None
Number: TypeAlias = float | int
Limits: TypeAlias = tuple[Number, Number] | None


@contextlib.contextmanager
def own_look() -> Iterator[None]:
    """Matplotlib's defaults, whatever style the user has chosen.

    Half of the look is fixed here; combined with the other half of a dark style, it
    would be unreadable.
    """
    with matplotlib.style.context("default"):
        yield


class StyledFigure(Figure):
    """A figure without pyplot that keeps its look and shows itself in a notebook."""

    # Some artists, such as ticks, read the style only when the figure is drawn.
    @own_look()
    def draw(self, renderer: Any) -> None:
        super().draw(renderer)

    @own_look()
    def savefig(self, fname: Any, **options: Any) -> None:
        super().savefig(fname, **options)

    # The hook of IPython. Its inline backend brings its own for `Figure`, which then
    # takes the place of this one, so a figure is never shown twice.
    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(width: Number, height: Number) -> Figure:
    """An empty figure of a size in inches."""
    # Not by pyplot, which keeps every figure in memory until it is closed.
    return StyledFigure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def check_path(path: PathLike, endings: Iterable[str] | None = None) -> None:
    """Raises for a file that cannot be written, and makes its folder.

    **Arguments:** `endings`: the endings that are allowed, by default those of
    matplotlib.
    """
    if path is None:
        return
    path = Path(path)
    require(
        not path.is_dir(),
        f"`path` is {path}, which is a folder; name a file in it.",
    )

    if endings is None:
        endings = [f".{name}" for name in FigureCanvasBase.get_supported_filetypes()]
    ending = path.suffix.lower()
    # Without an ending matplotlib appends its own.
    require(
        ending in endings or ending == "",
        f"`path` is {path}; a file that ends in {ending!r} cannot be written, "
        f"only {', '.join(sorted(endings))}.",
    )

    check_folder("path", path.parent)


def finish(figure: Figure, path: PathLike) -> Figure:
    """The figure, saved if a path is given."""
    check_path(path)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def series_color(number: int) -> Any:
    """The color of a curve without a role, by its number; no role has one of these."""
    palette = colormaps["Dark2"].colors  # pyright: ignore
    return palette[number % len(palette)]


def tint(color: Any, strength: float) -> str:
    """A color mixed with white, which is strength 0."""
    red, green, blue = strength * np.asarray(to_rgb(color)) + (1 - strength)
    return to_hex((red, green, blue))


def style_axes(axes: Any, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Thin axes, a light grid behind the data, small text."""
    axes.set_axisbelow(True)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.tick_params(labelsize=8, length=2.5, color=FAINT, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(SPINE)

    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)


def style_legend(axes: Any, **options: Any) -> None:
    """A legend without a box, if there is anything to name."""
    if not axes.get_legend_handles_labels()[1]:
        return
    style_handles(axes.legend(fontsize=8, frameon=False, labelcolor=INK, **options))


def style_handles(legend: Any) -> None:
    """Makes markers and lines of a legend large enough to show their color."""
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_alpha(1)
            handle.set_sizes([16])
        elif isinstance(handle, LineCollection | Line2D):
            handle.set_alpha(1)
            handle.set_linewidth(1.5)


def style_space(
    axes: Any, lows: np.ndarray, highs: np.ndarray, *, ticks: bool = True
) -> None:
    """Equal aspect within a box; without ticks only a thin frame remains."""
    axes.set_xlim(lows[0], highs[0])
    axes.set_ylim(lows[1], highs[1])
    if len(lows) == 3:
        axes.set_zlim(lows[2], highs[2])
        axes.set_box_aspect((1, 1, 1))
        axes.view_init(elev=20, azim=-60)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_pane_color(PAPER)
            # Private, but the grid of space takes its color in no other way.
            axis._axinfo["grid"].update(color=GRID, linewidth=0.5)
            axis.line.set_color(FAINT)
    else:
        axes.set_aspect("equal", adjustable="box")

    if not ticks:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color(FAINT)
            spine.set_linewidth(0.8)


def as_points(name: str, cloud: Any, mask: Any = None) -> np.ndarray:
    """The valid, finite points of a cloud, `(n, d)`."""
    points = np.asarray(cloud, np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError(
            f"`{name}` has a cloud of shape {points.shape}; (n, 2) or (n, 3) can be drawn."
        )

    # Generated points may have diverged.
    keep = np.isfinite(points).all(1)
    if mask is not None:
        valid = np.asarray(mask)
        if valid.shape != keep.shape or valid.dtype != bool:
            raise ValueError(
                f"A mask of `{name}` has shape {valid.shape} and dtype {valid.dtype}; "
                f"its cloud needs booleans of shape {keep.shape}."
            )
        keep &= valid

    return points[keep]


def box(
    clouds: Iterable[np.ndarray],
    size: int,
    limits: Limits = None,
    padding: Number = 0.06,
) -> tuple[Any, Any]:
    """Corners of the smallest padded cube around all points, or those asked for."""
    if limits is not None:
        low, high = limits
        if not low < high:
            raise ValueError(f"`limits` is {limits}; the lower limit comes first.")
        return np.full(size, float(low)), np.full(size, float(high))

    points = np.concatenate([np.zeros((0, size)), *clouds])
    if not len(points):
        return np.full(size, -1.0), np.full(size, 1.0)
    low = points.min(0)
    high = points.max(0)
    center = (low + high) / 2
    # A single point has no extent, and axes need some.
    half = max(float((high - low).max()) / 2 * (1 + 2 * padding), 1e-3)

    return center - half, center + half


def point_area(counts: Iterable[int], inches: Number, coverage: Number = 0.12) -> float:
    """One area of a dot, in square points, for all panels of a figure.

    The dots of the panel with most points cover the given fraction of it. A size for
    each panel would make a cloud of few points look bolder than one of many.

    **Arguments:**

    - `counts`: the number of points in each panel.
    - `inches`: the side of a panel.
    """
    most = max([1, *counts])
    return float(np.clip(coverage * (72 * inches) ** 2 / most, 0.3, 18))


def require(condition: bool, message: str) -> None:
    """Raises the `ValueError` of a wrong argument."""
    if not condition:
        raise ValueError(message)
