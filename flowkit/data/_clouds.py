"""Data sets of point clouds made of images: one image each, or scenes of several."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float, Int

from flowkit._types import Number, PRNGKey, Scalar
from flowkit.data._images import (
    Images,
    images_to_points,
    Noise,
    pixel_normal,
    wide_normal,
)
from flowkit.data._poses import (
    check_angles,
    check_range,
    in_plane,
    pose,
    Range,
    uniform,
)
from flowkit.data._sets import PointSets


class PosedSets(NamedTuple):
    """Point clouds of one object each, with its pose, `scale (rotation x) + translation`.

    - `points`: `(b, n, 2)`.
    - `labels`: `(b,)`, what the object is.
    - `rotations`: `(b,)`, counterclockwise angles in radians.
    - `scales`: `(b,)`.
    - `translations`: `(b, 2)`.
    - `mask`: `(b, n)`, true where a point is valid; `None` if all are.
    """

    points: Float[np.ndarray, "b n d"]
    labels: Int[np.ndarray, " b"]
    rotations: Float[np.ndarray, " b"]
    scales: Float[np.ndarray, " b"]
    translations: Float[np.ndarray, "b d"]
    mask: Bool[np.ndarray, "b n"] | None = None

    def sets(self) -> PointSets:
        """The points, their mask and labels alone."""
        return PointSets(self.points, self.mask, self.labels)


class Scenes(NamedTuple):
    """Point clouds of several objects each, with the pose of every object.

    The `m` objects of a scene are at positions 0 to `m - 1` of the axis `k`. The rest of
    this axis holds `-1` in `digit_labels` and, in the other arrays, a pose that changes
    nothing. Points are in the order of their objects.

    - `points`: `(b, n, 2)`.
    - `mask`: `(b, n)`, true where a point is valid.
    - `object_ids`: `(b, n)`, the object in `0 ... k - 1` that a point belongs to; `-1`
        where it is not valid.
    - `digit_labels`: `(b, k)`, what the objects are.
    - `rotations`: `(b, k)`, counterclockwise angles in radians.
    - `scales`: `(b, k)`.
    - `translations`: `(b, k, 2)`.
    """

    points: Float[np.ndarray, "b n d"]
    mask: Bool[np.ndarray, "b n"]
    object_ids: Int[np.ndarray, "b n"]
    digit_labels: Int[np.ndarray, "b k"]
    rotations: Float[np.ndarray, "b k"]
    scales: Float[np.ndarray, "b k"]
    translations: Float[np.ndarray, "b k d"]

    def sets(self) -> PointSets:
        """The points and their mask, with the number of objects as labels."""
        num_objects = np.sum(self.digit_labels >= 0, axis=1, dtype=np.int32)
        return PointSets(self.points, self.mask, np.asarray(num_objects))


def image_clouds(
    images: Images,
    num_points: int = 500,
    *,
    rotate: Range | None = None,
    scale: Range | None = None,
    translate: Range | None = None,
    threshold: Number = 128 / 255,
    weighted: bool = False,
    jitter: Scalar | Noise = pixel_normal,
    empty: Noise | None = wide_normal,
    key: PRNGKey,
) -> PosedSets:
    """One cloud of each image, in a random pose.

    Points are drawn with replacement from the pixels brighter than `threshold`, then
    jittered. The centers of the outermost pixels along the longer side lie at -1 and 1,
    before the cloud is rotated about the origin, scaled, and translated.

    **Arguments:**

    - `images`: gray images in `[0, 1]` and their labels: `load_mnist`, `load_digits`, or
        your own. Divide images in `0 ... 255` by 255.
    - `num_points`: the number of points per image, `n`.
    - `rotate`: the ends of the uniform distribution of the angle, in radians; a full turn
        is `(0, 2 * np.pi)`, and `None` means no rotation.
    - `scale`: the same for the factor.
    - `translate`: the same for each coordinate of the translation.
    - `threshold`: an intensity in `[0, 1)`. Only brighter pixels are drawn.
    - `weighted`: whether these are drawn with probability proportional to their
        intensity, instead of equally likely.
    - `jitter`: a function `(key, shape, dtype)` that draws offsets in pixels, by default
      `N(0, 1/12)`; or a number, half the width of a uniform distribution.
    - `empty`: a function `(key, shape, dtype)` that draws the points of an image without
        a pixel above the threshold, by default `N(0, 1/4)`. `None` makes it an error.
    """
    pixels = _candidates(images, threshold, weighted=weighted)
    point_key, pose_key = jr.split(key)
    poses = _draw_poses(len(pixels), rotate, scale, translate, pose_key)
    points = poses.apply(_draw_points(pixels, num_points, jitter, empty, point_key))
    return PosedSets(
        points,
        np.asarray(images.labels),
        poses.rotations,
        poses.scales,
        poses.translations,
    )


def scenes(
    images: Images,
    num_scenes: int,
    num_points: int = 500,
    *,
    num_objects: int | Sequence[int] = (1, 4),
    rotate: Range | None = None,
    scale: Range | None = None,
    translate: Range | None = (-3.0, 3.0),
    threshold: Number = 128 / 255,
    weighted: bool = False,
    jitter: Scalar | Noise = pixel_normal,
    empty: Noise | None = wide_normal,
    key: PRNGKey,
) -> Scenes:
    """Scenes of several images each, every one in a random pose of its own.

    The number of objects is uniform, and so is the choice of images, with replacement.
    Each object is a cloud as in `image_clouds`, which explains the other arguments.

    **Arguments:**

    - `images`: gray images in `[0, 1]` and their labels.
    - `num_scenes`: the number of scenes, `b`.
    - `num_points`: the number of points per object. A scene has room for `n`, the largest
        number of objects times this.
    - `num_objects`: the number of objects, or the smallest and the largest `(low, high)`.
    - `rotate`, `scale`, `translate`: the ends of uniform distributions, or `None` for no
        such move.
    """
    low, high = _object_range(num_objects)
    if num_scenes < 1:
        raise ValueError(f"`num_scenes` must be at least 1, got {num_scenes}.")

    pixels = _candidates(images, threshold, weighted=weighted)
    choice_key, point_key, pose_key = jr.split(key, 3)
    rng = _generator(choice_key)
    counts = rng.integers(low, high, (num_scenes, 1), endpoint=True)
    there = np.arange(high) < counts
    chosen = rng.integers(0, len(pixels), there.sum())

    poses = _draw_poses(len(chosen), rotate, scale, translate, pose_key)
    clouds = _draw_points(pixels[chosen], num_points, jitter, empty, point_key)
    points = _place(poses.apply(clouds), there, 0)
    ids = np.where(there, np.arange(high, dtype=np.int32), np.int32(-1))
    return Scenes(
        points=points.reshape(num_scenes, -1, 2),
        mask=np.repeat(there, num_points, axis=1),
        object_ids=np.repeat(ids, num_points, axis=1),
        digit_labels=_place(np.asarray(images.labels)[chosen], there, -1),
        rotations=_place(poses.rotations, there, 0),
        # A place without an object has the factor 1, a pose that changes nothing.
        scales=_place(poses.scales, there, 1),
        translations=_place(poses.translations, there, 0),
    )


def _object_range(num_objects: int | Sequence[int]) -> tuple[int, int]:
    ends = num_objects if isinstance(num_objects, Sequence) else [num_objects] * 2
    if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
        raise ValueError(
            "`num_objects` must be at least 1, or (low, high) with 1 <= low <= high; "
            f"got {num_objects}."
        )
    return operator.index(ends[0]), operator.index(ends[1])


def _candidates(images: Images, threshold: Number, *, weighted: bool) -> np.ndarray:
    """The intensities of pixels above the threshold, or that they are above it."""
    pixels = np.asarray(images.images)
    if len(pixels) != len(images.labels):
        raise ValueError(
            f"`images` has {len(pixels)} images, but {len(images.labels)} labels; give "
            "one label per image."
        )

    _check_intensities(pixels)
    if not 0 <= threshold < 1:
        raise ValueError(
            f"`threshold` must be an intensity in [0, 1), got {threshold}; divide one in "
            "0 ... 255 by 255."
        )

    above = pixels > threshold
    return np.where(above, pixels, 0) if weighted else above


def _check_intensities(pixels: np.ndarray) -> None:
    """Raises unless they lie in [0, 1]; a millionth above it is rounding."""
    if pixels.size == 0 or pixels.dtype == bool:
        return

    low = pixels.min()
    high = pixels.max()
    # Not `low < 0`, which NaN would pass.
    if not (low >= 0 and high <= 1 + 1e-6):
        raise ValueError(
            f"`images` must have intensities in [0, 1], these range from {low} to {high}; "
            "divide images in 0 ... 255 by 255, and shift those with negative entries."
        )


def _draw_points(
    pixels: np.ndarray,
    num_points: int,
    jitter: Scalar | Noise,
    empty: Noise | None,
    key: PRNGKey,
) -> np.ndarray:
    unit = (max(pixels.shape[1:]) - 1) / 2
    points = images_to_points(
        pixels, num_points, jitter=jitter, unit=unit, empty=empty, key=key
    )
    return np.asarray(points)


class _Poses(NamedTuple):
    """One pose per cloud, also where nothing moves."""

    rotations: np.ndarray
    scales: np.ndarray
    translations: np.ndarray
    made: tuple[bool, bool, bool]
    """Which moves are made; the others would cost time and change nothing."""

    def apply(self, points: np.ndarray) -> np.ndarray:
        rotates, scales, translates = self.made
        return pose(
            points,
            in_plane(self.rotations) if rotates else None,
            self.scales if scales else None,
            self.translations if translates else None,
        )


def _draw_poses(
    num: int,
    rotate: Range | None,
    scale: Range | None,
    translate: Range | None,
    key: PRNGKey,
) -> _Poses:
    if rotate is not None:
        check_angles("rotate", rotate)
    if scale is not None:
        check_range("scale", scale, positive=True)
    if translate is not None:
        check_range("translate", translate)

    # The order of these draws decides what a key gives: keep it.
    rng = _generator(key)
    rotations = np.zeros(num, np.float32)
    scales = np.ones(num, np.float32)
    translations = np.zeros((num, 2), np.float32)
    if rotate is not None:
        rotations = uniform(rng, rotate, num).astype(np.float32)
    if scale is not None:
        scales = uniform(rng, scale, num).astype(np.float32)
    if translate is not None:
        translations = uniform(rng, translate, num, 2).astype(np.float32)
    made = (rotate is not None, scale is not None, translate is not None)

    return _Poses(rotations, scales, translations, made)


def _place(objects: np.ndarray, there: np.ndarray, rest: Any) -> np.ndarray:
    """Objects, one after the other, in their places of the scenes."""
    placed = np.full((*there.shape, *objects.shape[1:]), rest, objects.dtype)
    # A boolean index runs through the scenes in order, as the objects do.
    placed[there] = objects
    return placed


def _generator(key: PRNGKey) -> np.random.Generator:
    # Poses are drawn on the host, but they depend on the key like all the rest.
    return np.random.default_rng(np.asarray(jr.key_data(key)))
