"""Collections of point clouds on the host, and their units."""

import types
from collections.abc import Sequence
from typing import Any, get_args, get_origin, get_type_hints, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from flowkit._types import AnyArray


Sets = TypeVar("Sets")
"""`PointSets`, or another named tuple of arrays that has `points` and perhaps `mask`."""


class PointSets(NamedTuple):
    """Many point clouds, with what is known about each: a pytree, as `batches` and `train_test_split` take it.

    - `points`: `(b, n, d)`, real numbers.
    - `mask`: `(b, n)`, true where a point is valid; `None` if all are.
    - `labels`: `(b,)`, integers; `None` if there are none.
    """

    points: Float[np.ndarray, "b n d"]
    mask: Bool[np.ndarray, "b n"] | None = None
    labels: Int[np.ndarray, " b"] | None = None


class PairedSets(NamedTuple):
    """Many point clouds, each with the noise its points are paired with; `subsample` takes the same rows of both.

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
    valid = sets.points[mask].astype(
        np.float64
    )  # sums over millions of points lose digits in float32
    mean = valid.mean(axis=0)
    scale = np.sqrt(np.mean((valid - mean) ** 2))
    if scale == 0:
        raise ValueError(
            "`sets` has all of its points in one place, which has no scale; use other data."
        )
    dtype = sets.points.dtype
    units = Units(mean.astype(dtype), np.array(scale, dtype))
    return sets._replace(
        points=np.where(mask[..., None], units.apply(sets.points), dtype.type(0))
    ), units


def pad(
    clouds: Sequence[Float[AnyArray, "_ _"]],
    *,
    num_points: int | None = None,
    labels: Int[AnyArray, " b"] | None = None,
) -> PointSets:
    """Clouds of different sizes as one array, with a mask that says which points are there.

    **Arguments:**

    - `clouds`: arrays `(n_i, d)`, each of at least one point.
    - `num_points`: the size to fill up to, by default that of the largest cloud.
    - `labels`: one integer per cloud.

    **Returns:** `PointSets` with a mask; points that are not there are zero.
    """
    arrays = [np.asarray(cloud) for cloud in clouds]
    if not arrays:
        raise ValueError("`clouds` is empty; there must be at least one.")
    kinds = {(array.shape[1], array.dtype) for array in arrays}
    if len(kinds) > 1:
        found = sorted(f"{dims} of {dtype}" for dims, dtype in kinds)
        raise ValueError(
            f"`clouds` must have equal dimensions and dtypes, got {', '.join(found)}; convert them."
        )
    sizes = np.array([len(array) for array in arrays])
    num_points = int(sizes.max()) if num_points is None else num_points
    if sizes.max() > num_points:
        raise ValueError(
            f"`num_points` is {num_points}, but cloud {sizes.argmax()} has {sizes.max()}; raise it, or take fewer "
            "points by `fk.data.subsample` afterwards."
        )
    mask = np.arange(num_points) < sizes[:, None]
    points = np.zeros((*mask.shape, arrays[0].shape[1]), arrays[0].dtype)
    points[mask] = np.concatenate(arrays)
    sets = PointSets(points, mask, None if labels is None else np.asarray(labels))
    check_sets(sets, "`clouds`")
    return sets


def to_host(sets: Any) -> Any:
    """The same sets as NumPy arrays."""
    return type(sets)(*(None if array is None else np.asarray(array) for array in sets))


def check_sets(sets: Any, where: str) -> None:
    """Raises a `ValueError` that begins with `where` unless the sets are complete, consistent and finite."""
    arrays = {
        name: array for name, array in sets._asdict().items() if array is not None
    }
    check_layout(arrays, type(sets), where)
    finite = np.isfinite(sets.points).all(axis=-1)
    mask = arrays.pop("mask", None)
    if mask is not None:
        seen = mask.any(axis=1)
        if not seen.all():
            raise ValueError(
                f"{where}: `mask` hides every point of cloud {np.argmin(seen)} ({np.sum(~seen)} such); "
                "remove the cloud."
            )
        finite |= ~mask
    if not finite.all():
        cloud, point = np.unravel_index(np.argmin(finite), finite.shape)
        raise ValueError(
            f"{where}: `points` is not finite at point {point} of cloud {cloud} ({np.sum(~finite)} such); "
            "remove those points, or set `mask` to False there."
        )
    del arrays["points"]
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(
                f"{where}: `{name}` is not finite everywhere; mend it or leave it out."
            )


class Field(NamedTuple):
    """What an annotation says of an array: `Float[np.ndarray, "b n d"] | None`."""

    kinds: str
    axes: tuple[str, ...]
    required: bool


_KINDS = {"Float": "f", "Int": "iu", "Bool": "b"}
_WORDS = {"f": "real numbers", "iu": "integers", "b": "boolean"}


def fields_of(kind: type) -> dict[str, Field]:
    """The arrays of a named tuple, from its annotations."""
    fields = {}
    for name, hint in get_type_hints(kind).items():
        optional = get_origin(hint) is types.UnionType
        array = get_args(hint)[0] if optional else hint
        fields[name] = Field(
            _KINDS[array.dtype.__name__], tuple(array.dim_str.split()), not optional
        )
    return fields


def check_layout(arrays: dict[str, Any], kind: type, where: str) -> None:
    """Raises a `ValueError` unless shapes and dtypes fit together. Looks at nothing else, so headers will do."""
    _check_points(arrays["points"], where)
    fields = fields_of(kind)
    sizes = dict(zip(fields["points"].axes, arrays["points"].shape, strict=True))
    for name, array in arrays.items():
        kinds, axes, _ = fields[name]
        shape = tuple(array.shape)
        if len(shape) == len(axes):  # an axis is as long as where it was met first
            sizes = dict(zip(axes, shape, strict=True)) | sizes
        if (
            array.dtype.kind not in kinds
            or array.dtype.itemsize > 8
            or shape != tuple(map(sizes.get, axes))
        ):
            expected = ", ".join(str(sizes.get(axis, axis)) for axis in axes) + "," * (
                len(axes) == 1
            )
            raise ValueError(
                f"{where}: `{name}` must be {_WORDS[kinds]} of shape ({expected}), to fit the rest; "
                f"got {array.dtype} of shape {shape}."
            )


def _check_points(points: Any, where: str) -> None:
    shape = tuple(points.shape)
    if points.dtype.kind != "f" or points.dtype.itemsize > 8:
        raise ValueError(
            f"{where}: `points` must be real numbers, got {points.dtype}; save it as float32."
        )
    if len(shape) != 3:
        raise ValueError(
            f"{where}: `points` must have shape (clouds, points, dimensions), got {shape}."
        )
    if 0 in shape:
        raise ValueError(
            f"{where}: `points` is empty, shape {shape}; save at least one cloud of one point."
        )
