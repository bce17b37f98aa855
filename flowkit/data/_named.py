"""Samplers of points that a command line names: a toy, or a file of points."""

import functools as ft
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from flowkit._types import Scalar
from flowkit.data._points import fit_unit_box, load_csv, resample
from flowkit.data._registry import TOYS_1D, TOYS_2D


def named_sampler(
    name: str | os.PathLike[str],
    *,
    size: int = 2,
    columns: Sequence[str] = (),
    noise: Scalar | None = None,
) -> Callable:
    """The sampler `(num, *, key) -> (num, size)` of a toy, or of the points of a CSV file.

    Points of a file are centered and scaled to `[-1, 1]` by `fit_unit_box`, and drawn with
    replacement.

    ```python
    sampler = fk.data.named_sampler("points.csv", columns=("x", "y"), noise=0.02)
    x1 = sampler(10_000, key=key)
    ```

    **Arguments:**

    - `name`: a name in `TOYS_1D` or `TOYS_2D`, or the path of a file.
    - `size`: the dimension of the points, 1 or 2.
    - `columns`: the names of the columns of a file to read, all of them by default.
    - `noise`: the standard deviation of the blur. By default a toy has its own and the
      points of a file have none.

    **Raises:** `ValueError` for a name that is neither, for an option that the toy does not
    have, and for a file of other points.
    """
    toys = {1: TOYS_1D, 2: TOYS_2D}.get(size)
    if toys is None:
        raise ValueError(f"`size` must be 1 or 2, got {size}.")
    if name in toys:
        return _toy(str(name), toys[str(name)], columns, noise)

    if not Path(name).is_file():
        raise ValueError(
            f"`name` must be one of {', '.join(toys)}, or the path of a CSV file that "
            f"exists; got {os.fspath(name)!r}."
        )

    points, _ = fit_unit_box(load_csv(name, columns or None))
    if points.shape[1] != size:
        raise ValueError(
            f"{os.fspath(name)} has {points.shape[1]} columns, but points of size {size} "
            "are wanted: choose that many with `columns`."
        )

    return ft.partial(resample, points, noise=0.0 if noise is None else noise)


def _toy(
    name: str,
    toy: Callable,
    columns: Sequence[str],
    noise: Scalar | None,
) -> Callable:
    if columns:
        raise ValueError(
            f"`columns` are for files, and {name!r} is a toy; leave them out."
        )

    if noise is None:
        return toy
    if "noise" not in inspect.signature(toy).parameters:
        raise ValueError(
            f"`noise` is not an option of {name!r}, which has a width of its own; leave it out."
        )

    return ft.partial(toy, noise=noise)
