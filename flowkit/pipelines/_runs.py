"""The folder of a run: the model that its last stage left, and the options it was given."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowkit import data, latent, training
from flowkit.pipelines._folders import (
    checkpoint_steps,
    stored_run,
)
from flowkit.pipelines._set_flow_config import LEGACY, SetFlowConfig


def load_set_flow(
    folder: str | os.PathLike[str],
) -> tuple[latent.SetFlow, dict[str, Any]]:
    """The model that the last stage of a run left, and the stored options of the run.

    Among the options are the `units` of clouds from a file, `None` for others:
    `options["units"].undo` brings samples back to the units of the file.

    **Arguments:**

    - `folder`: the output folder, with the checkpoints of `fk.training.fit_stages` in
        `checkpoints`. Their `config` has a `fk.pipelines.SetFlowConfig` under `model`.

    **Raises:** `FileNotFoundError` for a folder without checkpoints, and `ValueError` for
    one that holds a run of something else.
    """
    checkpoints, options = stored_run(folder, "point clouds")
    if options.get("units") is not None:
        options["units"] = data.Units(*map(np.asarray, options["units"]))

    def build(config: Any) -> latent.SetFlow:
        return SetFlowConfig.from_json(config["model"]).build()

    return training.restore_model(checkpoints, build), options


def continued(
    folder: str | os.PathLike[str],
    model: SetFlowConfig,
    options: Mapping[str, Any],
    *,
    free: Collection[str] = (),
) -> tuple[SetFlowConfig, dict[str, Any]]:
    """Model and options as they are compared with those of the run that a folder holds.

    Options that are free may differ from those of the run. Options that the version of
    flowkit that started the run did not store have the values that they had then.

    **Arguments:**

    - `folder`: the output folder, which may hold no run yet.
    - `model`, `options`: what is asked for now.
    - `free`: names of options that may change when a run goes on.

    **Returns:** the model to build, and the `config` of `fk.training.Checkpoints`.

    **Raises:** `ValueError` for a folder that holds a run of something else.
    """
    fixed = {name: value for name, value in options.items() if name not in free}
    fields = dataclasses.asdict(model)
    try:
        _, before = stored_run(folder, "point clouds")
    # No run yet: what is asked for now decides.
    except FileNotFoundError:
        return model, fixed | {"model": fields}

    # The stored values of free options, so that comparing the two configurations finds
    # no difference in them.
    fixed |= {name: before[name] for name in free if name in before}
    # Some runs have not stored them; they are those of the same file.
    if "units" not in before:
        fixed.pop("units", None)
    missing = {
        name: value for name, value in LEGACY.items() if name not in before["model"]
    }
    # Left out again, because the stored configuration lacks them too.
    fields = {name: value for name, value in fields.items() if name not in missing}

    return dataclasses.replace(model, **missing), fixed | {"model": fields}


def saved_step(folder: str | os.PathLike[str], stage: str) -> int:
    """The step of the last checkpoint of a stage; 0 if there is none."""
    steps = checkpoint_steps(Path(folder) / "checkpoints" / stage)
    return max(steps, default=0)
