"""Collections of point clouds on the host, and their units."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from flowkit._types import AnyArray
from flowkit.data._layout import check_layout, check_values


Sets = TypeVar("Sets")
"""`PointSets`, or another named tuple of arrays that has `points` and perhaps `mask`."""


class PointSets(NamedTuple):
    """Many point clouds, with what is known about each.

    This is a pytree, as `batches` and `train_test_split` take it.

    - `points`: `(b, n, d)`, real numbers.
    - `mask`: `(b, n)`, true where a point is valid; `None` if all are.
    - `labels`: `(b,)`, integers; `None` if there are none.
    """

    points: Float[np.ndarray, "b n d"]
    mask: Bool[np.ndarray, "b n"] | None = None
    labels: Int[np.ndarray, " b"] | None = None


class PairedSets(NamedTuple):
    """Many point clouds, each with the noise that its points are paired with.

    `subsample` takes the same rows of both.

    - `points`: `(b, n, d)`, real numbers.
    - `x0`: `(b, n, d)`, as `fk.superset_pairs` makes it.
    - `mask`: `(b, n)`, true where a point is valid; `None` if all are.
    - `labels`: `(b,)`, integers; `None` if there are none.
    """

    points: Float[np.ndarray, "b n d"]
    x0: Float[np.ndarray, "b n d"]
    mask: Bool[np.ndarray, "b n"] | None = None
    labels: Int[np.ndarray, " b"] | None = None


class Split(NamedTuple):
    """Data to learn from and data to judge by.

    - `train`, `test`: pytrees of arrays of the same structure.
    """

    train: Any
    test: Any


class Units(NamedTuple):
    """The affine map `(points - mean) / scale` and its inverse.

    Both take NumPy and JAX arrays `(..., d)`. Densities change with units: for a cloud of
    `n` points `log p(points) = log p(apply(points)) - n d log(scale)`.

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
    """Centers and scales a whole data set: mean zero, mean square one.

    One mean and one scale serve all clouds and axes, so relative sizes, places and
    proportions are kept. Points that are not valid become zero.

    **Returns:** the new sets, and the `Units` that map other sets (the held-out ones) in
    the same way, and samples back.
    """
    sets = to_host(sets)
    check_sets(sets, "`sets`")
    mask = np.ones(sets.points.shape[:2], bool) if sets.mask is None else sets.mask

    # Sums over millions of points lose digits in float32.
    valid = sets.points[mask].astype(np.float64)
    mean = valid.mean(axis=0)
    scale = np.sqrt(np.mean((valid - mean) ** 2))
    # The mean of equal numbers is rounded, and then they differ from it.
    if not np.ptp(valid, axis=0).any():
        raise ValueError(
            "`sets` has all of its points in one place, which has no scale; use other data."
        )

    dtype = sets.points.dtype
    units = Units(mean.astype(dtype), np.array(scale, dtype))
    points = np.where(mask[..., None], units.apply(sets.points), dtype.type(0))
    return sets._replace(points=points), units


def pad(
    clouds: Sequence[Float[AnyArray, "_ _"]],
    *,
    num_points: int | None = None,
    labels: Integer[AnyArray, " b"] | None = None,
) -> PointSets:
    """Clouds of different sizes as one array, with a mask of the points that exist.

    **Arguments:**

    - `clouds`: arrays `(n_i, d)`, each with at least one point.
    - `num_points`: the size to fill up to, by default that of the largest cloud.
    - `labels`: one integer per cloud.

    **Returns:** `PointSets` with a mask; the points in the padding are zero.
    """
    arrays = [np.asarray(cloud) for cloud in clouds]
    if not arrays:
        raise ValueError("`clouds` is empty; give at least one cloud.")

    check_alike(arrays)
    sizes = np.array([len(array) for array in arrays])
    if num_points is None:
        num_points = int(sizes.max())
    if sizes.max() > num_points:
        raise ValueError(
            f"`num_points` is {num_points}, but cloud {sizes.argmax()} has {sizes.max()}; "
            "raise it, or take fewer points by `fk.data.subsample` afterwards."
        )

    mask = np.arange(num_points) < sizes[:, None]
    points = np.zeros((*mask.shape, arrays[0].shape[1]), arrays[0].dtype)
    points[mask] = np.concatenate(arrays)
    sets = PointSets(points, mask, None if labels is None else np.asarray(labels))
    check_sets(sets, "`clouds`")
    return sets


def check_alike(clouds: Sequence[Float[AnyArray, "_ _"]]) -> None:
    """Raises a `ValueError` unless the clouds share their dimension and type."""
    kinds = {(cloud.shape[1], cloud.dtype) for cloud in clouds}
    if len(kinds) > 1:
        found = sorted(f"{dims} of {dtype}" for dims, dtype in kinds)
        raise ValueError(
            f"`clouds` must have equal dimensions and dtypes, got {', '.join(found)}; "
            "convert them."
        )


def to_host(sets: Any) -> Any:
    """The same sets as NumPy arrays."""
    return type(sets)(*(None if array is None else np.asarray(array) for array in sets))


def check_sets(sets: Any, where: str) -> None:
    """Raises a `ValueError` unless the sets are complete, consistent and finite.

    The message begins with `where`.
    """
    arrays = {
        name: array for name, array in sets._asdict().items() if array is not None
    }
    check_layout(arrays, type(sets), where)
    check_values(arrays, where)
