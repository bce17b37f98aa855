r"""Folders of pictures, as batches that are read while a model trains, or as one array.

With $n$ pictures and batch size $B$, epoch $e$ has the $\lfloor n / B \rfloor$ batches
that the permutation $P_e$ fills; the rest of its pictures, different ones in each
epoch, are left out. Batch $i$ is a pure function of the seed and $i$, so threads may
read ahead without any effect on what comes next, or on where a run resumes.
"""

import dataclasses
import functools as ft
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Float

from flowkit._checks import as_size
from flowkit._types import AnyArray
from flowkit.data._batches import read_options
from flowkit.data._order import make_order, Order, step_numbers
from flowkit.data._pictures import (
    Fit,
    listed_pictures,
    read_picture,
    stretch,
    whole_pictures,
)


def image_folder(
    folder: str | os.PathLike,
    side: int,
    *,
    batch_size: int,
    fit: Fit = stretch,
    transform: Callable[[Any, np.random.Generator], Any] | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    skip_damaged: bool = False,
    num_threads: int = 4,
    shard_index: int | None = None,
    num_shards: int | None = None,
) -> grain.IterDataset:
    """A grain dataset of shuffled batches of the pictures in a folder.

    Pictures are all files that end in jpg, jpeg, png, bmp, tif or tiff, sorted by name;
    hidden files and subfolders are left out. They are turned upright by their EXIF data and
    converted to red, green and blue: transparent parts become white, and gray values of 16
    bits are scaled to 8. Of files with several pictures the first is read.

    Each epoch has its own order, and pictures that do not fill a batch at its end are
    dropped. Batch `i` is a pure function of `seed` and `i`: pass the dataset to
    `fk.training.fit`, whose checkpoints hold the position, and a resumed run sees the same
    batches.

    All files are read once before the first batch, to find damaged ones: headers, the
    checksums of PNG, and the ends of JPEG files are checked. BMP and TIFF are decoded.

    **Arguments:**

    - `folder`: the folder of the pictures.
    - `side`: the height and width to resize to, in pixels. Pictures that shrink are
        smoothed first.
    - `batch_size`: the size of a batch over all shards.
    - `fit`: a function `(picture, side)` of a Pillow image that returns one of `side` x
        `side` pixels: `fk.data.stretch` ignores proportions, `fk.data.center_crop` cuts out
        the middle.
    - `transform`: a function `(batch, rng)` that returns the batch to use, such as
        `fk.data.random_flips`. Each step and shard has a NumPy generator `rng` of its own.
    - `num_steps`: the number of batches; `None` means no end.
    - `seed`: the random seed of the permutations and of the transform.
    - `skip_damaged`: whether files that cannot be used are left out, with a warning that
        counts and names them. Otherwise they are an error.
    - `num_threads`: how many batches are read at the same time, ahead of the training; 0
        reads each when it is asked for.
    - `shard_index`, `num_shards`: this process takes the `shard_index`-th of `num_shards`
        equal parts of each batch. The default is JAX's own process index and count.

    **Returns:** a `grain.IterDataset` of float32 arrays `(b, side, side, 3)` in [-1, 1],
    row 0 at the top, where `b = batch_size // num_shards`.

    **Raises:** `ValueError` if the folder has no pictures or fewer than `batch_size`,
    and for files that are cut short, that are not pictures despite their names, that
    are so large that they may be meant to fill the memory, or whose samples have an
    unknown range.
    """
    side = as_size("side", side)
    paths = listed_pictures(folder)
    order = ft.partial(
        make_order,
        batch_size=batch_size,
        drop_rest=True,
        seed=seed,
        shard_index=shard_index,
        num_shards=num_shards,
    )
    records = step_numbers(num_steps)
    # Its errors come before the files are checked, which may take long.
    order(len(paths))
    options = read_options(num_threads)
    paths = whole_pictures(paths, skip_damaged=skip_damaged)
    read = ReadBatch(tuple(paths), side, fit, order(len(paths)), transform)
    return records.map(read).to_iter_dataset(options)


def load_image_folder(
    folder: str | os.PathLike,
    side: int,
    *,
    fit: Fit = stretch,
    skip_damaged: bool = False,
    num_threads: int = 4,
) -> Float[np.ndarray, "n {side} {side} 3"]:
    """All pictures of a folder as one array, for folders that fit into memory.

    A thousand pictures of 64 x 64 pixels take 49 MB. `fk.data.batches` makes shuffled
    batches of them. Arguments, conversions and errors are those of `image_folder`.

    **Returns:** float32 `(n, side, side, 3)` in [-1, 1], sorted by the names of the files.
    """
    side = as_size("side", side)
    num_threads = as_size("num_threads", num_threads)
    paths = whole_pictures(listed_pictures(folder), skip_damaged=skip_damaged)
    return read_pictures(paths, side, fit, num_threads)


def read_pictures(
    paths: Sequence[Path], side: int, fit: Fit, num_threads: int
) -> Float[np.ndarray, "n {side} {side} 3"]:
    """Picture files as one array."""
    images = np.empty((len(paths), side, side, 3), np.float32)

    def read(index: int) -> None:
        images[index] = read_picture(paths[index], side, fit)

    with ThreadPoolExecutor(num_threads) as threads:
        # All results are asked for, so that errors are raised.
        for _ in threads.map(read, range(len(paths))):
            pass
    return images


def random_flips(
    images: Float[AnyArray, "b h w c"], rng: np.random.Generator
) -> Float[np.ndarray, "b h w c"]:
    """Mirrors each image from left to right with probability 1/2.

    A `transform` of `image_folder` and `batches`.
    """
    images = np.asarray(images)
    flipped = rng.random(len(images)) < 0.5
    return np.where(flipped[:, None, None, None], images[:, :, ::-1], images)


@dataclasses.dataclass(frozen=True)
class ReadBatch:
    """Maps the number of a step to its batch.

    A class, because grain's worker processes cannot take a closure.
    """

    paths: tuple[Path, ...]
    side: int
    fit: Fit
    order: Order
    transform: Callable[[Any, np.random.Generator], Any] | None

    def __call__(self, step: int) -> Any:
        rows = self.order.rows(step)
        batch = np.stack(
            [read_picture(self.paths[row], self.side, self.fit) for row in rows]
        )
        if self.transform is None:
            return batch
        return self.transform(batch, self.order.rng(step))
