"""Animations made of figures."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from flowkit.plotting._style import check_path, Number, require


def animate(
    frames: Iterable[Figure | str | os.PathLike],
    path: str | os.PathLike,
    *,
    fps: Number = 10,
    dpi: Number = 100,
) -> Path:
    """Writes a GIF that loops, from figures or from pictures that were saved before.

    ```python
    frames = (
        fk.plotting.trajectories(times[:k], paths[:, :k], limits=(-3, 3))
        for k in range(2, len(times) + 1)
    )
    fk.plotting.animate(frames, "flow.gif")
    ```

    Figures are drawn one at a time, so a generator of them needs little memory. Give
    them equal `limits`.

    **Arguments:**

    - `frames`: figures, or the paths of pictures, all of one size.
    - `path`: the file, which ends in `.gif`; its folder is created if it does not
      exist.
    - `fps`: frames in a second, at most 50. GIFs count in hundredths of a second, so it
      is rounded.
    - `dpi`: dots per inch of the figures.

    **Returns:** the path.

    **Raises:** `ValueError`, before any frame is drawn, for a path with another ending
    and for a folder that cannot be written to; later for frames of different sizes.
    """
    require(0 < fps <= 50, f"`fps` is {fps}; it must be positive and at most 50.")
    require(dpi > 0, f"`dpi` is {dpi}; it must be positive.")

    path = Path(path)
    require(
        path.suffix.lower() == ".gif",
        f"`path` is {path}; animations are GIFs, so it must end in .gif.",
    )
    check_path(path)

    images = []
    for frame in frames:
        images.append(_image(frame, dpi))
        require(
            images[-1].size == images[0].size,
            f"`frames` must have one size, but frame {len(images) - 1} "
            f"has {images[-1].size} pixels and the first one {images[0].size}; "
            "give figures equal panels and limits.",
        )
    require(bool(images), "`frames` is empty; an animation needs at least one.")

    # GIFs count hundredths of a second, and zero loops are without end.
    milliseconds = 10 * round(100 / fps)
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=milliseconds,
        loop=0,
    )

    return path


def _image(frame: Figure | str | os.PathLike, dpi: Number) -> Image.Image:
    """A picture with 256 colors, one byte for each pixel."""
    source: Any = frame
    if isinstance(frame, Figure):
        source = io.BytesIO()
        frame.savefig(source, format="png", dpi=dpi)
    with Image.open(source) as image:
        # Dithering would flicker from frame to frame and make the file larger.
        return image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
