"""Finite sets of points of your own: read, brought to common units, drawn from."""

import csv
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


def load_csv(
    path: str | os.PathLike,
    columns: Sequence[str] | None = None,
    *,
    delimiter: str = ",",
) -> Float[np.ndarray, "n d"]:
    """Reads points from a text file of numbers, one point in each line.

    The first line may name the columns: it is taken for a header if none of its entries is a number. Blank lines are
    left out.

    **Arguments:**

    - `path`: the file.
    - `columns`: which columns to read, by the names of the header, in this order; all of them if `None`.
    - `delimiter`: between the numbers, one character.

    **Returns:** the points `(n, d)`, float32.

    **Raises:** `ValueError`, with the file, the line and what to do, for entries that are no finite numbers, lines of
    different lengths, columns that are not there, fewer than two points, and files that hold no text. `OSError` if the
    file cannot be opened.
    """
    where = f"`{os.fspath(path)}`"
    rows = read_rows(path, where, delimiter)
    names = (
        [name.strip() for name in rows[0][1]]
        if rows and not any(map(_is_number, rows[0][1]))
        else None
    )
    rows = rows if names is None else rows[1:]
    chosen = _choose(columns, names, len(rows[0][1]) if rows else 0, where)
    points = np.array(
        [[_number(row[i], where, line, i) for i in chosen] for line, row in rows],
        np.float32,
    )
    if len(points) < 2:
        raise ValueError(
            f"{where} has {len(points)} point(s); a distribution needs at least two."
        )
    return points


def fit_unit_box(
    points: Float[AnyArray, "n d"],
) -> tuple[Float[np.ndarray, "n d"], Units]:
    """Centres points on their mean and scales them so that the largest coordinate, up to its sign, is one.

    One scale serves all axes, so proportions are kept. `normalize` does this for whole collections of clouds, to a mean
    square of one.

    **Returns:** the new points, float32, and the `Units` that map others in the same way, and samples back.
    """
    array = np.asarray(points, np.float64)
    _check_points(array)
    mean = array.mean(axis=0)
    scale = np.abs(array - mean).max()
    if scale == 0:
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
    """The lines of a text file that are not blank, with their numbers, all with as many entries as the first one."""
    if len(delimiter) != 1:
        raise ValueError(f"`delimiter` must be one character, got {delimiter!r}.")
    try:
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
                f"{where}: line {line} has {len(row)} entries, line {rows[0][0]} has {len(rows[0][1])}; mend it."
            )
    return rows


def _choose(
    columns: Sequence[str] | None, names: list[str] | None, width: int, where: str
) -> list[int]:
    if columns is None:
        return list(range(width))
    if names is None:
        raise ValueError(
            f"{where} has no header to find {list(columns)} in; leave out `columns`."
        )
    missing = [name for name in columns if name not in names]
    if missing or not columns:
        raise ValueError(
            f"`columns` must be among {names} of {where}, got {list(columns)}."
        )
    return [names.index(name) for name in columns]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, where: str, line: int, column: int) -> float:
    if not _is_number(text):
        raise ValueError(
            f"{where}: {text!r} in line {line}, column {column + 1} is not a number; choose `columns`, name the "
            "`delimiter`, or mend the file."
        )
    number = float(text)
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise ValueError(
            f"{where}: {text!r} in line {line}, column {column + 1} is not finite; remove the line."
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
    return blur(points[jr.randint(index_key, (num,), 0, len(points))], noise, noise_key)
