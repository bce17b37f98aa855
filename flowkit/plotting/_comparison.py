"""Models side by side, each in a panel of its own: flows and maps of latents."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from flowkit.plotting._latent_map import (
    as_pairs,
    clouds_of,
    draw_map,
    LatentMap,
    size_of,
)
from flowkit.plotting._style import (
    box,
    finish,
    INK,
    Limits,
    new_figure,
    Number,
    own_look,
    PathLike,
    require,
    style_axes,
    style_handles,
)
from flowkit.plotting._trajectories import (
    as_arrays,
    Dots,
    dots_for,
    draw_paths,
    finite_points,
    Paths,
)


class _Drawing(NamedTuple):
    """Panels as arrays by name, their dimension, and the dots that all of them
    share.
    """

    panels: dict[str, Any]
    size: int
    dots: Dots


@own_look()
def comparison(
    panels: Mapping[str, Paths | LatentMap],
    *,
    columns: int | None = None,
    limits: Limits = None,
    title: str = "",
    path: PathLike = None,
) -> Figure:
    """Models side by side, a panel each, with the same limits and one legend.

    **Arguments:**

    - `panels`: name -> `Paths` of a flow or `LatentMap` of a decoder, all in one
      dimension or all in two.
    - `columns`: panels in a row, by default at most four.
    - `limits`: `(low, high)` of every spatial axis; give them for the frames of an
      animation.
    - `title`: the title of the figure.
    """
    require(len(panels) > 0, "`panels` is empty; there is nothing to draw.")

    columns = min(len(panels), 4) if columns is None else columns
    require(columns > 0, f"`columns` is {columns}; a grid needs at least one.")

    drawing = _drawing(panels)
    places = [place for panel in drawing.panels.values() for place in _places(panel)]
    lows, highs = box(places, drawing.size, limits, padding=0.1)

    rows = math.ceil(len(panels) / columns)
    height = 2.9 if drawing.size == 1 else 3.15

    figure = new_figure(2.8 * columns, height * rows + 0.6)
    for i, (name, panel) in enumerate(drawing.panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        style_axes(axes, name)
        _draw(axes, panel, lows, highs, drawing.dots)

    _shared_legend(figure, 2 * columns)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)

    return finish(figure, path)


class Frame(NamedTuple):
    """A picture of `comparison_frames`, and the panels cut out of it with their
    axes.
    """

    image: Image.Image
    panels: dict[str, Image.Image]


def comparison_frames(
    frames: Iterable[tuple[str, Mapping[str, Paths | LatentMap]]],
    *,
    limits: tuple[Number, Number],
    columns: int | None = None,
    dpi: Number = 100,
) -> Iterator[Frame]:
    """The pictures of an animation of `comparison`, whose axes and legend are drawn
    once.

    ```python
    steps = (
        (f"epoch {k}", {"flow": fk.plotting.Paths(times, points)})
        for k, points in enumerate(history)
    )
    for k, frame in enumerate(fk.plotting.comparison_frames(steps, limits=(-5, 5))):
        frame.image.save(f"{k}.png")
    ```

    A frame takes a fraction of the time of a figure. Only one is in memory at a time.

    **Arguments:**

    - `frames`: title and panels of each frame; all have the panels of the first one.
    - `limits`: `(low, high)` of every spatial axis.
    - `columns`: as in `comparison`.
    - `dpi`: dots per inch.

    **Raises:** `ValueError` for frames with other panels than the first one, and for
    what `comparison` refuses.
    """
    require(dpi > 0, f"`dpi` is {dpi}; it must be positive.")
    rest = iter(frames)
    title, panels = next(rest, ("", {}))
    figure = comparison(panels, columns=columns, limits=limits, title=title)
    background = _Background(figure, list(panels), limits, dpi)
    every = enumerate(itertools.chain([(title, panels)], rest))
    # A generator expression: in a generator function the checks above would wait for
    # the first frame.
    return (
        background.frame(number, title, panels) for number, (title, panels) in every
    )


class _Background:
    """A figure whose background is drawn once and kept as a picture."""

    @own_look()
    def __init__(
        self, figure: Figure, names: list[str], limits: Limits, dpi: Number
    ) -> None:
        self._figure = figure
        self._names = names
        self._limits = limits
        figure.set_dpi(dpi)
        self._canvas = FigureCanvasAgg(figure)
        # Drawing settles the layout, which must not move from frame to frame.
        self._canvas.draw()
        figure.set_layout_engine("none")
        # Measured once, so that the panels of all frames are cut alike.
        self._cuts = [_cut(axes, self._canvas) for axes in figure.axes]

        for axes in figure.axes:
            _clear(axes)
        self._heading = next(iter(figure.texts), None)
        if self._heading is not None:
            self._heading.set_text("")
        self._canvas.draw()
        self._empty = self._canvas.copy_from_bbox(figure.bbox)

    @own_look()
    def frame(self, number: int, title: str, panels: Mapping[str, Any]) -> Frame:
        require(
            list(panels) == self._names,
            f"frame {number} of `frames` has the panels {list(panels)}, the first {self._names}.",
        )

        drawing = _drawing(panels)
        lows, highs = box([], drawing.size, self._limits)
        self._canvas.restore_region(self._empty)
        for axes, panel in zip(self._figure.axes, drawing.panels.values(), strict=True):
            _clear(axes)
            _draw(axes, panel, lows, highs, drawing.dots)
            _blit(axes)

        # The panels are cut out before the title of the whole is written above them.
        image = self._picture()
        cuts = zip(self._names, self._cuts, strict=True)
        parts = {name: image.crop(cut) for name, cut in cuts}
        if self._heading is not None:
            self._heading.set_text(title)
            self._figure.draw_artist(self._heading)
            image = self._picture()

        return Frame(image, parts)

    def _picture(self) -> Image.Image:
        pixels = np.asarray(self._canvas.buffer_rgba())
        return Image.fromarray(pixels).convert("RGB")


def _cut(
    axes: Any, canvas: FigureCanvasAgg, margin: int = 3
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of axes with their labels in the picture, in
    pixels.
    """
    width, height = canvas.get_width_height()
    extent = axes.get_tightbbox(canvas.get_renderer())
    left = math.floor(extent.x0) - margin
    right = math.ceil(extent.x1) + margin
    # Pictures count rows from the top, and matplotlib from the bottom.
    top = math.floor(height - extent.y1) - margin
    bottom = math.ceil(height - extent.y0) + margin
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def _clear(axes: Any) -> None:
    for artist in [*axes.collections, *axes.texts]:
        artist.remove()


