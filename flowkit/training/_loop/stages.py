"""Training in stages: one model, trained in parts one after the other.

A folder keeps the stages of a run in a file, in their order. A later call may go on with
the last of them, or add further ones.
"""

import json
import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from flowkit._files import replacing
from flowkit._types import PRNGKey
from flowkit.training._checkpoints import (
    check_writable,
    Checkpoints,
    has_checkpoint,
    restore,
)
from flowkit.training._loop.callbacks import Every
from flowkit.training._loop.fit import fit, FitResult
from flowkit.training._step import (
    AbstractPlacement,
    as_placement,
    EMADecay,
    not_negative,
    OneDevice,
    Optimizer,
    positive,
    Skipping,
    Trainable,
    WarmUpDecay,
)


_RECORD = "stages.json"


def _optional_index(value: Any) -> int | None:
    return None if value is None else operator.index(value)


class Stage(eqx.Module):
    """One stage of `fit_stages`: what is trained, with which loss, and for how long.

    **Arguments:**

    - `name`: names the result, and the folder of its checkpoints.
    - `loss`, `num_steps`, `optimizer`, `trainable`: as in `fit`.
    - `batches`, `batch_size`: its own data, as in `fit`; those of `fit_stages` if
      `batches` is `None`. A function is called with the model that the stage starts
      from: `lambda model: encode_all(model)`.
    - `steps_per_call`: as in `fit`; that of `fit_stages` if `None`.
    - `callbacks`: its own, after those of `fit_stages`.
    """

    name: str
    loss: Callable[..., Any]
    num_steps: int = eqx.field(converter=operator.index)
    optimizer: Optimizer = optax.adam(1e-3)
    trainable: Trainable = None
    batches: Any = None
    batch_size: int | None = eqx.field(default=None, converter=_optional_index)
    steps_per_call: int | None = eqx.field(default=None, converter=_optional_index)
    callbacks: Sequence[Every | Callable[..., Any]] = ()

    def __check_init__(self):
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(
                f"`name` must be a name that a folder can have, got {self.name!r}."
            )
        if self.batch_size is not None and self.batches is None:
            raise ValueError(
                f"`batch_size` of the stage {self.name!r} is for its own `batches`; "
                "this one has none."
            )
        not_negative("num_steps", self.num_steps)
        for name in ("batch_size", "steps_per_call"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))


def fit_stages(
    stages: Sequence[Stage],
    model: PyTree[Any],
    batches: Any = None,
    *,
    ema_decay: EMADecay = WarmUpDecay(0.999),
    start_from_average: bool = True,
    skipping: Skipping = Skipping(),
    parallel: AbstractPlacement = OneDevice(),
    mesh: Mesh | None = None,
    steps_per_call: int = 1,
    batch_size: int | None = None,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[Every | Callable[..., Any]] = (),
    progress: bool = True,
    key: PRNGKey,
) -> dict[str, FitResult]:
    """Train a model in stages, each by `fit` with its own loss, optimizer and parts.

    ```python
    first = fk.training.Stage(
        "flow", flow_loss, 2000, trainable=lambda m: (m.encoder, m.flow)
    )
    second = fk.training.Stage("prior", prior_loss, 1000, trainable=lambda m: m.prior)
    results = fk.training.fit_stages([first, second], model, batches, key=key)
    model = results["prior"].ema
    ```

    Every stage starts with a fresh optimizer state at step 0, from the model of the one
    before. What it does not train is left bitwise unchanged.

    **Arguments:**

    - `stages`: in their order.
    - `model`: as in `fit`; also a model restored from a checkpoint, to go on by hand
      with one of the stages.
    - `batches`, `batch_size`: the data of the stages that have none of their own.
    - `start_from_average`: start a later stage from the averaged weights of the one
      before, if it kept an average; with `False` from those of its last step. A stage
      never moves what it does not train: those weights are final.
    - `checkpoints`: each stage saves to the folder of its name in `checkpoints.directory`,
      from which `restore_model` reads. The same command resumes in the stage where it
      stopped, and on a CPU ends with the same bits. Stages that are complete may be left
      out from the beginning of the list: in the folder of the stage `flow`, `[prior]`
      starts from its model, as `[flow, prior]` does. Stages other than those of the folder
      raise a `ValueError`; so does another `num_steps` for a stage that a later one has
      followed.
    - `callbacks`: of all stages.
    - `ema_decay`, `skipping`, `parallel`, `mesh`, `steps_per_call`, `progress`: as in `fit`.
    - `key`: random seed. Stage `i` of the folder, or of the list, draws from
      `fold_in(key, i)`.

    **Returns:** the result of each stage in the list, with its own history, under its
    name, in their order.
    """
    _check(stages, batches)
    first = 0
    if checkpoints is not None:
        folder = checkpoints.directory
        first, model = _start(stages, model, folder, average=start_from_average)

    shared: Any = {"ema_decay": ema_decay, "skipping": skipping}
    shared |= {"parallel": as_placement(parallel, mesh), "progress": progress}
    results = {}
    for number, stage in enumerate(stages, start=first):
        data, size = _data_of(stage, model, batches, batch_size)
        result = fit(
            stage.loss,
            model,
            data,
            optimizer=stage.optimizer,
            num_steps=stage.num_steps,
            trainable=stage.trainable,
            steps_per_call=stage.steps_per_call or steps_per_call,
            batch_size=size,
            checkpoints=checkpoints and checkpoints.within(stage.name),
            callbacks=[*callbacks, *stage.callbacks],
            key=jr.fold_in(key, number),
            **shared,
        )
        results[stage.name] = result
        model = _next_model(result, average=start_from_average)
    return results


