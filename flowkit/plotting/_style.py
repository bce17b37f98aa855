"""What all figures share: colours, axes, point sizes, limits, saving."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


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
    }
)
"""One colour per role, the same in every figure: prior, data, latents, outputs, couplings, encoding, decoding."""

INK = "#333333"
FAINT = "#d9d9d9"

PathLike: TypeAlias = str | os.PathLike[str] | None
Number: TypeAlias = float | int
Limits: TypeAlias = tuple[Number, Number] | None


def new_figure(width: Number, height: Number) -> Figure:
    """An empty figure, in inches, that no global state knows of."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def finish(figure: Figure, path: PathLike) -> Figure:
    """Saves the figure where a path is given, in a folder that is made if need be."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure


def style_axes(axes: Any, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Thin axes, a light grid behind the data, small text."""
    axes.set_axisbelow(True)
    axes.grid(True, color="#e9e9e9", linewidth=0.6)
    axes.tick_params(labelsize=8, length=2.5, color=FAINT, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#b0b0b0")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)


def style_legend(axes: Any, **options: Any) -> None:
    """A legend without a box, if there is anything to name; its markers and lines are opaque and of one size."""
    if not axes.get_legend_handles_labels()[1]:
        return
    style_handles(axes.legend(fontsize=8, frameon=False, labelcolor=INK, **options))


def style_handles(legend: Any) -> None:
    """Markers and lines as large in a legend as it takes to see their colour."""
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
    """Equal aspect within a box, in two or three dimensions; without ticks only a thin frame remains."""
    axes.set_xlim(lows[0], highs[0])
    axes.set_ylim(lows[1], highs[1])
    if len(lows) == 3:
        axes.set_zlim(lows[2], highs[2])
        axes.set_box_aspect((1, 1, 1), zoom=1.0 if ticks else 1.5)
        axes.view_init(elev=20, azim=-60)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_pane_color((1, 1, 1, 1))
            axis._axinfo["grid"].update(color="#e9e9e9", linewidth=0.5)
            axis.line.set_color(FAINT)
    else:
        axes.set_aspect("equal", adjustable="box")
    if not ticks:
        for axis in ("x", "y", "z")[: len(lows)]:
            getattr(axes, f"set_{axis}ticks")([])
        if len(lows) == 3:
            axes.set_axis_off()
        for spine in axes.spines.values():
            spine.set_color(FAINT)
            spine.set_linewidth(0.8)


def as_points(name: str, cloud: Any, mask: Any = None) -> np.ndarray:
    """The valid, finite points of a cloud as a NumPy array `(n, d)`; generated points may have diverged."""
    points = np.asarray(cloud, np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError(
            f"`{name}` has a cloud of shape {points.shape}; (n, 2) or (n, 3) can be drawn."
        )
    keep = np.isfinite(points).all(1)
    if mask is not None:
        valid = np.asarray(mask)
        if valid.shape != keep.shape or valid.dtype != bool:
            raise ValueError(
                f"a mask of `{name}` has shape {valid.shape} and dtype {valid.dtype}; its cloud asks for booleans "
                f"of shape {keep.shape}."
            )
        keep &= valid
    return points[keep]


def box(
    clouds: Iterable[np.ndarray],
    size: int,
    limits: Limits = None,
    padding: Number = 0.06,
) -> tuple[Any, Any]:
    """Corners of the smallest padded cube around all points, or the cube that the caller asks for."""
    if limits is not None:
        low, high = limits
        if not low < high:
            raise ValueError(f"`limits` is {limits}; the lower limit comes first.")
        return np.full(size, float(low)), np.full(size, float(high))
    points = np.concatenate([np.zeros((0, size)), *clouds])
    if not len(points):
        return np.full(size, -1.0), np.full(size, 1.0)
    low, high = points.min(0), points.max(0)
    half = max(float((high - low).max()) / 2 * (1 + 2 * padding), 1e-3)
    return (low + high) / 2 - half, (low + high) / 2 + half


def point_area(num_points: int, inches: Number, coverage: Number = 0.12) -> float:
    """The area of a marker, in square points, such that all markers cover that fraction of the panel."""
    return float(np.clip(coverage * (72 * inches) ** 2 / max(num_points, 1), 0.3, 18))


def require(condition: bool, message: str) -> None:
    """Raises the `ValueError` of a wrong argument."""
    if not condition:
        raise ValueError(message)