def _blit(axes: Any) -> None:
    """Draws what `_clear` would remove, from the back to the front."""
    moving = [*axes.collections, *axes.texts]
    for artist in sorted(moving, key=lambda artist: artist.zorder):
        axes.draw_artist(artist)


def _drawing(panels: Mapping[str, Paths | LatentMap]) -> _Drawing:
    arrays: dict[str, Any] = {}
    sizes = {}
    for name, panel in panels.items():
        if isinstance(panel, Paths):
            arrays[name] = as_arrays(panel)
            sizes[name] = arrays[name].points.shape[-1]
        else:
            arrays[name] = as_pairs(name, panel)
            sizes[name] = size_of(arrays[name])

    size = max(sizes.values())
    require(
        size < 3 and set(sizes.values()) == {size},
        f"all panels must have one dimension, 1 or 2; got {sizes}.",
    )

    paths = [panel for panel in arrays.values() if isinstance(panel, Paths)]
    maps = [panel for panel in arrays.values() if not isinstance(panel, Paths)]
    counts = [len(cloud) for pairs in maps for cloud in clouds_of(pairs)]
    return _Drawing(arrays, size, dots_for(paths, 2.4, counts))


def _places(panel: Any) -> list[np.ndarray]:
    """All places of a panel of arrays, for its limits."""
    return finite_points(panel) if isinstance(panel, Paths) else clouds_of(panel)


def _draw(
    axes: Any, panel: Any, lows: np.ndarray, highs: np.ndarray, dots: Dots
) -> None:
    if isinstance(panel, Paths):
        draw_paths(axes, panel, lows, highs, dots)
    else:
        draw_map(axes, panel, lows, highs, dots)


def _shared_legend(figure: Figure, columns: int) -> None:
    """One entry for each label of all panels, in rows below them."""
    entries = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)

    style = {"fontsize": 8, "frameon": False, "labelcolor": INK}
    legend = figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(len(entries), columns, 6),
        **style,
    )
    style_handles(legend)
