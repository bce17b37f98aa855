"""A page in HTML that shows flows in one and two dimensions at any time."""

import base64
import html
import json
import os
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
from flowkit.plotting._style import (
    box,
    check_path,
    colors,
    INK,
    Limits,
    require,
    tint,
)


_FIELD_TIMES = np.linspace(0, 1, 21, dtype=np.float32)
_RESOLUTION = 20
_BANDWIDTH = 0.025
_NUM_PATHS = 100


_COLORS = {
    "particles": colors["coupling_infer"],
    "paths": colors["coupling_infer"],
    "field": INK,
    "density": tint(colors["coupling_infer"], 0.5),
    "target": colors["data_x"],
}


class ExplorerStage(NamedTuple):
    """What the explorer shows of one model, such as a saved checkpoint of a training.

    For a flow the times and points are those of a vmapped `fk.integrate` with
    `saveat=diffrax.SaveAt(ts=times)`. For a flow map of a few steps they are the times
    between which it steps, and the points there.
    """

    label: str
    """Text next to the slider, such as `"step 500"`."""
    times: Float[AnyArray, " t"]
    """Two or more increasing times in [0, 1]."""
    points: Float[AnyArray, "n t d"]
    """The particles at these times; `d` is 1 or 2."""
    velocity: Callable[..., Any] | None = None
    """`(t, x) -> dx` for one point `x (d,)`, such as a flow.

    The explorer evaluates it in inference mode."""


def explorer(
    stages: Sequence[ExplorerStage],
    *,
    target: Float[AnyArray, "m d"] | None = None,
    limits: Limits = None,
    title: str = "flow",
    path: str | os.PathLike[str],
) -> Path:
    r"""Writes one HTML page with particles, paths, velocity and density of a flow.

    One slider sets the time of the flow, and another one the stage of a training run.
    The page holds all it needs and opens from the disk, without a server and without a
    network.

    - Particles lie on straight lines between the times of their stage. The paths are
      those of the first 100.
    - The velocity is evaluated at 21 times, on 20 points along each axis, and is linear
      in time between them. In two dimensions an arrow is as long as a cell of this grid
      at the 95th percentile of the speeds of all stages, shorter for lower speeds and
      not longer for higher ones. In one dimension the dashes are slopes of paths over
      time.
    - The density is an estimate from the particles,
      $\frac1n\sum_i \mathcal N(x; x_i, h^2)$, with $h$ one fortieth of the width that
      is shown. In one dimension the same estimate is drawn for `target`.

    **Arguments:**

    - `stages`: in the order of the slider; the page opens with the last one. A particle
      takes 5 bytes for each time and dimension, the velocity 0.1 MB for each stage, and
      the program of plotly, which is part of the page, 5 MB.
    - `target (m, d)`: data to draw behind the particles.
    - `limits`: `(low, high)` of every spatial axis; by default the smallest square
      around all that is drawn.
    - `title`: the title of the page.
    - `path`: the file, which ends in `.html`; its folder is created if it does not
      exist.

    **Returns:** the path.

    **Raises:** `ValueError` for stages that cannot be drawn, such as flows in more than
    two dimensions, and for a path that cannot be written; `ImportError` if plotly is
    not installed.
    """
    _check(stages, target)
    check_path(path, [".html", ".htm"])

    # Before the velocities are evaluated, so that a missing plotly is noticed at once.
    plotly = _plotly_script()
    points = [np.asarray(stage.points, np.float32) for stage in stages]
    size = points[0].shape[-1]
    data = None if target is None else np.asarray(target, np.float32)

    shown = [array.reshape(-1, size) for array in (*points, data) if array is not None]
    finite = [cloud[np.isfinite(cloud).all(1)] for cloud in shown]
    lows, highs = box(finite, size, limits)
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
        "target": _encoded(data),
        "stages": [
            _entry(*parts) for parts in zip(stages, points, fields, strict=True)
        ],
    }
    path = Path(path)
    path.write_text(_filled(page, title, plotly), encoding="utf-8")

    return path


def _entry(stage: ExplorerStage, points: np.ndarray, field: Any) -> dict[str, Any]:
    """What the page holds of one stage."""
    return {
        "label": stage.label,
        "times": _encoded(stage.times),
        "points": _encoded(points),
        "field": _encoded(field),
    }


def _filled(page: dict[str, Any], title: str, plotly: str) -> str:
    """The text of the page."""
    # Only "<" can end the text of a script element.
    data = json.dumps(page).replace("<", "\\u003c")
    template = Template(_packaged("_explorer.html"))
    script = _packaged("_explorer.js")
    return template.substitute(
        title=html.escape(title), data=data, plotly=plotly, script=script
    )


def _check(stages: Sequence[ExplorerStage], target: Any) -> None:
    require(len(stages) > 0, "`stages` is empty; pass at least one `ExplorerStage`.")

    size = np.shape(stages[0].points)[-1:]
    for i, stage in enumerate(stages):
        times = np.asarray(stage.times)
        shape = np.shape(stage.points)
        require(
            len(shape) == 3 and 0 not in shape and shape[1:2] == times.shape,
            f"`stages[{i}]` has points of shape {shape} and times of shape {times.shape}; "
            "they must be (n, t, d) and (t,), and not empty.",
        )
        require(
            shape[2] in (1, 2),
            f"`stages[{i}].points` has {shape[2]} dimensions; "
            "the explorer draws 1 or 2, `trajectories` also 3.",
        )
        require(
            shape[2:] == size,
            f"`stages[{i}].points` has {shape[2]} dimensions "
            f"and that of the first stage {size[0]}; write two pages.",
        )
        increasing = len(times) > 1 and np.all(np.diff(times) > 0)
        require(
            bool(increasing and times[0] >= 0 and times[-1] <= 1),
            f"`stages[{i}].times` must be two or more increasing times in [0, 1] "
            f"(0 is noise, 1 is data), got {times}.",
        )

    if target is not None and (len(target) == 0 or target.shape[1:] != size):
        raise ValueError(
            f"`target` has shape {target.shape}; "
            f"with these stages it must be (m, {size[0]}), and not empty."
        )


def _plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            '`explorer` draws with plotly: `pip install "flowkit-jax[explorer]"`.'
        ) from error
    return get_plotlyjs()


def _fields(stages, lows, highs) -> tuple[list[np.ndarray | None], np.ndarray]:
    """The velocity of each stage, `(times, points, d)`, and the grid, `(points, d)`."""
    # Without the ends: an arrow there would begin on the frame.
    sides = [side[1:-1] for side in np.linspace(lows, highs, _RESOLUTION + 2, axis=1)]
    grid = np.stack(np.meshgrid(*sides), -1).reshape(-1, len(sides)).astype(np.float32)
    fields: list[np.ndarray | None] = []
    for i, stage in enumerate(stages):
        if stage.velocity is None:
            fields.append(None)
            continue
        velocity = eqx.nn.inference_mode(stage.velocity)
        field = np.asarray(
            on_grid(velocity, jnp.asarray(_FIELD_TIMES), grid), np.float32
        )
        require(
            field.shape == (len(_FIELD_TIMES), *grid.shape),
            f"`stages[{i}].velocity` gives shape {field.shape[2:]} for one point, "
            f"not {grid.shape[1:]}.",
        )
        fields.append(field)

    return fields, grid


def _usual_speed(fields: Sequence[np.ndarray | None]) -> float:
    """The speed with an arrow of full length."""
    known = [field for field in fields if field is not None]
    speeds = [np.linalg.norm(field, axis=-1).ravel() for field in known]
    every = np.concatenate([np.zeros(0), *speeds])
    finite = every[np.isfinite(every)]
    if not len(finite):
        return 1.0
    # The page divides by it, also for a flow that stands still.
    return max(float(np.quantile(finite, 0.95)), 1e-12)


def _encoded(array: Any) -> dict[str, Any] | None:
    """The shape, and the values as little-endian float32: exact and short."""
    if array is None:
        return None
    values = np.ascontiguousarray(array, "<f4")
    return {
        "shape": list(values.shape),
        "base64": base64.b64encode(values.tobytes()).decode("ascii"),
    }


def _packaged(name: str) -> str:
    folder = resources.files("flowkit.plotting")
    return folder.joinpath(name).read_text(encoding="utf-8")