def _next_model(result: FitResult, *, average: bool) -> PyTree[Any]:
    """What the next stage starts from."""
    has_average = average and result.ema is not None
    return result.ema if has_average else result.model


def last_stage(directory: str | os.PathLike[str]) -> Path:
    """The folder of the last stage of a run that has a checkpoint.

    ```python
    folder = fk.training.last_stage("run")
    model = fk.training.restore_model(folder, build)
    config = fk.training.stored_config(folder)
    ```

    **Arguments:**

    - `directory`: the folder of the checkpoints that `fit_stages` was given.
    """
    folder = Path(directory).expanduser().absolute()
    for name, _ in reversed(_stored(folder)):
        if has_checkpoint(folder / name):
            return folder / name
    raise FileNotFoundError(
        f"`directory`: {folder} holds no checkpoint of a run of `fit_stages`."
    )


def _check(stages: Sequence[Stage], batches: Any) -> None:
    names = [stage.name for stage in stages]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            "`stages` must list at least one stage, under different names, got "
            f"{names}."
        )
    without = [stage.name for stage in stages if stage.batches is None]
    if batches is None and without:
        raise ValueError(
            f"`batches` is missing, and the stages {without} have none of their own."
        )


def _data_of(
    stage: Stage, model: PyTree[Any], batches: Any, batch_size: int | None
) -> tuple[Any, int | None]:
    """The data of a stage that starts from `model`, and the size of its batches."""
    if stage.batches is None:
        return batches, batch_size
    if callable(stage.batches):
        return stage.batches(model), stage.batch_size
    return stage.batches, stage.batch_size


def _start(
    stages: Sequence[Stage], model: PyTree[Any], directory: Path, *, average: bool
) -> tuple[int, PyTree[Any]]:
    """The number of the first stage in its folder, and the model it starts from."""
    before, whole = _placed(stages, directory)
    if before:
        name, num_steps = before[-1]
        model = _complete(directory / name, num_steps, model, average=average)
    _write(directory / _RECORD, whole)
    return len(before), model


def _complete(
    folder: Path, num_steps: int, model: PyTree[Any], *, average: bool
) -> PyTree[Any]:
    """The model of a stage that is over; `model` is one of the same structure."""
    step = 0
    if has_checkpoint(folder):
        ema = None if average else False
        restored = restore(folder, lambda config: model, ema=ema)
        if num_steps in (restored.step, restored.meta.get("stopped")):
            return restored.model
        step = restored.step
    raise ValueError(
        f"`stages` leave out {folder.name!r}, which in {folder.parent} is at step "
        f"{step} of {num_steps}; finish it first, with the command that began it."
    )


def _placed(
    stages: Sequence[Stage], directory: Path
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The stages of the folder before the given ones, and all of them."""
    check_writable(directory)
    given = [(stage.name, stage.num_steps) for stage in stages]
    stored = _stored(directory)
    # Stages that were planned but not reached bind nobody.
    while stored and not (directory / stored[-1][0]).exists():
        stored.pop()

    # A list that begins with a stage of the folder goes on from there; any other one
    # comes after all stages of the folder.
    names = [name for name, _ in stored]
    start = names.index(given[0][0]) if given[0][0] in names else len(stored)
    whole = stored[:start] + given
    whole_names = [name for name, _ in whole]

    goes_on = whole_names[: len(names)] == names
    is_unique = len(set(whole_names)) == len(whole_names)
    # A stage may be made longer until a later one has started from its result.
    settled = stored[:-1]
    is_same = whole[: len(settled)] == settled
    if not (goes_on and is_unique and is_same):
        raise ValueError(
            f"`stages` are {_words(given)}, but {directory} holds a run of "
            f"{_words(stored)}. Nothing was changed: pass another `directory` to "
            "`Checkpoints`, or the stages as they were."
        )
    return stored[:start], whole


def _stored(directory: Path) -> list[tuple[str, int]]:
    """The names and lengths of the stages that a folder was made for."""
    record = directory / _RECORD
    if not record.exists():
        return []
    return [(name, num_steps) for name, num_steps in json.loads(record.read_text())]


def _write(record: Path, stages: list[tuple[str, int]]) -> None:
    if jax.process_index() > 0:
        return
    with replacing(record) as file:
        file.write_text(json.dumps(stages))


def _words(stages: list[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({num_steps} steps)" for name, num_steps in stages)
