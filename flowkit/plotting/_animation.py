"""Animations from figures."""

import io
import os
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from flowkit.plotting._style import Number, require


def animate(
    frames: Iterable[Figure | str | os.PathLike],
    path: str | os.PathLike,
    *,
    fps: Number = 10,
    dpi: Number = 100,
) -> Path:
    """Writes a GIF that loops, from figures or from pictures that were saved before.

    ```python
    limits = (-3, 3)
    frames = (fk.plotting.trajectories(times[:k], paths[:, :k], limits=limits) for k in range(2, len(times) + 1))
    fk.plotting.animate(frames, "flow.gif")
    ```

    Figures are drawn one at a time, so a generator of them needs little memory. Give them equal `limits`.

    **Arguments:**

    - `frames`: figures, or the paths of pictures, all of one size.
    - `path`: of the GIF; its folder is made if need be.
    - `fps`: frames in a second, at most 50; GIFs count in hundredths of a second, so it is rounded.
    - `dpi`: of figures, in dots per inch.

    **Returns:** the path.
    """
    require(0 < fps <= 50, f"`fps` is {fps}; it must be positive and at most 50.")
    require(dpi > 0, f"`dpi` is {dpi}; it must be positive.")
    images = []
    for frame in frames:
        images.append(_image(frame, dpi))
        require(
            images[-1].size == images[0].size,
            f"`frames` must have one size, but frame {len(images) - 1} has {images[-1].size} pixels and the first one "
            f"{images[0].size}; give figures equal panels and limits.",
        )
    require(bool(images), "`frames` is empty; an animation needs at least one.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    duration = 10 * round(100 / fps)  # of a frame, in milliseconds
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=duration,
        loop=0,
    )
    return path


def _image(frame: Figure | str | os.PathLike, dpi: Number) -> Image.Image:
    """With 256 colours, one byte for each pixel."""
    if isinstance(frame, Figure):
        source = io.BytesIO()
        frame.savefig(source, format="png", dpi=dpi)
    else:
        source = frame
    with Image.open(source) as image:
        return image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
