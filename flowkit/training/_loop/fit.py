"""`fit`: one model, one loss, one run."""

import contextlib
import functools as ft
import logging
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree
from tqdm import tqdm

from flowkit._types import PRNGKey
from flowkit.training._checkpoints import Checkpoints, SaveFailed, Saver
from flowkit.training._loop.agreement import check_agreement
from flowkit.training._loop.batches import make_source
from flowkit.training._loop.callbacks import as_callbacks, Every
from flowkit.training._loop.history import Series, TooManySkipped
from flowkit.training._loop.interrupts import interruptions
from flowkit.training._loop.loop import Loop
from flowkit.training._step import (
    AbstractPlacement,
    as_placement,
    Configuration,
    EMADecay,
    init_state,
    not_negative,
    OneDevice,
    Optimizer,
    positive,
    Skipping,
    Trainable,
    TrainState,
    WarmUpDecay,
)


_log = logging.getLogger("flowkit.training")


class FitResult(eqx.Module):
    """What `fit` returns.

    - `state`: the last state.
    - `history`: maps a name (`"loss"`, `"grad_norm"`, `"skipped"`, the metrics of the
      loss, the values of callbacks) to `Series(steps, values)`, NumPy arrays with the
      same first axis. `steps` counts the steps done.
    - `seconds`: how long the training took, callbacks and checkpoints included. For a
      resumed run, its earlier parts count too, but not the time in between.
    """

    state: TrainState
    history: dict[str, Series]
    seconds: float = 0.0

    @property
    def model(self) -> Any:
        """The trained model."""
        return self.state.model

    @property
    def ema(self) -> Any:
        """The model with averaged weights, in the types of those of `model`.

        `None` if `ema_decay` was `None`. The average itself, which is kept in float32
        for weights of half precision, is `state.average`.
        """
        return self.state.ema


class Diverged(FloatingPointError):
    """Raised by `fit` after too many skipped steps in a row, see `Skipping`.

    `result` is the `FitResult` up to then, which skipped steps have not changed.
    """

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result


class NotSaved(OSError):
    """Raised by `fit` if a checkpoint cannot be written: the disk is full, the folder gone.

    Complete checkpoints are kept. `result` is the `FitResult` up to then.
    """

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result


