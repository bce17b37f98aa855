"""Pictures and animations of a flow in the plane, all made from one solve."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from flowkit._types import AnyArray
from flowkit.plotting._animation import animate
from flowkit.plotting._clouds import point_clouds, samples_2d
from flowkit.plotting._comparison import comparison
from flowkit.plotting._densities import density_2d
from flowkit.plotting._flows import snapshots, vector_field
from flowkit.plotting._style import colors, finish, Number, require
from flowkit.plotting._trajectories import curvature, Paths, trajectories


# Frames for which an animation shows its last picture.
_STANDS_STILL = 4
_FIELD_TIMES = (0.0, 0.33, 0.67, 1.0)
# The number of data points behind trails; more of them would hide the trails.
_NUM_BEHIND = 500


def flow_gallery(
    times: Float[AnyArray, " t"],
    paths: Mapping[str, Float[AnyArray, "n t 2"]],
    folder: str | os.PathLike[str],
    *,
    target: Float[AnyArray, "m 2"],
    velocity: Callable[..., Any],
    one_step: Float[AnyArray, "n 2"] | None = None,
    limits: tuple[Number, Number],
    num_frames: int = 20,
    num_particles: int = 100,
    resolution: int = 20,
) -> None:
    """Writes pictures and animations of a flow from noise to data in the plane.

    ```python
    paths = {"flow": fk.pipelines.flow_paths(flow, x0, times)}
    limits = (-1.5, 1.5)
    fk.plotting.flow_gallery(times, paths, "run", target=x1, velocity=flow, limits=limits)
    ```

    - `comparison.png`: the data, the ends of the paths, and both.
    - `trajectory.png`: the points at six times.
    - `vector_field.png`: the velocity at four times.
    - `flow.gif`, `density.gif`: the points next to the data, and their histograms.
    - `particles.gif`: some points with their trails.
    - `field.gif`: the velocity over time.
    - `curvature.png`: how much the paths of every flow bend.
    - `<name>.png` for each further flow: its paths next to those of the first one.
    - `one_step.png`: the data and `one_step`, if that is given.

    **Arguments:**

    - `times (t,)` and `paths`, name -> points `(n, t, 2)`: as a vmapped solve saves them, at
        least six times. The first flow is the one that is shown.
    - `folder`: the folder of the files, which is made if it does not exist.
    - `target (m, 2)`: data.
    - `velocity`: `(t, x) -> dx` of the first flow, for one point `x (2,)`.
    - `one_step (n, 2)`: where a one-step map takes noise.
    - `limits`: `(low, high)` of both axes; trails are shown in twice this range.
    - `num_frames`: the number of frames of an animation, before the last one stands still.
    - `num_particles`: the maximum number of points whose trails are drawn.
    - `resolution`: the number of arrows along each axis.
    """
    require(num_frames > 1, f"`num_frames` is {num_frames}; it must be at least 2.")
    require(
        num_particles > 0, f"`num_particles` is {num_particles}; it must be positive."
    )
    require(bool(paths), "`paths` is empty; there is nothing to draw.")
    drawn = _Drawn(
        np.asarray(times),
        {name: np.asarray(points) for name, points in paths.items()},
        np.asarray(target),
        velocity,
        limits,
        num_particles,
        resolution,
    )
    folder = Path(folder)
    _write_pictures(drawn, folder)
    if one_step is not None:
        samples_2d(drawn.target, one_step, limits=limits, path=folder / "one_step.png")
    shown = np.round(np.linspace(0, len(times) - 1, num_frames)).astype(int)
    _write_animations(drawn, folder, np.append(shown, [shown[-1]] * _STANDS_STILL))


class _Drawn(NamedTuple):
    """What the figures show, as arrays."""

    times: np.ndarray
    paths: dict[str, np.ndarray]
    target: np.ndarray
    velocity: Callable[..., Any]
    limits: tuple[Number, Number]
    num_particles: int
    resolution: int

    @property
    def points(self) -> np.ndarray:
        """The paths of the first flow."""
        return next(iter(self.paths.values()))

    @property
    def wide_limits(self) -> tuple[Number, Number]:
        """Twice the limits: room for noise, which reaches further than data."""
        half = (self.limits[1] - self.limits[0]) / 2
        return self.limits[0] - half, self.limits[1] + half

    def field(self, times: Sequence[float]) -> Figure:
        """Arrows of the velocity at some times."""
        options: Any = {"points": self.target, "resolution": self.resolution}
        return vector_field(self.velocity, self.limits, times, **options)


def _write_pictures(drawn: _Drawn, folder: Path) -> None:
    limits: Any = {"limits": drawn.limits}
    points = drawn.points
    samples_2d(drawn.target, points[:, -1], **limits, path=folder / "comparison.png")
    snapshots(
        drawn.times,
        points,
        target=drawn.target,
        **limits,
        path=folder / "trajectory.png",
    )
    finish(drawn.field(_FIELD_TIMES), folder / "vector_field.png")
    curvature(drawn.times, drawn.paths, path=folder / "curvature.png")

    first, *others = drawn.paths
    for other in others:
        panels = {
            name: Paths(
                drawn.times, drawn.paths[name][: drawn.num_particles], drawn.target
            )
            for name in (first, other)
        }
        comparison(panels, limits=drawn.wide_limits, path=folder / f"{other}.png")


def _write_animations(drawn: _Drawn, folder: Path, shown: np.ndarray) -> None:
    """Animations of the steps `shown`, drawn one figure at a time."""
    animate((_cloud(drawn, k) for k in shown), folder / "flow.gif", dpi=150)
    animate((_trails(drawn, k) for k in shown), folder / "particles.gif", dpi=80)
    animate((_density(drawn, k) for k in shown), folder / "density.gif", dpi=80)
    fields = (drawn.field((float(drawn.times[k]),)) for k in shown)
    animate(fields, folder / "field.gif", dpi=80)


def _cloud(drawn: _Drawn, k: int) -> Figure:
    titles = ["data", f"t = {drawn.times[k]:.2f}"]
    clouds = [drawn.target, drawn.points[:, k]]
    shades = [colors["data_x"], colors["output_x_hat"]]
    return point_clouds(clouds, titles=titles, color=shades, limits=drawn.limits)


def _trails(drawn: _Drawn, k: int) -> Figure:
    # A trail needs two times.
    times = drawn.times[: max(k + 1, 2)]
    points = drawn.points[: drawn.num_particles, : len(times)]
    behind = drawn.target[:_NUM_BEHIND]
    return trajectories(times, points, target=behind, limits=drawn.wide_limits)


def _density(drawn: _Drawn, k: int) -> Figure:
    samples = {"data": drawn.target, f"t = {drawn.times[k]:.2f}": drawn.points[:, k]}
    return density_2d(samples, resolution=50, limits=drawn.limits)
