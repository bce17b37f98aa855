"""Your own points: read from a file, brought to common units, drawn from."""

import csv
import itertools
import operator
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced, PRNGKey, Scalar
from flowkit.data._sets import Units
from flowkit.data._toys import blur, check_draw, sampler


_LARGEST = float(np.finfo(np.float32).max)


def load_csv(
    path: str | os.PathLike,
    columns: Sequence[str | int] | None = None,
    *,
    delimiter: str = ",",
    header: bool | None = None,
) -> Float[np.ndarray, "n d"]:
    """Reads points from a text file of numbers, one point per line.

    The first line may name the columns. Without `header` it is taken for a header if none
    of its entries is a number. If it could be either (whole numbers in order, such as the
    `0, 1` that pandas writes, above lines of other numbers), you have to say which. Blank
    lines are skipped.

    **Arguments:**

    - `path`: the file.
    - `columns`: the columns to read, in this order, by their names in the header or by
        their positions, which count from 0. `None` reads all of them.
    - `delimiter`: the character between the numbers.
    - `header`: whether the first line names the columns.

    **Returns:** the points `(n, d)`, float32.

    **Raises:** `ValueError`, with the file, the line, and the fix, for entries that are not
    finite numbers, lines of different lengths, columns that do not exist or share the name
    they are chosen by, fewer than two points, and files that are not text. `OSError` if the
    file cannot be opened.
    """
    where = f"`{os.fspath(path)}`"
    if isinstance(columns, str):
        raise ValueError(
            f"`columns` is the text {columns!r}; give a tuple, such as ({columns!r},)."
        )
    rows = read_rows(path, where, delimiter)
    names = None
    if rows and _has_header(rows, header, where):
        names = [name.strip() for name in rows[0][1]]
        rows = rows[1:]

    width = len(rows[0][1]) if rows else 0
    chosen = _choose(columns, names, width, where)
    numbers = [[_number(row[i], where, line, i) for i in chosen] for line, row in rows]
    points = np.array(numbers, np.float32)
    if len(points) < 2:
        raise ValueError(
            f"{where} has {len(points)} point(s); a distribution needs at least two."
        )

    return points


def _has_header(
    rows: list[tuple[int, list[str]]], header: bool | None, where: str
) -> bool:
    if header is not None:
        return header

    line, first = rows[0]
    if not any(_is_number(entry) for entry in first):
        return True
    others = [entries for _, entries in rows[1:]]
    if _is_count(first) and others and all(map(_is_real, others)):
        raise ValueError(
            f"{where}: line {line}, {', '.join(first)}, may name the columns or be a point; "
            "say which by `header=True` or `header=False`."
        )

    return False


def _is_real(entries: list[str]) -> bool:
    """Whether a line holds finite numbers that are not all whole."""
    if all(entry.strip().isdecimal() for entry in entries):
        return False
    # `float` also reads "nan" and "inf", which the comparison refuses.
    return all(_is_number(x) and abs(float(x)) <= _LARGEST for x in entries)


def _is_count(entries: list[str]) -> bool:
    """Whether a line holds whole numbers in increasing order, as names of columns do."""
    if not all(entry.strip().isdecimal() for entry in entries):
        return False
    numbers = [int(entry) for entry in entries]
    return all(a < b for a, b in itertools.pairwise(numbers))


def fit_unit_box(
    points: Float[AnyArray, "n d"],
) -> tuple[Float[np.ndarray, "n d"], Units]:
    """Centers points on their mean and scales the largest coordinate, up to sign, to one.

    One scale serves all axes, so proportions are kept. `normalize` does this for whole
    collections of clouds, to a mean square of one.

    **Returns:** the new points, float32, and the `Units` that map other points in the same
    way, and samples back.
    """
    # Means of many points far from zero lose digits in float32.
    array = np.asarray(points, np.float64)
    _check_points(array)
    mean = array.mean(axis=0)
    scale = np.abs(array - mean).max()
    # The mean of equal numbers is rounded, and then they differ from it.
    if not np.ptp(array, axis=0).any():
        raise ValueError(
            "`points` are all in one place, which has no scale; use other data."
        )
    units = Units(mean.astype(np.float32), np.array(scale, np.float32))

    return ((array - mean) / scale).astype(np.float32), units


