"""The pictures of a long animation, written by several processes."""

import concurrent.futures as cf
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from flowkit.plotting._comparison import comparison_frames
from flowkit.plotting._latent_map import LatentMap
from flowkit.plotting._style import Number, require
from flowkit.plotting._trajectories import Paths


def write_frames(
    frames: Sequence[tuple[str, Mapping[str, Paths | LatentMap]]],
    paths: Sequence[str | os.PathLike[str]],
    *,
    limits: tuple[Number, Number],
    panel_folders: Mapping[str, str | os.PathLike[str]] = MappingProxyType({}),
    columns: int | None = None,
    dpi: Number = 100,
    num_workers: int = 0,
) -> None:
    """Writes the pictures of `comparison_frames` as PNG files of 256 colors.

    ```python
    fk.plotting.write_frames(frames, paths, limits=(-5, 5), num_workers=4)
    fk.plotting.animate(paths, "training.gif")
    ```

    **Arguments:**

    - `frames`: the title and the panels of each frame, as in `comparison_frames`; all have
      the panels of the first one.
    - `paths`: the file of each frame; folders are made if they do not exist.
    - `limits`, `columns`, `dpi`: as in `comparison_frames`.
    - `panel_folders`: panel -> folder. Pictures of this panel alone go there, under the names
      of the frames.
    - `num_workers`: the number of processes that draw; 0 draws in this one. A script that
      starts processes needs the line `if __name__ == "__main__":`.
    """
    require(
        len(frames) == len(paths) and len(frames) > 0,
        f"`frames` and `paths` must have one entry each per frame, got {len(frames)} and "
        f"{len(paths)}.",
    )
    require(num_workers >= 0, f"`num_workers` is {num_workers}; it must be at least 0.")
    files = [Path(path) for path in paths]
    folders = {name: Path(folder) for name, folder in panel_folders.items()}

    for folder in {file.parent for file in files} | set(folders.values()):
        folder.mkdir(parents=True, exist_ok=True)
    options = {"limits": limits, "columns": columns, "dpi": dpi}
    if num_workers == 0:
        _write(frames, files, folders, options)
        return

    # New interpreters: a forked one would share locks with the threads of JAX.
    context = multiprocessing.get_context("spawn")
    parts = np.array_split(np.arange(len(files)), min(num_workers, len(files)))
    with cf.ProcessPoolExecutor(len(parts), mp_context=context) as pool:
        running = [
            pool.submit(
                _write,
                [frames[i] for i in part],
                [files[i] for i in part],
                folders,
                options,
            )
            for part in parts
        ]
        # An error in a process is raised here.
        for one in running:
            one.result()


def _write(
    frames: Sequence[Any],
    files: Sequence[Path],
    folders: Mapping[str, Path],
    options: dict[str, Any],
) -> None:
    pictures = comparison_frames(frames, **options)
    for file, frame in zip(files, pictures, strict=True):
        # Finding 256 colors takes most of the time of writing a GIF; an octree is fast.
        image = frame.image.quantize(
            method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        image.save(file)
        for name, folder in folders.items():
            frame.panels[name].save(folder / file.name)
