"""The Datasaurus Dozen: thirteen shapes of 142 points with the same moments.

Means, standard deviations and correlation agree.
"""

import functools as ft
import os
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float

from flowkit._types import PRNGKey, Scalar
from flowkit.data._points import fit_unit_box, read_rows, resample


DATASAURUS = (
    "dino",
    "away",
    "h_lines",
    "v_lines",
    "x_shape",
    "star",
    "high_lines",
    "dots",
    "circle",
    "bullseye",
    "slant_up",
    "slant_down",
    "wide_lines",
)
"""The names of the thirteen shapes."""

_FILES = ("datasaurus_dozen.csv", "DatasaurusDozen-Long.tsv", "DatasaurusDozen.tsv")


def load_datasaurus(
    path: str | os.PathLike | None = None,
) -> dict[str, Float[np.ndarray, "142 2"]]:
    """The points of the thirteen shapes by name, `(142, 2)` each, in their own units.

    Both axes run from about 0 to 100. The file has the columns `dataset`, `x` and `y`,
    between tabs or commas: `DatasaurusDozen-Long.tsv` of the R package datasauRus (MIT
    license), or `datasaurus_dozen.csv`. It is looked for in the folder that the environment
    variable `FLOWKIT_DATA` names and its subfolder `datasaurus`; nothing is downloaded. The
    tyrannosaur alone needs no file: see `trex`.

    **Arguments:**

    - `path`: the file; no other place is searched then.

    **Raises:** `ValueError`, with the file and the fix, if it is damaged or lacks a shape;
    `FileNotFoundError` if it is nowhere.

    **Reference:** Matejka and Fitzmaurice, Same Stats, Different Graphs (CHI 2017).
    """
    path = _find() if path is None else Path(path)
    where = f"`{path}`"
    rows = read_rows(path, where, "\t" if path.suffix == ".tsv" else ",")
    header = rows[0][1] if rows else []
    if header != ["dataset", "x", "y"]:
        raise ValueError(
            f"{where} must have the columns dataset, x and y, got {header}; give the "
            "original file."
        )

    shapes: dict[str, list] = {name: [] for name in DATASAURUS}
    for line, (name, *point) in rows[1:]:
        try:
            shapes[name].append([float(number) for number in point])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{where}: line {line} is not a shape and two numbers ({error})."
            ) from error

    for name, points in shapes.items():
        if len(points) != 142 or not np.isfinite(points).all():
            raise ValueError(
                f"{where} has {len(points)} points of {name!r}, not 142 finite ones; write "
                "it again."
            )

    return {name: np.array(points, np.float32) for name, points in shapes.items()}


def datasaurus(
    num: int, shape: str, *, noise: Scalar = 0.02, key: PRNGKey
) -> Float[Array, "{num} 2"]:
    """Draws from one of the thirteen shapes, in units like those of `trex`.

    The shapes are read from a file: see `load_datasaurus`.

    **Arguments:**

    - `num`: the number of points.
    - `shape`: one of `DATASAURUS`.
    - `noise`: the standard deviation of the Gaussian noise.
    - `key`: the random key.
    """
    if shape not in DATASAURUS:
        raise ValueError(
            f"`shape` must be one of {', '.join(DATASAURUS)}, got {shape!r}."
        )
    return resample(_in_units(_find())[shape], num, noise=noise, key=key)


# Cached by path, so a change of FLOWKIT_DATA does not return points of the old folder.
@ft.lru_cache(maxsize=1)
def _in_units(path: Path) -> dict[str, np.ndarray]:
    return {
        name: fit_unit_box(points)[0] for name, points in load_datasaurus(path).items()
    }


def _find() -> Path:
    root = os.environ.get("FLOWKIT_DATA")
    searched = "the folder FLOWKIT_DATA, which is not set"
    if root:
        searched = f"{root} or its subfolder datasaurus"
        for folder in (Path(root, "datasaurus"), Path(root)):
            for name in _FILES:
                if (folder / name).is_file():
                    return folder / name

    raise FileNotFoundError(
        f"no file {' or '.join(_FILES)} in {searched}; get the file from the R package "
        "datasauRus, and set the environment variable to its folder."
    )
