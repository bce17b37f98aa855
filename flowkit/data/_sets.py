"""Collections of point clouds on the host, and their units."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from flowkit._types import AnyArray


class PointSets(NamedTuple):
    """Many point clouds, with what is known about each: a pytree, as `batches` and `train_test_split` take it.

    - `points`: `(b, n, d)`, real numbers.
    - `mask`: `(b, n)`, true where a point is valid; `None` if all are.
    - `labels`: `(b,)`, integers; `None` if there are none.
    """

    points: Float[np.ndarray, "b n d"]
    mask: Bool[np.ndarray, "b n"] | None = None
    labels: Int[np.ndarray, " b"] | None = None


class Split(NamedTuple):
    """Data to learn from and data to judge by.

    - `train`, `test`: pytrees of arrays of the same structure.
    """

    train: Any
    test: Any


class Units(NamedTuple):
    """The affine map `(points - mean) / scale` and its inverse, on NumPy and JAX arrays `(..., d)` alike.

    Densities change with units: `log p(points) = log p(apply(points)) - n d log(scale)` for a cloud of `n`
    points.

    - `mean`: `(d,)`.
    - `scale`: `()`, positive.
    """

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, ""]

    def apply(self, points: Float[AnyArray, "*b d"]) -> Float[AnyArray, "*b d"]:
        """From the data's own units to these."""
        return (points - self.mean) / self.scale

    def undo(self, points: Float[AnyArray, "*b d"]) -> Float[AnyArray, "*b d"]:
        """Back to the data's own units."""
        return points * self.scale + self.mean


def normalize(sets: PointSets) -> tuple[PointSets, Units]:
    """Centres and scales a whole data set: mean zero, mean square one over all valid coordinates.

    One mean and one scale serve all clouds and axes, so that relative sizes, places and proportions are kept.
    Points that are not valid become zero.

    **Returns:** the new sets, and the `Units` that map other sets (the held-out ones) in the same way, and
    samples back.
    """
    sets = to_host(sets)
    check_sets(sets, "`sets`")
    mask = np.ones(sets.points.shape[:2], bool) if sets.mask is None else sets.mask
    valid = sets.points[mask].astype(np.float64)  # sums over millions of points lose digits in float32
    mean = valid.mean(axis=0)
    scale = np.sqrt(np.mean((valid - mean) ** 2))
    if scale == 0:
        raise ValueError("`sets` has all of its points in one place, which has no scale; use other data.")
    dtype = sets.points.dtype
    units = Units(mean.astype(dtype), np.array(scale, dtype))
    return sets._replace(points=np.where(mask[..., None], units.apply(sets.points), dtype.type(0))), units


def to_host(sets: PointSets) -> PointSets:
    """The same sets as NumPy arrays."""
    return PointSets(*(None if array is None else np.asarray(array) for array in sets))  # pyright: ignore[reportArgumentType]


def check_sets(sets: PointSets, where: str) -> None:
    """Raises a `ValueError` that begins with `where` unless the sets are complete, consistent and finite."""
    check_layout(sets.points, sets.mask, sets.labels, where)
    finite = np.isfinite(sets.points).all(axis=-1)
    if sets.mask is not None:
        seen = sets.mask.any(axis=1)
        if not seen.all():
            raise ValueError(
                f"{where}: `mask` hides every point of cloud {np.argmin(seen)} ({np.sum(~seen)} such); "
                "remove the cloud."
            )
        finite |= ~sets.mask
    if not finite.all():
        cloud, point = np.unravel_index(np.argmin(finite), finite.shape)
        raise ValueError(
            f"{where}: `points` is not finite at point {point} of cloud {cloud} ({np.sum(~finite)} such); "
            "remove those points, or set `mask` to False there."
        )


def check_layout(points: Any, mask: Any, labels: Any, where: str) -> None:
    """Raises a `ValueError` unless shapes and dtypes fit together. Looks at nothing else, so headers will do."""
    shape = tuple(points.shape)
    if points.dtype.kind != "f" or points.dtype.itemsize > 8:
        raise ValueError(f"{where}: `points` must be real numbers, got {points.dtype}; save it as float32.")
    if len(shape) != 3:
        raise ValueError(f"{where}: `points` must have shape (clouds, points, dimensions), got {shape}.")
    if 0 in shape:
        raise ValueError(f"{where}: `points` is empty, shape {shape}; save at least one cloud of one point.")
    if mask is not None and (mask.dtype != bool or tuple(mask.shape) != shape[:2]):
        raise ValueError(
            f"{where}: `mask` must be boolean of shape {shape[:2]}, as `points` has it; "
            f"got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    if labels is not None and (labels.dtype.kind not in "iu" or tuple(labels.shape) != shape[:1]):
        raise ValueError(
            f"{where}: `labels` must be integers of shape {shape[:1]}, one per cloud; "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )
