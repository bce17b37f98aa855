"""A page in HTML on which to look at flows in one and two dimensions: over time, and over a training."""

import base64
import html
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowkit._types import AnyArray
from flowkit.plotting._flows import on_grid
from flowkit.plotting._style import box, colors, INK, Limits, require


_FIELD_TIMES = np.linspace(0, 1, 21, dtype=np.float32)
_RESOLUTION = 20
_BANDWIDTH = 0.025
_NUM_PATHS = 100
_COLORS = {
    "particles": colors["prior_z"],
    "paths": colors["coupling_infer"],
    "field": INK,
    "density": "#8fbbd9",
    "target": colors["data_x"],
}


class ExplorerStage(NamedTuple):
    """What the explorer shows of one model: of a training, one stage for each saved checkpoint.

    For a flow the times and points are those of a vmapped `fk.integrate` with `saveat=diffrax.SaveAt(ts=times)`. For a
    flow map of a few steps they are the times between which it steps, and the points there.
    """

    label: str
    """Stands beside the slider, such as `"step 500"`."""
    times: Float[AnyArray, " t"]
    """Increasing, at least two, in [0, 1]."""
    points: Float[AnyArray, "n t d"]
    """Where the particles are at these times; `d` is 1 or 2."""
    velocity: Callable[..., Any] | None = None
    """`(t, x) -> dx` for one point `x (d,)`, such as a flow; vmapped and compiled by the explorer, in
    inference mode."""


def explorer(
    stages: Sequence[ExplorerStage],
    *,
    target: Float[AnyArray, "m d"] | None = None,
    limits: Limits = None,
    title: str = "flow",
    path: str | os.PathLike[str],
) -> Path:
    r"""Writes one HTML page that shows particles, paths, velocity field and density of a flow, at any time.

    A slider is the time of the flow, another one goes through the stages of a training. The page holds all it needs
    and opens from the disk, without a server and without a network.

    - Particles lie on straight lines between the times of their stage. The paths are those of the first 100.
    - The velocity is evaluated at 21 times, on 20 points along each axis, and is linear in time between them. In two
      dimensions an arrow is as long as a cell of this grid at the 95th percentile of the speeds of all stages, shorter
      for lower speeds and not longer for higher ones. In one dimension the dashes are slopes of paths over time.
    - The density is an estimate from the particles, $\frac1n\sum_i \mathcal N(x; x_i, h^2)$, with $h$ one fortieth of
      the width that is shown; on the line the same estimate is drawn of `target`.

    **Arguments:**

    - `stages`: in the order of the slider; the page opens with the last one. A particle takes 5 bytes for each time
      and dimension, the velocity 0.1 MB for each stage; plotly's program, which is part of the page, 5 MB.
    - `target (m, d)`: data to draw behind.
    - `limits`: `(low, high)` of every spatial axis; by default the smallest square around all that is drawn.
    - `path`: of the page, in a folder that is made if need be.

    **Returns:** the path.

    **Raises:** `ValueError` for stages that cannot be drawn, such as flows in more than two dimensions, and for a path
    that cannot be written; `ImportError` if plotly is not there.
    """
    _check(stages, target)
    points = [np.asarray(stage.points, np.float32) for stage in stages]
    size = points[0].shape[-1]
    data = (
        np.zeros((0, size), np.float32)
        if target is None
        else np.asarray(target, np.float32)
    )
    flat = [
        cloud[np.isfinite(cloud).all(1)]
        for p in (*points, data)
        for cloud in [p.reshape(-1, size)]
    ]
    lows, highs = box(flat, size, limits)
    path = _writable(path)
    plotly = _plotly_script()

    fields, grid = _fields(stages, lows, highs)
    page = {
        "size": size,
        "lows": lows.tolist(),
        "highs": highs.tolist(),
        "bandwidth": _BANDWIDTH * float(highs[0] - lows[0]),
        "num_paths": _NUM_PATHS,
        "speed": _usual_speed(fields),
        "colors": _COLORS,
        "grid": _encoded(grid),
        "field_times": _encoded(_FIELD_TIMES),
        "target": None if target is None else _encoded(data),
        "stages": [
            {
                "label": s.label,
                "times": _encoded(s.times),
                "points": _encoded(p),
                "field": None if f is None else _encoded(f),
            }
            for s, p, f in zip(stages, points, fields, strict=True)
        ],
    }
    # In a script element nothing but "<" can end the text.
    text = json.dumps(page).replace("<", "\\u003c")
    template, script = (_packaged(f"_explorer.{ending}") for ending in ("html", "js"))
    filled = Template(template).substitute(
        title=html.escape(title), data=text, plotly=plotly, script=script
    )
    path.write_text(filled, encoding="utf-8")
    return path


