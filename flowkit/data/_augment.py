"""Random changes of batches of point clouds: `fk.data.batches(..., transform=...)`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flowkit._types import AnyArray
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
    """Moves every cloud of a batch at random: mirrors, rotates, scales, translates it.

    `fk.data.batches(sets, 64, transform=fk.data.Augment())`. All points of a cloud move
    alike, about the origin; points that are not valid become zero. Noise `x0` that is
    paired with the points, as in `PairedSets`, is mirrored and rotated with its cloud, but
    neither scaled nor translated: it stays standard normal, and the pairing stays optimal.
    All other fields are left unchanged. `None` leaves out a move.

    - `rotate`: the ends of the uniform distribution of the angle in radians, for points in
        the plane; or a function `(rng, num, dim)` that draws rotation matrices
        `(num, dim, dim)`: `AboutAxis()`, `any_rotation`.
    - `scale`: the ends of the uniform distribution of one factor per cloud.
    - `translate`: the ends of the uniform distribution of every coordinate of the
        translation.
    - `flip`: axes along which a cloud is mirrored with probability 1/2 each.
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
        """The moved batch.

        **Arguments:**

        - `batch`: a named tuple or a dict with `points` `(b, n, d)` and perhaps `mask` and
            `x0`, or an array of points.
        - `rng`: the generator of all random numbers.

        **Raises:** `ValueError` for a batch of another kind, and for points that are not
        real numbers.
        """
        arrays = _arrays(batch)
        points = arrays["points"]
        if not jnp.issubdtype(points.dtype, jnp.floating):
            raise ValueError(
                "`transform`: `fk.data.Augment` moves points that are real numbers, got "
                f"{points.dtype}; convert them by `points.astype(np.float32)`."
            )

        moves = self._draw(points.shape, rng)
        moved = {"points": pose(points, *moves, arrays.get("mask"))}
        if "x0" in arrays:
            moved["x0"] = pose(arrays["x0"], moves.matrices)
        return _replaced(batch, moved)

    def _draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> "_Moves":
        num, _, dim = shape
        # In this order, which decides what a seed gives.
        matrices = self._matrices(rng, num, dim)
        scales = None
        if self.scale is not None:
            scales = uniform(rng, self.scale, num)
        translations = None
        if self.translate is not None:
            translations = uniform(rng, self.translate, num, dim)

        return _Moves(matrices, scales, translations)

    def _matrices(
        self, rng: np.random.Generator, num: int, dim: int
    ) -> np.ndarray | None:
        """Flips, then rotations, as orthogonal matrices."""
        if not all(-dim <= axis < dim for axis in self.flip):
            raise ValueError(
                f"`flip` must name axes of the {dim} dimensions, got {self.flip}."
            )

        matrices = None
        if self.rotate is not None:
            matrices = _rotations(self.rotate, rng, num, dim)
        if not self.flip:
            return matrices

        signs = np.ones((num, dim))
        signs[:, list(self.flip)] = rng.choice([-1.0, 1.0], (num, len(self.flip)))
        if matrices is None:
            matrices = np.eye(dim)
        # Columns change their signs, not rows: the flip acts before the rotation.
        return matrices * signs[:, None]


def _arrays(batch: Any) -> dict[str, np.ndarray]:
    """The points of a batch and what goes with each of them, by name."""
    named: Any = {}
    if isinstance(batch, AnyArray):
        named = {"points": batch}
    elif isinstance(batch, dict):
        named = batch
    elif hasattr(batch, "_asdict"):
        named = batch._asdict()

    arrays = {}
    for name in _PER_POINT:
        if named.get(name) is not None:
            arrays[name] = np.asarray(named[name])
    if "points" not in arrays or arrays["points"].ndim != 3:
        shapes = {name: np.shape(array) for name, array in named.items()}
        raise ValueError(
            "`transform` changes clouds: `fk.data.PointSets`, another named tuple or a dict "
            "with `points` (b, n, d), or an array of points; got "
            f"{type(batch).__name__} of shapes {shapes}."
        )
    return arrays


def _replaced(batch: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The batch with other arrays of these names."""
    if isinstance(batch, AnyArray):
        return arrays["points"]
    if isinstance(batch, dict):
        return batch | arrays
    return batch._replace(**arrays)


class _Moves(NamedTuple):
    """What is applied to the clouds of a batch; `None` is a move that is left out."""

    matrices: np.ndarray | None
    scales: np.ndarray | None
    translations: np.ndarray | None


def _rotations(
    rotate: Range | Callable[..., Any], rng: np.random.Generator, num: int, dim: int
) -> np.ndarray:
    if callable(rotate):
        return rotate(rng, num, dim)
    if dim != 2:
        raise ValueError(
            "`rotate` as two angles is for points in the plane, but these have "
            f"{dim} dimensions; use `fk.data.AboutAxis(...)`, `fk.data.any_rotation`, or "
            "None."
        )
    return in_plane(uniform(rng, rotate, num))


def subsample(sets: Sets, rng: np.random.Generator, *, num_points: int) -> Sets:
    """A random subset of the valid points of every cloud, in random order.

    As the `transform` of `fk.data.batches`,
    `functools.partial(fk.data.subsample, num_points=2048)` takes different points
    of each cloud every time.

    **Arguments:**

    - `sets`: a named tuple or a dict with `points` `(b, n, d)` and perhaps `mask`,
        `object_ids` and `x0`, which go with the points; or an array of points.
    - `rng`: the generator of the choice, without replacement.
    - `num_points`: the size to cut down to. A cloud with fewer valid points keeps all of
        them, and its mask says so.

    **Returns:** sets of the same kind, with a mask if there was one.
    """
    arrays = _arrays(sets)
    num, size, _ = arrays["points"].shape
    if not 1 <= num_points <= size:
        raise ValueError(
            f"`num_points` must lie in 1 ... {size}, the number of points; got "
            f"{num_points}."
        )

    # Points with the smallest random numbers are kept; those of masked points are larger.
    order = rng.random((num, size), np.float32)
    if "mask" in arrays:
        order += ~arrays["mask"]
    chosen = np.argpartition(order, num_points - 1, axis=1)[:, :num_points]
    by_number = np.argsort(np.take_along_axis(order, chosen, axis=1), axis=1)
    chosen = np.take_along_axis(chosen, by_number, axis=1)

    rows = np.arange(num)[:, None]
    taken = {name: array[rows, chosen] for name, array in arrays.items()}
    return _replaced(sets, taken)
