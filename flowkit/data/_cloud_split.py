"""Data sets of point clouds by name, with held-out shapes in two versions.

An encoder sees one version of a held-out shape, and the reconstruction is compared with the
other. The distance between the two versions is the floor of every reconstruction error.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.random as jr
import numpy as np

from flowkit._types import Number
from flowkit.data._augment import subsample
from flowkit.data._clouds import image_clouds, scenes
from flowkit.data._digits import digits
from flowkit.data._mnist import load_mnist
from flowkit.data._npz import load_npz
from flowkit.data._sets import normalize, PointSets, Units
from flowkit.data._split import train_test_split


_TURN = (0.0, 2 * np.pi)
_SHIFT = (-1.5, 1.5)

DIGIT_POSES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "single": {},
        "rotated": {"rotate": _TURN},
        "translated": {"translate": _SHIFT},
        "rotated-translated": {"rotate": _TURN, "translate": _SHIFT},
    }
)
"""Random poses of single digits by name, as options of `image_clouds`."""

SCENE_POSES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "scenes": {},
        "scenes-rotated": {"rotate": _TURN},
        "scenes-rotated-scaled": {"rotate": _TURN, "scale": (0.5, 1.5)},
    }
)
"""Random poses of the digits of a scene by name, as options of `scenes`."""

MNIST_CLOUDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "mnist" if name == "single" else f"mnist-{name}": poses
        for name, poses in DIGIT_POSES.items()
    }
)
"""The data sets of `cloud_split` that have one MNIST digit in each cloud."""


class CloudSplit(NamedTuple):
    """Clouds to learn from, and two versions of every held-out shape.

    - `train`: the training clouds.
    - `seen`: held-out clouds, for the encoder.
    - `other`: other points of the same shapes in the same order, for comparison.
    - `units`: for a file, the map to the units of these clouds and back; `None` for named
      data sets, whose units are unchanged.
    """

    train: PointSets
    seen: PointSets
    other: PointSets
    units: Units | None = None


def cloud_split(
    name: str | os.PathLike[str],
    num_points: int = 64,
    *,
    max_samples: int | None = None,
    test_samples: int = 360,
    draws: int = 16,
    test_fraction: Number = 0.2,
    seed: int = 0,
) -> CloudSplit:
    """A data set of point clouds by its name, or the path of a file.

    **Arguments:**

    - `name`: `"digits"` (scikit-learn's, without a download), a name in `MNIST_CLOUDS` or
        `SCENE_POSES`, or the path of an `.npz` file as `save_npz` writes it, which is
        normalized.
    - `num_points`: the number of points of a digit and of a held-out cloud. Training clouds
        of MNIST and of files keep all of their points.
    - `max_samples`: the maximum number of training clouds; for scenes 20,000 by default.
    - `test_samples`: the maximum number of held-out shapes.
    - `draws`: the number of clouds of each training image of `"digits"`.
    - `test_fraction`: the held-out fraction of `"digits"` and of files. MNIST has its own
        test set.
    - `seed`: the seed of the split and of all points.

    **Raises:** `ValueError` for a name that is none of these, for sizes below 1, and for a
    file that has a cloud with fewer than two valid points, which cannot be split into two
    versions.
    """
    for option, value in {
        "num_points": num_points,
        "test_samples": test_samples,
    }.items():
        if value < 1:
            raise ValueError(f"`{option}` must be at least 1, got {value}.")

    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples` must be at least 1, got {max_samples}.")

    options = {"test_fraction": test_fraction, "seed": seed}
    if name == "digits":
        split = _digits(num_points, draws, options)
    elif name in MNIST_CLOUDS:
        split = _mnist(MNIST_CLOUDS[str(name)], num_points, test_samples, seed)
    elif name in SCENE_POSES:
        num_scenes = max_samples or 20_000
        sizes = (num_scenes, test_samples, num_points)
        split = _scenes(SCENE_POSES[str(name)], sizes, seed)
    elif Path(name).suffix == ".npz":
        split = _file(name, num_points, options)
    else:
        known = ["digits", *MNIST_CLOUDS, *SCENE_POSES]
        raise ValueError(
            f"`name` is {str(name)!r}: give one of {', '.join(known)}, or the path of an "
            ".npz file."
        )

    # Cut at the end, so that fewer clouds are the first ones of the same split.
    return CloudSplit(
        _first(split.train, max_samples),
        _first(split.seen, test_samples),
        _first(split.other, test_samples),
        split.units,
    )


def halve(sets: PointSets, *, seed: int = 0) -> tuple[PointSets, PointSets]:
    """A random half of the valid points of every cloud, and the other half.

    Of an odd number of points one is left out, so that both halves are equally large.

    **Raises:** `ValueError` for a cloud with fewer than two valid points.
    """
    valid = _valid(sets)
    _check_halves(valid, "`sets`")
    num, size = valid.shape

    # Valid points come first, in random order.
    rank = np.where(valid, np.random.default_rng(seed).random((num, size)), 2)
    order = np.argsort(rank, axis=1)
    points = np.take_along_axis(np.asarray(sets.points), order[..., None], axis=1)

    if sets.mask is None:
        half = size // 2
        first = sets._replace(points=points[:, :half])
        # An odd point is left out, so that both halves have one size.
        return first, sets._replace(points=points[:, half : 2 * half])

    place = np.arange(size)
    half = valid.sum(axis=1, keepdims=True) // 2
    in_first = place < half
    in_second = (place >= half) & (place < 2 * half)
    first = sets._replace(points=points, mask=in_first)
    return first, sets._replace(points=points, mask=in_second)


def _valid(sets: PointSets) -> np.ndarray:
    if sets.mask is None:
        return np.ones(sets.points.shape[:2], bool)
    return np.asarray(sets.mask)


def _check_halves(valid: np.ndarray, where: str) -> None:
    few = valid.sum(axis=1) < 2
    if few.any():
        raise ValueError(
            f"{where}: cloud {np.argmax(few)} ({np.sum(few)} such) has fewer than two valid "
            "points, so it has no two halves; remove the cloud."
        )


def _digits(num_points: int, draws: int, options: dict[str, Any]) -> CloudSplit:
    train_key, test_key = jr.split(jr.key(options["seed"]))
    train = digits(num_points, draws=draws, **options, key=train_key).train

    # The two draws of an image are the two versions of a shape.
    test = digits(num_points, draws=2, **options, key=test_key).test
    half = len(test.points) // 2
    other = jax.tree.map(lambda leaf: leaf[half:], test)
    return CloudSplit(train, _first(test, half), other)


def _mnist(
    poses: Mapping[str, Any], num_points: int, test_samples: int, seed: int
) -> CloudSplit:
    images = load_mnist()
    train_key, test_key = jr.split(jr.key(seed))
    train = image_clouds(images.train, **poses, key=train_key).sets()

    some = _first(images.test, test_samples)
    test = image_clouds(some, 2 * num_points, **poses, key=test_key).sets()
    return CloudSplit(train, *halve(test, seed=seed))


def _scenes(
    poses: Mapping[str, Any], sizes: tuple[int, int, int], seed: int
) -> CloudSplit:
    num_train, num_test, num_points = sizes
    images = load_mnist()
    train_key, test_key = jr.split(jr.key(seed))
    train = scenes(images.train, num_train, **poses, key=train_key).sets()

    size = 2 * num_points
    test = scenes(images.test, num_test, size, **poses, key=test_key).sets()
    return CloudSplit(train, *halve(test, seed=seed))


def _file(
    path: str | os.PathLike[str], num_points: int, options: dict[str, Any]
) -> CloudSplit:
    sets, units = normalize(load_npz(path))
    # Any cloud may be held out. Its number in the file is not that in the split.
    _check_halves(_valid(sets), f"`{os.fspath(path)}`")
    train, test = train_test_split(sets, **options, stratify=sets.labels)

    # Clouds are judged with as many points as there are in training.
    size = 2 * num_points
    if test.points.shape[1] > size:
        rng = np.random.default_rng(options["seed"])
        test = subsample(test, rng, num_points=size)
    return CloudSplit(train, *halve(test, seed=options["seed"]), units)


def _first(data: Any, size: int | None) -> Any:
    return jax.tree.map(lambda leaf: leaf[:size], data)
