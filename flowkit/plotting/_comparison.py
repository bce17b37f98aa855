"""Models side by side, flows beside maps of latents."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from flowkit._types import AnyArray
from flowkit.plotting._style import (
    box,
    colors,
    finish,
    INK,
    Limits,
    new_figure,
    Number,
    PathLike,
    point_area,
    require,
    style_axes,
    style_handles,
    style_legend,
    style_space,
)
from flowkit.plotting._trajectories import as_arrays, draw_paths, finite_points, Paths


class LatentMap(NamedTuple):
    """Pairs of latents and examples, each a tuple of two arrays `(n, d)` of the same size: one panel of `comparison`.

    - `train`: `(z, x)`, latents of the prior and the data they were trained towards.
    - `infer`: `(z, output)`, latents of the prior and what the decoder makes of them.
    - `encode`: `(x, latents)`, data and its latents.
    - `decode`: `(latents, output)`, these latents and what the decoder makes of them.
    """

    train: tuple[Float[AnyArray, "n d"], Float[AnyArray, "n d"]] | None = None
    infer: tuple[Float[AnyArray, "n d"], Float[AnyArray, "n d"]] | None = None
    encode: tuple[Float[AnyArray, "n d"], Float[AnyArray, "n d"]] | None = None
    decode: tuple[Float[AnyArray, "n d"], Float[AnyArray, "n d"]] | None = None


def latent_map(
    panel: LatentMap, *, limits: Limits = None, title: str = "", path: PathLike = None
) -> Figure:
    """What a decoder or an autoencoder maps to what, for latents and data both on the line or both in the plane.

    On the line latents are the left column and examples the right one, with lines between; in the plane both lie in the
    same axes.

    **Arguments:** the pairs; `limits`, `(low, high)` of every spatial axis; a title.
    """
    arrays = _as_pairs("panel", panel)
    size = _size(arrays)
    figure = new_figure(5.6, 3.9 if size == 1 else 4.7)
    axes = figure.add_subplot()
    style_axes(axes, title)
    _draw_map(axes, arrays, *box(_clouds(arrays), size, limits, padding=0.1), inches=4)
    style_legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, path)


def comparison(
    panels: Mapping[str, Paths | LatentMap],
    *,
    columns: int | None = None,
    limits: Limits = None,
    title: str = "",
    path: PathLike = None,
) -> Figure:
    """Models side by side, a panel each with the same limits and one legend for all.

    **Arguments:**

    - `panels`: name -> `Paths` of a flow or `LatentMap` of a decoder, on the line or in the plane.
    - `columns`: panels in a row, by default at most four.
    - `limits`: `(low, high)` of every spatial axis; give them for the frames of an animation.
    """
    require(len(panels) > 0, "`panels` is empty; there is nothing to draw.")
    columns = min(len(panels), 4) if columns is None else columns
    require(columns > 0, f"`columns` is {columns}; a grid needs at least one.")
    drawn, size = _drawn(panels)
    places = [
        finite_points(p) if isinstance(p, Paths) else _clouds(p) for p in drawn.values()
    ]
    lows, highs = box(
        [cloud for clouds in places for cloud in clouds], size, limits, padding=0.1
    )
    rows = math.ceil(len(drawn) / columns)
    figure = new_figure(2.8 * columns, (2.9 if size == 1 else 3.15) * rows + 0.6)
    for i, (name, panel) in enumerate(drawn.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        style_axes(axes, name)
        _draw(axes, panel, lows, highs)
    _shared_legend(figure, 2 * columns)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return finish(figure, path)


class Frame(NamedTuple):
    """A picture of `comparison_frames`, and its panels cut out of it, with their titles and axes."""

    image: Image.Image
    panels: dict[str, Image.Image]


def comparison_frames(
    frames: Iterable[tuple[str, Mapping[str, Paths | LatentMap]]],
    *,
    limits: tuple[Number, Number],
    columns: int | None = None,
    dpi: Number = 100,
) -> Iterator[Frame]:
    """The pictures of an animation of `comparison`: the same axes and legend in all of them, drawn once.

    ```python
    steps = ((f"epoch {k}", {"flow": fk.plotting.Paths(times, points)}) for k, points in enumerate(history))
    for k, frame in enumerate(fk.plotting.comparison_frames(steps, limits=(-5, 5))):
        frame.image.save(f"{k}.png")
    ```

    A frame takes a fraction of the time of a figure. Only one is in memory at a time.

    **Arguments:**

    - `frames`: title and panels of each frame; all have the panels of the first one.
    - `limits`: `(low, high)` of every spatial axis.
    - `columns`: as in `comparison`.
    - `dpi`: dots per inch.

    **Raises:** `ValueError` for frames with other panels than the first one, and what `comparison` refuses.
    """
    require(dpi > 0, f"`dpi` is {dpi}; it must be positive.")
    rest = iter(frames)
    title, panels = next(rest, ("", {}))
    figure = comparison(panels, columns=columns, limits=limits, title=title)
    return _frames(
        figure, itertools.chain([(title, panels)], rest), list(panels), limits, dpi
    )


def _frames(
    figure: Figure, frames: Any, names: list[str], limits: Any, dpi: Number
) -> Iterator[Frame]:
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # which settles the layout
    figure.set_layout_engine("none")
    cuts = {
        name: _cut(axes, canvas) for name, axes in zip(names, figure.axes, strict=True)
    }
    for axes in figure.axes:
        _clear(axes)
    heading = next(iter(figure.texts), None)
    if heading is not None:
        heading.set_text("")
    canvas.draw()
    empty = canvas.copy_from_bbox(figure.bbox)
    for number, (title, panels) in enumerate(frames):
        require(
            list(panels) == names,
            f"frame {number} of `frames` has the panels {list(panels)}, the first {names}.",
        )
        drawn, size = _drawn(panels)
        lows, highs = box([], size, limits)
        canvas.restore_region(empty)
        for axes, panel in zip(figure.axes, drawn.values(), strict=True):
            _clear(axes)
            _draw(axes, panel, lows, highs)
            for artist in sorted(
                [*axes.collections, *axes.texts], key=lambda artist: artist.zorder
            ):
                axes.draw_artist(artist)
        image = _picture(canvas)
        parts = {name: image.crop(cut) for name, cut in cuts.items()}
        if heading is not None:
            heading.set_text(title)
            figure.draw_artist(heading)
            image = _picture(canvas)
        yield Frame(image, parts)


def _picture(canvas: FigureCanvasAgg) -> Image.Image:
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _cut(
    axes: Any, canvas: FigureCanvasAgg, margin: int = 3
) -> tuple[int, int, int, int]:
    """Where axes with their title and labels are in the picture, in pixels: left, top, right, bottom."""
    width, height = canvas.get_width_height()
    extent = axes.get_tightbbox(canvas.get_renderer())
    left, right = math.floor(extent.x0) - margin, math.ceil(extent.x1) + margin
    top, bottom = (
        math.floor(height - extent.y1) - margin,
        math.ceil(height - extent.y0) + margin,
    )
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def _clear(axes: Any) -> None:
    for artist in [*axes.collections, *axes.texts]:
        artist.remove()


def _drawn(panels: Mapping[str, Paths | LatentMap]) -> tuple[dict[str, Any], int]:
    """The panels as arrays, and their dimension."""
    drawn = {
        n: as_arrays(p) if isinstance(p, Paths) else _as_pairs(n, p)
        for n, p in panels.items()
    }
    sizes = {
        name: p.points.shape[-1] if isinstance(p, Paths) else _size(p)
        for name, p in drawn.items()
    }
    size = max(sizes.values())
    require(
        size < 3 and set(sizes.values()) == {size},
        f"all panels must have one dimension, 1 or 2; got {sizes}.",
    )
    return drawn, size


def _draw(axes: Any, panel: Any, lows: np.ndarray, highs: np.ndarray) -> None:
    draw: Any = draw_paths if isinstance(panel, Paths) else _draw_map
    draw(axes, panel, lows, highs, inches=2.4)


# Which colour and label the two ends of each kind of pair have, and whether the first one is a latent.
_PRIOR, _LATENT = (
    ("prior_z", "latents of the prior"),
    ("latent_z_hat", "encoded latents"),
)
_DATA, _OUTPUT = ("data_x", "data"), ("output_x_hat", "output")
_ROLES = {
    "train": ("coupling_train", "training pairs", _PRIOR, _DATA),
    "infer": ("coupling_infer", "inference", _PRIOR, _OUTPUT),
    "encode": ("encode_line", "encode", _LATENT, _DATA),
    "decode": ("decode_line", "decode", _LATENT, _OUTPUT),
}


def _as_pairs(name: str, panel: LatentMap) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Latents and examples of each role, in this order, those that are finite."""
    pairs = {}
    for role, pair in panel._asdict().items():
        if pair is None:
            continue
        first, second = (np.asarray(a, np.float64) for a in pair)
        require(
            first.shape == second.shape and first.ndim == 2,
            f"`{role}` of `{name}` has shapes {first.shape} and {second.shape}; both are (n, d).",
        )
        keep = np.isfinite(first).all(1) & np.isfinite(second).all(1)
        pairs[role] = (
            (second[keep], first[keep])
            if role == "encode"
            else (first[keep], second[keep])
        )
    require(bool(pairs), f"`{name}` has no pairs; there is nothing to draw.")
    return pairs


