"""Which arrays a kind of sets holds, and whether given ones have its shapes and types.

A kind is a named tuple, whose annotations specify its arrays: `Float[np.ndarray, "b n d"]`
is an array of real numbers that shares its axis `b` with every other one that has it; a
number in the place of a name is the length of that axis, and `| None` means that the array
may be missing.
"""

from typing import Any, get_args, get_type_hints, NamedTuple

import numpy as np


class Field(NamedTuple):
    """What an annotation says of an array."""

    kinds: str
    """The kinds of its dtype, as NumPy abbreviates them."""
    axes: tuple[str, ...]
    required: bool


_KINDS = {"Float": "f", "Int": "iu", "Bool": "b"}
_WORDS = {"f": "real numbers", "iu": "integers", "b": "boolean"}


def fields_of(kind: type) -> dict[str, Field]:
    """The arrays of a named tuple, from its annotations."""
    fields = {}
    for name, hint in get_type_hints(kind).items():
        # Of `X | None` and `Optional[X]` alike.
        members = get_args(hint)
        optional = type(None) in members
        arrays = [member for member in members if member is not type(None)]
        array = arrays[0] if optional else hint
        word = getattr(getattr(array, "dtype", None), "__name__", None)
        if word not in _KINDS:
            raise ValueError(
                f"`{kind.__name__}.{name}` must be annotated by `Float`, `Int` or `Bool` of "
                f"jaxtyping, perhaps with `| None`; got {hint}."
            )
        axes = tuple(array.dim_str.split())
        fields[name] = Field(_KINDS[word], axes, required=not optional)
    return fields


def check_layout(arrays: dict[str, Any], kind: type, where: str) -> None:
    """Raises a `ValueError` unless shapes and dtypes fit together.

    It looks at nothing else, so the headers of a file will do as arrays.
    """
    points = arrays["points"]
    _check_points(points, where)
    fields = fields_of(kind)
    sizes = dict(zip(fields["points"].axes, points.shape, strict=True))
    # An axis that is annotated by a number has that length.
    axes = {axis for field in fields.values() for axis in field.axes}
    sizes |= {axis: int(axis) for axis in axes if axis.isdecimal()}

    for name, array in arrays.items():
        field = fields[name]
        shape = tuple(array.shape)
        if len(shape) == len(field.axes):
            # The first array with an axis determines its length.
            sizes = dict(zip(field.axes, shape, strict=True)) | sizes
        expected = tuple(sizes.get(axis) for axis in field.axes)
        # Longer numbers than float64 exist on some machines only, and never in JAX.
        is_number = array.dtype.kind in field.kinds and array.dtype.itemsize <= 8
        if not is_number or shape != expected:
            raise ValueError(
                f"{where}: `{name}` must be {_WORDS[field.kinds]} of shape "
                f"{_shape_in_words(field.axes, sizes)}, to fit the rest; got "
                f"{array.dtype} of shape {shape}."
            )


def _shape_in_words(axes: tuple[str, ...], sizes: dict[str, int]) -> str:
    """`(7, 4)` where all sizes are known, `(7, k)` where one is not, `(7,)` for one axis."""
    entries = [str(sizes.get(axis, axis)) for axis in axes]
    if len(entries) == 1:
        return f"({entries[0]},)"
    return f"({', '.join(entries)})"


def _check_points(points: Any, where: str) -> None:
    shape = tuple(points.shape)
    if points.dtype.kind != "f" or points.dtype.itemsize > 8:
        raise ValueError(
            f"{where}: `points` must be real numbers, got {points.dtype}; save it as "
            "float32."
        )
    if len(shape) != 3:
        raise ValueError(
            f"{where}: `points` must have shape (clouds, points, dimensions), got {shape}."
        )
    if 0 in shape:
        raise ValueError(
            f"{where}: `points` is empty, shape {shape}; save at least one cloud of one "
            "point."
        )


def check_values(arrays: dict[str, np.ndarray], where: str) -> None:
    """Raises a `ValueError` for what is not finite, and for clouds without valid points."""
    finite = np.isfinite(arrays["points"]).all(axis=-1)
    mask = arrays.get("mask")
    if mask is not None:
        seen = mask.any(axis=1)
        if not seen.all():
            raise ValueError(
                f"{where}: `mask` hides every point of cloud {np.argmin(seen)} "
                f"({np.sum(~seen)} such); remove the cloud."
            )
        finite = finite | ~mask
    if not finite.all():
        cloud, point = np.unravel_index(np.argmin(finite), finite.shape)
        raise ValueError(
            f"{where}: `points` is not finite at point {point} of cloud {cloud} "
            f"({np.sum(~finite)} such); remove those points, or set `mask` to False there."
        )

    for name, array in arrays.items():
        if name != "points" and not np.isfinite(array).all():
            raise ValueError(
                f"{where}: `{name}` is not finite everywhere; fix it or leave it out."
            )
