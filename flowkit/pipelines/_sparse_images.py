"""Small images by name, as intensities with an axis of channels."""

import os
from pathlib import Path

from flowkit import data


IMAGES = ("digits", "mnist", "cifar10")
"""The names of `small_images`."""


def small_images(name: str, *, seed: int = 0) -> data.Split:
    """Images `(b, h, w, c)` with intensities in [0, 1], to train and to test on.

    **Arguments:**

    - `name`: `digits` (8 x 8, gray, a tenth of them to test on), `mnist` (28 x 28, gray) or
        `cifar10` (32 x 32, color). The last two are looked for, and downloaded if necessary,
        as described in `fk.data.load_mnist` and `fk.data.load_cifar10`.
    - `seed`: the seed of the split of the digits.
    """
    if name == "cifar10":
        split = data.load_cifar10()
        return data.Split(split.train.images, split.test.images)
    if name == "mnist":
        split = data.load_mnist()
    elif name == "digits":
        split = data.load_digits(seed=seed)
    else:
        raise ValueError(f"`name` must be one of {', '.join(IMAGES)}, got {name!r}.")
    train, test = (data.as_images(part.images, low=0.0) for part in split)
    return data.Split(train, test)


def found_images() -> str:
    """`cifar10` if the environment variable `FLOWKIT_DATA` leads to it, else `digits`.

    Nothing is downloaded.
    """
    root = os.environ.get("FLOWKIT_DATA")
    for folder in (Path(root, "cifar10"), Path(root)) if root else ():
        try:
            # Read, not only looked for: damaged files are named before any work.
            data.load_cifar10(folder)
        except FileNotFoundError:
            continue
        return "cifar10"
    return "digits"
