"""Training in stages: one model, trained in parts one after the other."""

import json
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

from flowkit._types import PRNGKey
from flowkit.training._callbacks import Every
from flowkit.training._checkpoints import check_writable, Checkpoints
from flowkit.training._fit import fit, FitResult
from flowkit.training._state import EMADecay, Trainable, WarmUpDecay


_RECORD = "stages.json"


class Stage(eqx.Module):
    """One stage of `fit_stages`: what is trained, with which loss, and for how long.

    **Arguments:**

    - `name`: names the result, and the folder of its checkpoints.
    - `loss`, `num_steps`, `optimizer`, `trainable`: as in `fit`.
    - `batches`, `batch_size`: its own data, as in `fit`; those of `fit_stages` if `batches` is `None`. A function is
      called with the model that the stage starts from: `lambda model: encode_all(model)`.
    - `steps_per_call`: as in `fit`; that of `fit_stages` if `None`.
    - `callbacks`: its own, after those of `fit_stages`.
    """

    name: str
    loss: Callable[..., Any]
    num_steps: int
    optimizer: optax.GradientTransformation = optax.adam(1e-3)
    trainable: Trainable = None
    batches: Any = None
    batch_size: int | None = None
    steps_per_call: int | None = None
    callbacks: Sequence[Every | Callable[..., Any]] = ()

    def __check_init__(self):
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(
                f"`name` must be a name that a folder can have, got {self.name!r}."
            )
        if self.batch_size is not None and self.batches is None:
            raise ValueError(
                f"`batch_size` of the stage {self.name!r} is for its own `batches`, which it has not."
            )


def fit_stages(
    stages: Sequence[Stage],
    model: PyTree[Any],
    batches: Any = None,
    *,
    ema_decay: EMADecay = WarmUpDecay(0.999),
    start_from_average: bool = True,
    mesh: Mesh | None = None,
    steps_per_call: int = 1,
    batch_size: int | None = None,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[Every | Callable[..., Any]] = (),
    progress: bool = True,
    key: PRNGKey,
) -> dict[str, FitResult]:
    """Train a model in stages, each by `fit` with what it trains, its loss and an optimiser of its own.

    ```python
    first = fk.training.Stage("flow", flow_loss, 2000, trainable=lambda m: (m.encoder, m.flow))
    second = fk.training.Stage("prior", prior_loss, 1000, trainable=lambda m: m.prior)
    results = fk.training.fit_stages([first, second], model, batches, key=key)
    model = results["prior"].ema
    ```

    Every stage starts with a fresh optimiser state at step 0, from the model of the one before. What it does not train
    keeps its bits.

    **Arguments:**

    - `stages`: in their order.
    - `model`: as in `fit`; also a model restored from a checkpoint, to go on by hand with one of the stages.
    - `batches`, `batch_size`: the data of the stages that have none of their own.
    - `start_from_average`: start a later stage from the averaged weights of the one before, if it kept an average;
      with `False` from those of its last step. A stage never moves what it does not train: those weights are final.
    - `checkpoints`: each stage saves to the folder of its name in `checkpoints.directory`, from which `restore_model`
      reads. The same command resumes in the stage where it stopped, and on a CPU ends with the same bits. The list may
      grow at its end. Another list is a `ValueError`; so is another `num_steps` of a stage that was followed by a later
      one.
    - `callbacks`: of all stages.
    - `ema_decay`, `mesh`, `steps_per_call`, `progress`: as in `fit`.
    - `key`: stage `i` draws from `fold_in(key, i)`.

    **Returns:** the result of each stage, with its own history, under its name, in their order.
    """
    _check(stages, batches)
    if checkpoints is not None:
        _check_record(stages, checkpoints.directory)
    results = {}
    for number, stage in enumerate(stages):
        own = stage.batches is not None
        result = results[stage.name] = fit(
            stage.loss,
            model,
            stage.batches(model)
            if callable(stage.batches)
            else stage.batches
            if own
            else batches,
            optimizer=stage.optimizer,
            num_steps=stage.num_steps,
            ema_decay=ema_decay,
            trainable=stage.trainable,
            mesh=mesh,
            steps_per_call=stage.steps_per_call or steps_per_call,
            batch_size=stage.batch_size if own else batch_size,
            checkpoints=None if checkpoints is None else _of_stage(checkpoints, stage),
            callbacks=[*callbacks, *stage.callbacks],
            progress=progress,
            key=jr.fold_in(key, number),
        )
        model = (
            result.ema
            if start_from_average and result.ema is not None
            else result.model
        )
    return results


def _check(stages: Sequence[Stage], batches: Any) -> None:
    names = [stage.name for stage in stages]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"`stages` must list at least one stage, under different names, got {names}."
        )
    without = [stage.name for stage in stages if stage.batches is None]
    if batches is None and without:
        raise ValueError(
            f"`batches` is missing, and the stages {without} have none of their own."
        )


def _of_stage(checkpoints: Checkpoints, stage: Stage) -> Checkpoints:
    options = {
        "every": checkpoints.every,
        "keep": checkpoints.keep,
        "config": checkpoints.config,
    }
    return Checkpoints(checkpoints.directory / stage.name, **options)


def _check_record(stages: Sequence[Stage], directory: Path) -> None:
    """Compares the stages with those that the folder was made for, and writes them down."""
    check_writable(directory)
    record, given = (
        directory / _RECORD,
        [[stage.name, stage.num_steps] for stage in stages],
    )
    if record.exists():
        stored = json.loads(record.read_text())
        # A stage may be made longer until a later one has started from its result.
        last = max(
            (i for i, (name, _) in enumerate(stored) if (directory / name).exists()),
            default=0,
        )
        names = [name for name, _ in stored]
        if (
            names != [stage.name for stage in stages][: len(names)]
            or stored[:last] != given[:last]
        ):
            raise ValueError(
                f"`stages` are {_words(given)}, but {directory} holds a run of {_words(stored)}. Nothing was changed: "
                "pass another `directory` to `Checkpoints`, or the stages as they were."
            )
    if jax.process_index() == 0:
        # In one piece, also if the process ends here.
        written = record.with_suffix(".tmp")
        written.write_text(json.dumps(given))
        os.replace(written, record)


def _words(stages: Any) -> str:
    return ", ".join(f"{name} ({num_steps} steps)" for name, num_steps in stages)
