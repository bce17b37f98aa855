"""Pictures of a run of `flow_map_stages`, and the explorer of its training."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from flowkit import few_step, plotting, training
from flowkit._types import AnyArray
from flowkit.pipelines._flow_maps import flow_paths
from flowkit.pipelines._folders import checkpoint_steps


_EXPLORER_POINTS = 500
_EXPLORER_TIMES = 41


def draw_flow_map(
    models: Mapping[str, few_step.FlowMap],
    x0: Float[AnyArray, "n 2"],
    folder: str | os.PathLike[str],
    *,
    solver: dfx.AbstractSolver = dfx.Euler(),
    num_steps: int = 100,
    **options: Any,
) -> None:
    """Writes `fk.plotting.flow_gallery` for the models of `flow_map_stages`, in the plane.

    **Arguments:**

    - `models`: stage -> model; `flow` must be there.
    - `x0 (n, 2)`: noise.
    - `folder`: the folder of the files.
    - `solver`, `num_steps`: how flows are solved; the map takes one step.
    - `options`: `target`, `limits` and others, as in `fk.plotting.flow_gallery`.
    """
    times = np.linspace(0, 1, num_steps + 1)
    flows = {
        stage: few_step.velocity_of(model)
        for stage, model in models.items()
        if stage != "map"
    }
    how: Any = {"solver": solver, "num_steps": num_steps}
    paths = {stage: flow_paths(flow, x0, times, **how) for stage, flow in flows.items()}

    one_step = None
    if "map" in models:
        one_step = np.asarray(_jumps(models["map"], x0))
    plotting.flow_gallery(
        times, paths, folder, velocity=flows["flow"], one_step=one_step, **options
    )


def explore_training(
    folder: str | os.PathLike[str],
    build: Callable[[Any], Any],
    x0: Float[AnyArray, "n d"],
    *,
    flow_of: Callable[[Any], Callable[..., Any]] = lambda model: model,
    solver: dfx.AbstractSolver = dfx.Euler(),
    num_steps: int = 100,
    path: str | os.PathLike[str],
    **options: Any,
) -> Path:
    """Writes `fk.plotting.explorer` with a stage for each checkpoint of a flow.

    **Arguments:**

    - `folder`: the folder of the checkpoints of one run.
    - `build`: as in `fk.training.restore_model`.
    - `x0 (n, d)`: noise, of which 500 points are shown.
    - `flow_of`: model -> flow `(t, x, cond) -> dx`, such as `fk.few_step.velocity_of`. By
        default the model is a flow.
    - `solver`, `num_steps`: how flows are solved.
    - `path`: the path of the page.
    - `options`: as in `fk.plotting.explorer`.

    **Raises:** `ImportError` if plotly is not there.
    """
    times = np.linspace(0, 1, num_steps + 1)
    # Indices repeat where a grid has fewer times than are shown.
    shown = np.unique(np.linspace(0, num_steps, _EXPLORER_TIMES).astype(int))
    how: Any = {"solver": solver, "num_steps": num_steps}

    stages = []
    for step in checkpoint_steps(folder):
        flow = flow_of(training.restore_model(folder, build, step=step))
        points = flow_paths(flow, x0[:_EXPLORER_POINTS], times[shown], **how)
        stages.append(
            plotting.ExplorerStage(f"step {step}", times[shown], points, flow)
        )

    return plotting.explorer(stages, path=path, **options)


@eqx.filter_jit
def _jumps(flow_map, x0):
    return jax.vmap(lambda x: few_step.jump(flow_map, 0.0, 1.0, x))(x0)
