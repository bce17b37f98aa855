"""Data sets of images by name or from a folder, with a held-out part.

Training images become batches while a model trains: they are resized, and files are read,
when a batch is asked for. So neither MNIST at 128 pixels nor a large folder has to fit into
memory. Held-out images are one array.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float, Int

from flowkit._checks import as_size
from flowkit._types import Number
from flowkit.data._as_images import as_images
from flowkit.data._batches import batches, read_options
from flowkit.data._cifar10 import load_cifar10
from flowkit.data._digits import load_digits
from flowkit.data._image_folder import (
    random_flips,
    read_pictures,
    ReadBatch,
)
from flowkit.data._mnist import load_mnist
from flowkit.data._order import make_order, step_numbers
from flowkit.data._pictures import center_crop, Fit, listed_pictures, whole_pictures
from flowkit.data._sets import Split
from flowkit.data._split import train_test_split


_NAMES = ("digits", "mnist", "cifar10")
_FOLDER_SIZE = 64


class LabeledImages(NamedTuple):
    """Images as a network takes them, with what they show.

    - `images`: `(b, h, w, c)`, in [-1, 1], row 0 at the top.
    - `labels`: `(b,)`, integers; `None` without classes.
    """

    images: Float[np.ndarray, "b h w c"]
    labels: Int[np.ndarray, " b"] | None = None


class ImageSplit(NamedTuple):
    """Images to learn from, and held-out ones.

    - `batches`: a function `(batch_size, *, seed=0)` that returns a grain dataset of
      shuffled batches of the training images, each `LabeledImages`.
    - `num_train`: the number of training images.
    - `held_out`: the held-out images.
    - `num_classes`: the number of classes; 0 without labels.
    """

    batches: Callable[..., grain.IterDataset]
    num_train: int
    held_out: LabeledImages
    num_classes: int


def image_split(
    name: str | os.PathLike[str],
    image_size: int | None = None,
    *,
    fit: Fit = center_crop,
    flip: bool = False,
    max_samples: int | None = None,
    test_samples: int = 512,
    test_fraction: Number = 0.1,
    skip_damaged: bool = False,
    num_threads: int = 4,
    seed: int = 0,
) -> ImageSplit:
    """A data set of images by its name, or the pictures in a folder.

    ```python
    split = fk.data.image_split("mnist", 32)
    batches = split.batches(64)
    ```

    **Arguments:**

    - `name`: `"digits"` (scikit-learn's, without a download), `"mnist"`, `"cifar10"`, or the
        path of a folder of pictures, see `image_folder`.
    - `image_size`: the height and width to resize to; by default the size of the data set,
        and 64 for a folder.
    - `fit`: how a picture of a folder becomes a square, `center_crop` or `stretch`.
    - `flip`: whether training images are mirrored from left to right at random.
    - `max_samples`: the maximum number of training images.
    - `test_samples`: the maximum number of held-out images.
    - `test_fraction`: the held-out fraction of `"digits"` and of a folder; MNIST and CIFAR-10
        have their own test sets.
    - `skip_damaged`, `num_threads`: as in `image_folder`.
    - `seed`: the seed of the split.
    """
    test_samples = as_size("test_samples", test_samples)
    if image_size is not None:
        image_size = as_size("image_size", image_size)
    if max_samples is not None:
        max_samples = as_size("max_samples", max_samples)

    splitting = {"test_fraction": test_fraction, "seed": seed}
    # A name comes first: a folder of that name can still be given as `./mnist`.
    if name not in _NAMES:
        paths = _pictures(name, skip_damaged=skip_damaged)
        # Numbers are split, because paths are no arrays.
        train, test = train_test_split(np.arange(len(paths)), **splitting)
        files = _Files(
            tuple(paths[number] for number in train[:max_samples]),
            image_size or _FOLDER_SIZE,
            fit,
            flip,
            num_threads,
        )
        return files.split([paths[number] for number in test[:test_samples]])

    split = _named(str(name), splitting)
    train = _first(split.train, max_samples)
    held_out = _prepared(_first(split.test, test_samples), image_size)
    # Counted before any are left out, so that few images have all classes, too.
    num_classes = int(split.train.labels.max()) + 1
    arrays = _Arrays(train, image_size, flip)
    return ImageSplit(arrays, len(train.images), held_out, num_classes)


def _named(name: str, splitting: dict[str, Any]) -> Split:
    if name == "digits":
        return load_digits(**splitting)
    # These have test sets of their own.
    return load_mnist() if name == "mnist" else load_cifar10()


def _pictures(name: str | os.PathLike[str], *, skip_damaged: bool) -> list[Path]:
    if not Path(name).is_dir():
        raise ValueError(
            f"`name` is {str(name)!r}: give one of {', '.join(_NAMES)}, or a folder of "
            "pictures."
        )
    return whole_pictures(listed_pictures(name), skip_damaged=skip_damaged)


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """Batches of images in memory, resized one batch at a time."""

    data: LabeledImages
    size: int | None
    flip: bool

    def __call__(self, batch_size: int, *, seed: int = 0) -> grain.IterDataset:
        return batches(self.data, batch_size, seed=seed, transform=self._prepare)

    def _prepare(self, batch: LabeledImages, rng: np.random.Generator) -> LabeledImages:
        # After the batch is gathered, so that only a batch has the larger size.
        batch = _prepared(batch, self.size)
        return _flipped(batch, rng) if self.flip else batch


@dataclasses.dataclass(frozen=True)
class _Files:
    """Batches of pictures, read from their files."""

    paths: tuple[Path, ...]
    size: int
    fit: Fit
    flip: bool
    num_threads: int

    def __call__(self, batch_size: int, *, seed: int = 0) -> grain.IterDataset:
        order = make_order(
            len(self.paths),
            batch_size,
            drop_rest=True,
            seed=seed,
            shard_index=None,
            num_shards=None,
        )
        read = ReadBatch(self.paths, self.size, self.fit, order, self._prepare)
        options = read_options(self.num_threads)
        return step_numbers(None).map(read).to_iter_dataset(options)

    def split(self, held_out: list[Path]) -> ImageSplit:
        """These pictures to learn from, and others that are held out."""
        # Zero threads means none during training, which has not started yet.
        threads = max(1, self.num_threads)
        images = read_pictures(held_out, self.size, self.fit, threads)
        return ImageSplit(self, len(self.paths), LabeledImages(images), 0)

    def _prepare(self, images: np.ndarray, rng: np.random.Generator) -> LabeledImages:
        batch = LabeledImages(images)
        return _flipped(batch, rng) if self.flip else batch


def _first(part: Any, size: int | None) -> LabeledImages:
    return LabeledImages(part.images[:size], part.labels[:size])


def _prepared(batch: LabeledImages, size: int | None) -> LabeledImages:
    return batch._replace(images=as_images(batch.images, size))


def _flipped(batch: LabeledImages, rng: np.random.Generator) -> LabeledImages:
    return batch._replace(images=random_flips(batch.images, rng))