def _check(stages: Sequence[ExplorerStage], target: Any) -> None:
    require(len(stages) > 0, "`stages` is empty; pass at least one `ExplorerStage`.")
    size = np.shape(stages[0].points)[-1:]
    for i, stage in enumerate(stages):
        times, shape = np.asarray(stage.times), np.shape(stage.points)
        require(
            len(shape) == 3 and 0 not in shape and shape[1:2] == times.shape,
            f"`stages[{i}]` has points of shape {shape} and times of shape {times.shape}; they must be (n, t, d) and "
            "(t,), and not empty.",
        )
        require(
            shape[2] in (1, 2),
            f"`stages[{i}].points` has {shape[2]} dimensions; the explorer draws 1 or 2, `trajectories` also 3.",
        )
        require(
            shape[2:] == size,
            f"`stages[{i}].points` has {shape[2]} dimensions and that of the first stage {size[0]}; write two pages.",
        )
        require(
            len(times) > 1
            and bool(np.all(np.diff(times) > 0) and times[0] >= 0 and times[-1] <= 1),
            f"`stages[{i}].times` must be two or more increasing times in [0, 1] (0 is noise, 1 is data), got {times}.",
        )
    if target is not None and (len(target) == 0 or target.shape[1:] != size):
        raise ValueError(
            f"`target` has shape {target.shape}; with these stages it must be (m, {size[0]}), and not empty."
        )


def _writable(path: str | os.PathLike[str]) -> Path:
    """The path, once its folder is there and takes files."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"`path` is {path}, whose folder cannot be written ({error}); name another one."
        ) from error
    require(
        not path.is_dir(),
        f"`path` is {path}, which is a folder; name a file in it, such as explorer.html.",
    )
    return path


def _plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            '`explorer` draws with plotly: `pip install "flowkit-jax[explorer]"`.'
        ) from error
    return get_plotlyjs()


def _fields(stages, lows, highs) -> tuple[list[np.ndarray | None], np.ndarray]:
    """The velocity of each stage that has one, `(times, points, d)`, and the grid `(points, d)`."""
    sides = [
        np.linspace(low, high, _RESOLUTION + 2)[1:-1]
        for low, high in zip(lows, highs, strict=True)
    ]
    grid = np.stack(np.meshgrid(*sides), -1).reshape(-1, len(sides)).astype(np.float32)
    fields = [
        None if stage.velocity is None else _field(stage.velocity, grid)
        for stage in stages
    ]
    for i, field in enumerate(fields):
        if field is not None and field.shape != (len(_FIELD_TIMES), *grid.shape):
            raise ValueError(
                f"`stages[{i}].velocity` gives shape {field.shape[2:]} for one point, not {grid.shape[1:]}."
            )
    return fields, grid


def _field(velocity: Callable[..., Any], grid: np.ndarray) -> np.ndarray:
    return np.asarray(
        on_grid(eqx.nn.inference_mode(velocity), jnp.asarray(_FIELD_TIMES), grid),
        np.float32,
    )


def _usual_speed(fields: Sequence[np.ndarray | None]) -> float:
    """The speed with an arrow of full length."""
    speeds = np.concatenate(
        [
            np.zeros(0),
            *(np.linalg.norm(f, axis=-1).ravel() for f in fields if f is not None),
        ]
    )
    finite = speeds[np.isfinite(speeds)]
    return max(float(np.quantile(finite, 0.95)), 1e-12) if len(finite) else 1.0


def _encoded(array: Any) -> dict[str, Any]:
    """The shape, and the values as little-endian float32: exact, and half as long as decimal digits."""
    values = np.ascontiguousarray(array, "<f4")
    return {
        "shape": list(values.shape),
        "base64": base64.b64encode(values.tobytes()).decode("ascii"),
    }


def _packaged(name: str) -> str:
    return (
        resources.files("flowkit.plotting").joinpath(name).read_text(encoding="utf-8")
    )