def resample(
    points: Float[AnyArray, "n d"], num: int, *, noise: Scalar = 0.0, key: PRNGKey
) -> Float[Array, "{num} d"]:
    """Draws from finite data with replacement, blurred by Gaussian noise.

    With `noise > 0` this is a mixture of `n` equal Gaussians, whose exact flow is
    `fk.exact_flow(fk.GaussianMixture(points, noise))`.
    """
    check_draw(num, noise=noise)
    if not is_traced(points):
        _check_points(np.asarray(points))
    return _resample(num, jnp.asarray(points, float), noise, key)


def read_rows(
    path: str | os.PathLike, where: str, delimiter: str
) -> list[tuple[int, list[str]]]:
    """The lines of a text file that are not blank, with their line numbers.

    All of them have as many entries as the first one.
    """
    if len(delimiter) != 1:
        raise ValueError(f"`delimiter` must be one character, got {delimiter!r}.")

    try:
        # Some spreadsheets write a byte order mark, which would belong to the first
        # name.
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            rows = [
                (reader.line_num, row)
                for row in reader
                if any(entry.strip() for entry in row)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{where} is not a text file of numbers ({error}); export it as CSV."
        ) from error

    for line, row in rows:
        if len(row) != len(rows[0][1]):
            raise ValueError(
                f"{where}: line {line} has {len(row)} entries, line {rows[0][0]} has "
                f"{len(rows[0][1])}; fix it."
            )

    return rows


def _choose(
    columns: Sequence[str | int] | None, names: list[str] | None, width: int, where: str
) -> list[int]:
    """The positions of the columns to read."""
    if columns is None:
        return list(range(width))
    if not columns:
        raise ValueError(f"`columns` is empty; {where} has {width}, name one of them.")
    return [_position(column, names, width, where) for column in columns]


def _position(
    column: str | int, names: list[str] | None, width: int, where: str
) -> int:
    if isinstance(column, str):
        if names is not None and column in names:
            count = names.count(column)
            if count > 1:
                raise ValueError(
                    f"`columns`: {where} has {count} columns {column!r}; choose one by its "
                    f"position in 0 ... {width - 1}."
                )
            return names.index(column)
        # Positions come as text from a command line.
        position = int(column) if column.isdecimal() else -1
    else:
        position = operator.index(column)
    if 0 <= position < width:
        return position

    if names is None:
        raise ValueError(
            f"{where} has no header to find {column!r} in; `columns` must be positions in "
            f"0 ... {width - 1}, or left out."
        )

    raise ValueError(
        f"`columns` must be among {names} of {where}, or positions in 0 ... {width - 1}; "
        f"got {column!r}."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, where: str, line: int, column: int) -> float:
    if not _is_number(text):
        raise ValueError(
            f"{where}: {text!r} in line {line}, column {column + 1} is not a number; choose "
            "`columns`, name the `delimiter`, or fix the file."
        )

    number = float(text)
    # Not `>`, which NaN would pass.
    if not abs(number) <= _LARGEST:
        raise ValueError(
            f"{where}: {text!r} in line {line}, column {column + 1} is not finite; remove the "
            "line."
        )

    return number


def _check_points(points: Any) -> None:
    if 0 in points.shape:
        raise ValueError(
            f"`points` must hold at least one point, got shape {points.shape}."
        )
    if not np.isfinite(points).all():
        raise ValueError("`points` holds NaN or infinity; remove those points.")


@sampler
def _resample(num: int, points: Array, noise: Array, key: PRNGKey):
    index_key, noise_key = jr.split(key)
    chosen = jr.randint(index_key, (num,), 0, len(points))
    return blur(points[chosen], noise, noise_key)