def _size(pairs: dict) -> int:
    sizes = {latents.shape[1] for latents, _ in pairs.values()}
    require(
        len(sizes) == 1 and sizes <= {1, 2},
        f"pairs have dimensions {sorted(sizes)}; all must have 1 or all 2.",
    )
    return sizes.pop()


def _clouds(pairs: dict) -> list[np.ndarray]:
    return [cloud for pair in pairs.values() for cloud in pair]


def _draw_map(
    axes: Any, pairs: dict, lows: np.ndarray, highs: np.ndarray, inches: float
) -> None:
    on_line = len(lows) == 1
    jitter = np.random.default_rng(
        0
    )  # so that points of equal value are seen, the same in every frame
    for role, (latents, examples) in pairs.items():
        line, label, *ends = _ROLES[role]
        clouds = [latents, examples]
        if on_line:
            noise = jitter.uniform(-0.02, 0.02, (2, len(latents), 1))
            clouds = [
                np.concatenate([x + shift, y], 1)
                for x, shift, y in zip((0, 1), noise, clouds, strict=True)
            ]
        segments = np.stack(clouds, 1)
        axes.add_collection(
            LineCollection(
                list(segments),
                colors=colors[line],
                linewidths=0.5,
                alpha=0.3,
                label=label,
            )
        )
        for cloud, (color, name) in zip(clouds, ends, strict=True):
            marker = (
                {"marker": "x", "linewidths": 0.6}
                if color == "data_x"
                else {"linewidths": 0}
            )
            area = point_area(len(cloud), inches, 0.02)
            label = name if name not in axes.get_legend_handles_labels()[1] else None
            axes.scatter(
                *cloud.T,
                s=area,
                color=colors[color],
                alpha=0.7,
                zorder=3,
                label=label,
                **marker,
            )
    if on_line:
        axes.set_xlim(-0.1, 1.1)
        axes.set_xticks([0, 1], ["latent", "data"])
        axes.set_ylim(lows[0], highs[0])
    else:
        style_space(axes, lows, highs)


def _shared_legend(figure: Figure, columns: int) -> None:
    """One entry for each label of all panels, below them, at most so many in a row."""
    entries = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    legend = figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), columns, 6), fontsize=8,
        frameon=False, labelcolor=INK,
    )  # fmt: skip
    style_handles(legend)
