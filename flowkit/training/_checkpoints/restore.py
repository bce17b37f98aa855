"""The model of a run that is over, from its folder."""

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from flowkit._compat import restoring
from flowkit.training._checkpoints.compare import model_differences, shortened
from flowkit.training._checkpoints.storage import (
    best_value,
    damage_reported,
    Damaged,
    damaged_message,
    fill,
    quiet,
    read_arrays,
    read_meta,
)
from flowkit.training._checkpoints.versions import changed_versions


# The last release that recorded nothing about the static part of a model.
_WITHOUT_STATIC = "0.2.0"


class Restored(NamedTuple):
    """A model, the step after which it was saved, and what was stored with it."""

    model: PyTree[Any]
    step: int
    meta: Any


def restore_model(
    directory: str | os.PathLike[str],
    build: Callable[..., Any],
    *,
    step: int | None = None,
    ema: bool = True,
) -> PyTree[Any]:
    """The model of a run, from its checkpoints.

    `build(config)` makes a model like the one that was trained, from the `config` that
    `Checkpoints` was given. It is only traced: nothing is computed or allocated, and
    the arrays are read from disk. Several processes call it together, and each gets the
    whole model.

    **Arguments:**

    - `directory`: the folder that `Checkpoints` was given.
    - `build`: makes the model; the values of its arrays do not matter.
    - `step`: which checkpoint; `None` is the last one that can be read.
    - `ema`: the averaged weights (the default), or those of the last step.

    **Raises:** `ValueError` if `build` makes a different model from the one that was
    trained: with other arrays, or with another prediction, path, activation or option.
    """
    return restore(directory, build, step=step, ema=ema).model


def stored_config(directory: str | os.PathLike[str], *, step: int | None = None) -> Any:
    """The `config` of a run, which `Checkpoints` stored with its checkpoints.

    **Arguments:**

    - `directory`: the folder that `Checkpoints` was given.
    - `step`: which checkpoint; `None` is the last one that can be read.
    """

    def read(manager: ocp.CheckpointManager, step: int) -> Any:
        with damage_reported():
            return read_meta(manager, step)["config"]

    return _read_last(directory, step, read)


def best_step(directory: str | os.PathLike[str]) -> int:
    """The step of the best checkpoint, by the `best` that `Checkpoints` was given.

    ```python
    step = fk.training.best_step("run")
    model = fk.training.restore_model("run", build, step=step)
    ```

    **Arguments:**

    - `directory`: the folder that `Checkpoints` was given.

    **Raises:** `FileNotFoundError` if there is no checkpoint; `ValueError` if none has a
    value to compare.
    """
    folder = _folder(directory)
    with quiet():
        options = ocp.CheckpointManagerOptions(
            read_only=True, best_fn=best_value, best_mode="min"
        )
        manager = ocp.CheckpointManager(folder, options=options)
    with quiet(), contextlib.closing(manager):
        _candidates(folder, manager, None)
        step = manager.best_step()
    if step is None:
        raise ValueError(
            f"`directory`: no checkpoint in {folder} has a value to compare; train with "
            "`Checkpoints(..., best=...)`, or restore the last one."
        )
    return int(step)


def has_checkpoint(directory: Path) -> bool:
    """Whether a folder holds a checkpoint, readable or not."""
    if not directory.is_dir():
        return False
    return any(path.name.isdecimal() for path in directory.iterdir())


def restore(
    directory: str | os.PathLike[str],
    build: Callable[..., Any],
    *,
    step: int | None = None,
    ema: bool | None = True,
) -> Restored:
    """`restore_model` with what was stored; `ema=None` is the average if there is one."""

    def read(manager: ocp.CheckpointManager, step: int) -> Restored:
        with damage_reported():
            meta = read_meta(manager, step)
        has_average = "ema" in meta["arrays"]
        average = has_average if ema is None else ema
        if average and not has_average:
            raise ValueError(
                f"{directory} was trained without an average of the weights; pass "
                "`ema=False`."
            )

        name = "ema" if average else "model"
        skeleton = _skeleton(directory, build, meta, name)
        with damage_reported(changed_versions(meta)):
            arrays = read_arrays(manager, step, {name: skeleton})
        return Restored(fill(skeleton, arrays[name]), step, meta)

    return _read_last(directory, step, read)


def _read_last(
    directory: str | os.PathLike[str],
    step: int | None,
    read: Callable[[ocp.CheckpointManager, int], Any],
) -> Any:
    """What `read` makes of the step asked for, or of the last step it can read."""
    folder = _folder(directory)
    with quiet():
        options = ocp.CheckpointManagerOptions(read_only=True)
        manager = ocp.CheckpointManager(folder, options=options)
    damage = None
    with quiet(), contextlib.closing(manager):
        for candidate in _candidates(folder, manager, step):
            try:
                return read(manager, candidate)
            except Damaged as error:
                damage = error
                if step is None:
                    message = damaged_message(folder, candidate, error)
                    warnings.warn(message, stacklevel=5)
    raise ValueError(
        "`directory`: no checkpoint that was asked for can be read in "
        f"{folder}: {damage}"
    )


def _folder(directory: str | os.PathLike[str]) -> Path:
    folder = Path(directory).expanduser().absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"`directory`: there is no folder {folder}.")
    return folder


def _candidates(
    folder: Path, manager: ocp.CheckpointManager, step: int | None
) -> list[int]:
    steps = sorted(manager.all_steps(), reverse=True)
    if not steps:
        raise FileNotFoundError(
            f"`directory`: the folder {folder} holds no checkpoint."
        )
    if step is None:
        return steps
    if step not in steps:
        raise ValueError(
            f"`step`: {folder} has no checkpoint {step}, only {steps[::-1]}."
        )
    return [int(step)]


def _skeleton(
    directory: str | os.PathLike[str], build: Callable[..., Any], meta: Any, name: str
) -> PyTree[Any]:
    """The model without its arrays, which must fit those that are stored."""
    # Networks look at `restoring` for the defaults of the release that wrote the run.
    version = None if "static" in meta else _WITHOUT_STATIC
    token = restoring.set(version)
    try:
        skeleton = eqx.filter_eval_shape(lambda: build(meta["config"]))
    finally:
        restoring.reset(token)

    differences = model_differences(name, meta, skeleton)
    if differences:
        raise ValueError(
            f"`build` makes another model than the one in {directory}: "
            f"{shortened(differences)}{changed_versions(meta)}; build it as it was for "
            f"training, and change it afterwards. The stored config is {meta['config']}."
        )
    return skeleton
