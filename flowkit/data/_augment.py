"""What is done to batches of point clouds while they are drawn: `fk.data.batches(..., transform=...)`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from flowkit.data._poses import (
    check_angles,
    check_range,
    FULL_TURN,
    in_plane,
    pose,
    Range,
    uniform,
)
from flowkit.data._sets import Sets


_PER_POINT = ("points", "mask", "object_ids", "x0")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Moves every cloud of a batch at random: mirrors, rotates, scales, then translates it.

    `fk.data.batches(sets, 64, transform=fk.data.Augment())`. All points of a cloud move alike, about the origin; points
    that are not valid become zero. Noise `x0` that is paired with the points, as in `PairedSets`, is mirrored and
    rotated with its cloud, but neither scaled nor translated: it stays standard normal, and its order the best one. All
    other fields stay as they are.

    - `rotate`: ends of the uniform distribution of the angle, for points in the plane; or a function
        `(rng, num, dim)` that draws rotation matrices `(num, dim, dim)`: `AboutAxis()`, `any_rotation`.
    - `scale`: ends of the uniform distribution of one factor per cloud.
    - `translate`: ends of the uniform distribution of every coordinate of the translation.
    - `flip`: axes along which a cloud is mirrored with probability 1/2 each.

    `None` leaves a part out.
    """

    rotate: Range | Callable[..., Any] | None = FULL_TURN
    scale: Range | None = (0.7, 1.3)
    translate: Range | None = (-0.2, 0.2)
    flip: tuple[int, ...] = ()

    def __post_init__(self):
        if self.rotate is not None and not callable(self.rotate):
            check_angles("rotate", self.rotate)
        if self.scale is not None:
            check_range("scale", self.scale, positive=True)
        if self.translate is not None:
            check_range("translate", self.translate)

    def __call__(self, batch: Sets, rng: np.random.Generator) -> Sets:
        """The moved batch: a named tuple with `points` `(b, n, d)` and perhaps `mask`, or an array of points."""
        if isinstance(batch, np.ndarray):
            return pose(batch, *self._draw(batch.shape, rng))  # pyright: ignore[reportReturnType]
        sets: Any = batch
        points, x0 = np.asarray(sets.points), getattr(sets, "x0", None)
        axes, scales, translations = self._draw(points.shape, rng)
        moved = sets._replace(
            points=pose(points, axes, scales, translations, getattr(sets, "mask", None))
        )
        return moved if x0 is None else moved._replace(x0=pose(np.asarray(x0), axes))

    def _draw(
        self, shape: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[np.ndarray | None, ...]:
        """Orthogonal matrices, scales and translations for clouds of a shape."""
        num, _, dim = shape
        axes = self._linear(rng, num, dim)
        scales = None if self.scale is None else uniform(rng, self.scale, num)
        return (
            axes,
            scales,
            None if self.translate is None else uniform(rng, self.translate, num, dim),
        )

    def _linear(
        self, rng: np.random.Generator, num: int, dim: int
    ) -> np.ndarray | None:
        """The orthogonal matrices, flips first."""
        if not all(-dim <= axis < dim for axis in self.flip):
            raise ValueError(
                f"`flip` must name axes of the {dim} dimensions, got {self.flip}."
            )
        matrices = (
            None if self.rotate is None else _rotations(self.rotate, rng, num, dim)
        )
        if not self.flip:
            return matrices
        signs = np.ones((num, dim))
        signs[:, list(self.flip)] = rng.choice([-1.0, 1.0], (num, len(self.flip)))
        return (np.eye(dim) if matrices is None else matrices) * signs[:, None]


def _rotations(
    rotate: Range | Callable[..., Any], rng: np.random.Generator, num: int, dim: int
) -> np.ndarray:
    if callable(rotate):
        return rotate(rng, num, dim)
    if dim != 2:
        raise ValueError(
            f"`rotate` as two angles is for points in the plane, these have {dim} dimensions; "
            "use `fk.data.AboutAxis(...)`, `fk.data.any_rotation`, or None."
        )
    return in_plane(uniform(rng, rotate, num))


def subsample(sets: Sets, rng: np.random.Generator, *, num_points: int) -> Sets:
    """A random subset of the valid points of every cloud, without replacement and in random order.

    `functools.partial(fk.data.subsample, num_points=2048)` is a `transform` for `fk.data.batches`, which takes other
    points of each cloud every time.

    **Arguments:**

    - `sets`: a named tuple with `points` `(b, n, d)` and perhaps `mask`, `object_ids` and `x0`, which go with
        the points.
    - `num_points`: the size to cut down to. A cloud with fewer valid points keeps all of them, and its mask says so.

    **Returns:** sets of the same kind, with a mask if there was one.
    """
    values: Any = sets
    num, size = values.points.shape[:2]
    if not 1 <= num_points <= size:
        raise ValueError(
            f"`num_points` must lie in 1 ... {size}, the points there are; got {num_points}."
        )
    order = rng.random((num, size), np.float32)
    mask = getattr(values, "mask", None)
    if mask is not None:
        order += ~np.asarray(mask)  # valid ones first
    chosen = np.argpartition(order, num_points - 1, axis=1)[:, :num_points]
    chosen = np.take_along_axis(
        chosen, np.argsort(np.take_along_axis(order, chosen, axis=1), axis=1), axis=1
    )
    return values._replace(
        **{
            name: _take(values, name, chosen)
            for name in _PER_POINT
            if hasattr(values, name)
        }
    )


def _take(sets: Any, name: str, chosen: np.ndarray) -> np.ndarray | None:
    array = getattr(sets, name)
    return (
        None
        if array is None
        else np.asarray(array)[np.arange(len(chosen))[:, None], chosen]
    )