def fit(
    loss: Callable[..., Any],
    model: PyTree[Any],
    batches: Any,
    *,
    optimizer: Optimizer = optax.adam(1e-3),
    num_steps: int,
    ema_decay: EMADecay = WarmUpDecay(0.999),
    trainable: Trainable = None,
    skipping: Skipping = Skipping(),
    parallel: AbstractPlacement = OneDevice(),
    mesh: Mesh | None = None,
    steps_per_call: int = 1,
    batch_size: int | None = None,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[Every | Callable[..., Any]] = (),
    progress: bool = True,
    key: PRNGKey,
) -> FitResult:
    """Train a model.

    ```python
    result = fk.training.fit(loss, model, x1, batch_size=256, num_steps=2000, key=key)
    result.ema, result.history["loss"].values
    ```

    **Arguments:**

    - `loss`: `(model, batch, key) -> scalar` or `-> (scalar, metrics)`; the metrics join
      the history.
    - `model`: any pytree with floating-point arrays. It is copied, not changed.
    - `batches`: one of
        - an array, or a pytree of arrays with the same first axis: it stays on the
          device, and each step draws `batch_size` examples there, uniformly with
          replacement (all of them, if that is `None`);
        - a grain `MapDataset` or `IterDataset` of batches; the former is repeated
          forever, reshuffled each time. If its records are slow to read, give it
          threads: `dataset.repeat().to_iter_dataset()`;
        - any other iterable of batches, but then without `checkpoints`. A step sees the
          batch as it was when the iterable gave it: arrays are copied. A list is
          refused, since it could also be a pytree.
    - `optimizer`: an Optax optimizer, or anything with its `init` and `update`;
      clipping, schedules and accumulation are Optax's, see `make_step`.
    - `num_steps`: the total number of steps, those before a resumption included.
    - `ema_decay`: the decay of the averaged weights: a function of the step such as
      `WarmUpDecay(0.999)`, which forgets the initial weights at once, a constant, which
      remembers them for some `1 / (1 - ema_decay)` steps, or `None`.
    - `trainable`: a function from the model to the part or parts to train, see
      `make_step`.
    - `skipping`: which steps change nothing, and how many of them in a row end the
      training.
    - `parallel`: spreads the work over several devices: `Replicated`, `FullySharded` or
      `Pmapped`. Batches are split over them, and the steps are those of one device up to
      the order of sums.
    - `mesh`: from `data_mesh`; short for `parallel=Replicated(mesh)`.
    - `steps_per_call`: how many steps one compiled call makes; above 1 it helps where a
      step takes less than a millisecond. Callbacks and checkpoints happen between calls.
    - `checkpoints`: save there, and resume from there. On a CPU a resumed run ends with
      the same bits as one that never stopped. Only callbacks with a memory, such as
      `EarlyStopping`, begin again.
    - `callbacks`: `Every(n, function)`, or a function that is called after every call.
      `function(state, step)` returns `None`, or a dict that joins the history, or
      `Stop()` to end the training; with an argument `metrics` it is given those of the
      last step, see `Every`.
    - `progress`: a progress bar with the loss and the rate, and a line that says where
      a run resumes. Without it that line goes to the logger `flowkit.training`.
    - `key`: random seed. A resumed run keeps the key that it was started with.

    An iterator that ends early ends the training, with a warning. With `checkpoints`,
    Ctrl-C (of one process) and SIGTERM finish the step and save it; the process then ends
    with status 130 or 143. An error in a callback, or while a batch is read or a
    step is compiled, saves the last step as well, unless there are several processes.

    Several processes must be asked for the same training. Their arguments are compared
    before the first step: all of them but `batches`, callbacks, and what functions and
    optimizers hide in closures.

    **Raises:** `fk.training.Diverged` after too many skipped steps in a row, see `Skipping`;
    `fk.training.NotSaved` if a checkpoint cannot be written; `ValueError` on all processes
    if they disagree.
    """
    steps_per_call = positive("steps_per_call", steps_per_call)
    num_steps = not_negative("num_steps", num_steps)
    batch_size = None if batch_size is None else operator.index(batch_size)
    placement = as_placement(parallel, mesh)
    parts: Any = {"ema_decay": ema_decay, "trainable": trainable}
    how: Any = {"placement": placement, "skipping": skipping}
    configuration = Configuration.of(loss, optimizer, **parts, **how)
    source = make_source(
        batches, batch_size, placement, needs_position=checkpoints is not None
    )
    state = init_state(model, optimizer, key=key, **parts)
    given: Any = {"num_steps": num_steps, "steps_per_call": steps_per_call}
    given["batch_size"] = batch_size
    given["checkpoints"] = checkpoints and vars(checkpoints)
    check_agreement(configuration, state, given)

    # The loop is made in `_run`: its saver is open there, and closed on the way out.
    make_loop = ft.partial(
        Loop,
        configuration,
        source,
        state,
        callbacks=as_callbacks(callbacks),
        steps_per_call=steps_per_call,
    )
    return _run(make_loop, num_steps, checkpoints, progress=progress)


def _run(
    make_loop: Callable[..., Loop],
    num_steps: int,
    checkpoints: Checkpoints | None,
    *,
    progress: bool,
) -> FitResult:
    """The loop, with everything that has to be closed after it."""
    shows = progress and jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        saver = None
        if checkpoints is not None:
            saver = stack.enter_context(contextlib.closing(Saver(checkpoints)))
        loop = make_loop(saver)
        if checkpoints is not None and loop.step > 0:
            _announce(checkpoints, loop.step, num_steps, shows=shows)

        # Without checkpoints nothing would be saved, so a signal may interrupt at once.
        interruption = stack.enter_context(interruptions(active=saver is not None))
        bar = stack.enter_context(
            tqdm(total=num_steps, initial=loop.step, disable=not shows, unit="step")
        )
        try:
            try:
                loop.train(num_steps, bar, interruption)
            finally:
                # Whatever ends the training: a signal asks for a complete checkpoint.
                if saver is not None:
                    saver.wait()
        except TooManySkipped as error:
            raise Diverged(str(error), _result(loop)) from None
        except SaveFailed as error:
            raise NotSaved(str(error), _result(loop)) from error.__cause__
    return _result(loop)


def _result(loop: Loop) -> FitResult:
    return FitResult(loop.state(), loop.history(), loop.seconds())


def _announce(
    checkpoints: Checkpoints, step: int, num_steps: int, *, shows: bool
) -> None:
    """Says where a run resumes; raises if that is past its end."""
    if step > num_steps:
        raise ValueError(
            f"`num_steps`={num_steps} is the total, and {checkpoints.directory} is "
            f"already at step {step}; ask for more steps, or pass another `directory`."
        )
    line = f"Resuming {checkpoints.directory} at step {step} of {num_steps}."
    if shows:
        tqdm.write(line, file=sys.stderr)
    else:
        _log.info(line)
