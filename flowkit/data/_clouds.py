"""Data sets of point clouds made of images: one image each, or scenes of several."""

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
from flowkit.data._poses import check_range, in_plane, pose, Range, uniform
from flowkit.data._sets import PointSets


class PosedSets(NamedTuple):
    """Point clouds of one object each, with what was done to it: `scale (rotation x) + translation`.

    - `points`: `(b, n, 2)`.
    - `labels`: `(b,)`, what the object is.
    - `rotations`: `(b,)`, counter-clockwise angles in radians.
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
    """Point clouds of several objects each, with the object of every point and what was done to the objects.

    A scene of `m` objects has them in places 0 to `m - 1` of the axis `k`; the rest of it is `-1` in `digit_labels` and
    a pose that changes nothing. Points are in the order of their objects.

    - `points`: `(b, n, 2)`.
    - `mask`: `(b, n)`, true where a point is valid.
    - `object_ids`: `(b, n)`, the object in `0 ... k - 1` that a point belongs to; `-1` where it is not valid.
    - `digit_labels`: `(b, k)`, what the objects are.
    - `rotations`: `(b, k)`, counter-clockwise angles in radians.
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
        return PointSets(
            self.points,
            self.mask,
            np.asarray(np.sum(self.digit_labels >= 0, axis=1, dtype=np.int32)),
        )


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

    Points are drawn with replacement from the pixels brighter than `threshold`, then jittered. The centres of the
    outermost pixels along the longer side lie at -1 and 1, before the cloud is rotated about the origin, scaled and
    translated.

    **Arguments:**

    - `images`: grey images and their labels: `load_mnist`, `load_digits` or your own.
    - `num_points`: points per image, `n`.
    - `rotate`: ends of the uniform distribution of the angle; a full turn is `(0, 2 * np.pi)`. `None` for no rotation.
    - `scale`: the same for the factor.
    - `translate`: the same for each coordinate of the translation.
    - `threshold`: of the intensity. Only pixels above it are drawn.
    - `weighted`: whether those are drawn with probability proportional to their intensity, instead of equally likely.
    - `jitter`: a function `(key, shape, dtype)` that draws offsets in pixels, by default `N(0, 1/12)`, or half the
        width of a uniform one.
    - `empty`: a function `(key, shape, dtype)` that draws the points of an image without a pixel above the threshold,
        by default `N(0, 1/4)`. `None` makes it an error.
    """
    pixels = _candidates(images, threshold, weighted=weighted)
    point_key, pose_key = jr.split(key)
    poses = _Poses.draw(len(pixels), rotate, scale, translate, pose_key)
    points = poses.apply(_draw(pixels, num_points, jitter, empty, point_key))
    return PosedSets(points, np.asarray(images.labels), *poses.values())


def scenes(
    images: Images,
    num_scenes: int,
    num_points: int = 500,
    *,
    num_objects: int | tuple[int, int] = (1, 4),
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

    The number of objects is uniform, and so is the choice of images, with replacement. Each object is a cloud as
    `image_clouds` makes it, whose further arguments are the same.

    **Arguments:**

    - `images`: grey images and their labels.
    - `num_scenes`: `b`.
    - `num_points`: points per object; a scene has room for `n`, the largest number of objects times this.
    - `num_objects`: how many objects, or the smallest and the largest number `(low, high)`.
    - `rotate`, `scale`, `translate`: ends of uniform distributions, or `None` for no such move.
    """
    low, high = (
        (num_objects, num_objects) if isinstance(num_objects, int) else num_objects
    )
    if not 1 <= low <= high:
        raise ValueError(
            f"`num_objects` must be at least 1, or (low, high) with 1 <= low <= high; got {num_objects}."
        )
    if num_scenes < 1:
        raise ValueError(f"`num_scenes` must be at least 1, got {num_scenes}.")
    pixels = _candidates(images, threshold, weighted=weighted)
    choice_key, point_key, pose_key = jr.split(key, 3)
    rng = _generator(choice_key)
    there = np.arange(high) < rng.integers(low, high, (num_scenes, 1), endpoint=True)
    chosen = rng.integers(0, len(pixels), there.sum())
    poses = _Poses.draw(len(chosen), rotate, scale, translate, pose_key)
    points = poses.apply(_draw(pixels[chosen], num_points, jitter, empty, point_key))
    rotations, scales, translations = poses.values()
    ids = np.where(there, np.arange(high, dtype=np.int32), np.int32(-1))
    return Scenes(
        _place(points, there, 0).reshape(num_scenes, -1, 2),
        np.repeat(there, num_points, axis=1),
        np.repeat(ids, num_points, axis=1),
        _place(np.asarray(images.labels)[chosen], there, -1),
        _place(rotations, there, 0),
        _place(scales, there, 1),
        _place(translations, there, 0),
    )


def _candidates(images: Images, threshold: Number, *, weighted: bool) -> np.ndarray:
    pixels = np.asarray(images.images)
    if len(pixels) != len(images.labels):
        raise ValueError(
            f"`images` has {len(pixels)} images, but {len(images.labels)} labels; there must be one each."
        )
    above = pixels > threshold
    return np.where(above, pixels, 0) if weighted else above


def _draw(
    pixels: np.ndarray,
    num_points: int,
    jitter: Scalar | Noise,
    empty: Noise | None,
    key: PRNGKey,
) -> np.ndarray:
    unit = (max(pixels.shape[1:]) - 1) / 2
    return np.asarray(
        images_to_points(
            pixels, num_points, jitter=jitter, unit=unit, empty=empty, key=key
        )
    )


class _Poses(NamedTuple):
    """One pose per cloud; `None` is a move that is not made, and costs nothing."""

    num: int
    rotations: np.ndarray | None
    scales: np.ndarray | None
    translations: np.ndarray | None

    @classmethod
    def draw(
        cls,
        num: int,
        rotate: Range | None,
        scale: Range | None,
        translate: Range | None,
        key: PRNGKey,
    ):
        for name, ends in (
            ("rotate", rotate),
            ("scale", scale),
            ("translate", translate),
        ):
            if ends is not None:
                check_range(name, ends, positive=name == "scale")
        rng = _generator(key)
        draw = lambda ends, *shape: (
            None if ends is None else uniform(rng, ends, *shape).astype(np.float32)
        )
        return cls(num, draw(rotate, num), draw(scale, num), draw(translate, num, 2))

    def apply(self, points: np.ndarray) -> np.ndarray:
        matrices = None if self.rotations is None else in_plane(self.rotations)
        return pose(points, matrices, self.scales, self.translations)

    def values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Angles, factors and translations, of moves that were not made too."""
        zero, one = np.float32(0), np.float32(1)
        return (
            np.full(self.num, zero) if self.rotations is None else self.rotations,
            np.full(self.num, one) if self.scales is None else self.scales,
            np.full((self.num, 2), zero)
            if self.translations is None
            else self.translations,
        )


def _place(objects: np.ndarray, there: np.ndarray, rest: Any) -> np.ndarray:
    """Objects, one after the other, in their places of the scenes."""
    placed = np.full((*there.shape, *objects.shape[1:]), rest, objects.dtype)
    placed[there] = objects
    return placed


def _generator(key: PRNGKey) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jr.key_data(key)))
