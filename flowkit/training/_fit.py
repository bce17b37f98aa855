"""The training loop."""

import contextlib
import functools as ft
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree
from tqdm import tqdm

from flowkit._types import PRNGKey
from flowkit.training._batches import make_source, Resident, Stream
from flowkit.training._callbacks import call, Every, passed
from flowkit.training._checkpoints import Checkpoints, Saver
from flowkit.training._history import Recorder, Series
from flowkit.training._sharding import replicate
from flowkit.training._state import (
    EMADecay,
    init_state,
    Trainable,
    TrainState,
    WarmUpDecay,
)
from flowkit.training._step import (
    check_steps_per_call,
    compiled,
    make_recipe,
    Recipe,
    take_apart,
)


_REFRESH_SECONDS = 0.25


class FitResult(eqx.Module):
    """What `fit` returns: the last state, and everything recorded on the way.

    `history` maps a name (`"loss"`, `"grad_norm"`, `"skipped"`, the loss's metrics, the callbacks' values) to
    `Series(steps, values)`, NumPy arrays with the same first axis. `steps` counts the steps done.
    """

    state: TrainState
    history: dict[str, Series]

    @property
    def model(self) -> Any:
        """The trained model."""
        return self.state.model

    @property
    def ema(self) -> Any:
        """The model with averaged weights; `None` if `ema_decay` was `None`."""
        return self.state.ema


def fit(
    loss: Callable[..., Any],
    model: PyTree[Any],
    batches: Any,
    *,
    optimizer: optax.GradientTransformation = optax.adam(1e-3),
    num_steps: int,
    ema_decay: EMADecay = WarmUpDecay(0.999),
    trainable: Trainable = None,
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

    - `loss`: `(model, batch, key) -> scalar` or `-> (scalar, metrics)`; the metrics join the history.
    - `model`: any pytree with floating-point arrays. It is copied, not changed.
    - `batches`: one of
        - an array, or a pytree of arrays with the same first axis: it stays on the device, and each step draws
          `batch_size` examples there, uniformly with replacement (all of them, if that is `None`);
        - a grain `MapDataset` or `IterDataset` of batches; the former is repeated for ever, reshuffled each
          time. If its records are slow to read, give it threads: `dataset.repeat().to_iter_dataset()`;
        - any other iterable of batches, but then without `checkpoints`.
    - `optimizer`: an Optax optimiser; clipping and schedules are Optax's, see `make_step`.
    - `num_steps`: how many steps in total, those before a resumption included.
    - `ema_decay`: the decay of the averaged weights: a function of the step such as `WarmUpDecay(0.999)`, which
        forgets the initial weights at once, a constant, which remembers them for some `1 / (1 - ema_decay)` steps, or
        `None`.
    - `trainable`: a function from the model to the part or parts to train, see `make_step`.
    - `mesh`: from `data_mesh`: batches are split over its devices.
    - `steps_per_call`: how many steps one compiled call makes; above 1 it helps where a step takes less than
        a millisecond. Callbacks and checkpoints happen between calls.
    - `checkpoints`: save there, and resume from there. On a CPU a resumed run ends with the same bits as one
        that never stopped.
    - `callbacks`: `Every(n, function)`, or a function that is called after every call; `function(state, step)`
        returns a dict that joins the history, or `None`.
    - `progress`: a progress bar with the loss and the rate.
    - `key`: same key, same run. A resumed run goes on with the key that it was started with.

    **Raises:** `FloatingPointError` after ten steps in a row without a finite gradient.
    """
    check_steps_per_call(steps_per_call)
    if num_steps < 0:
        raise ValueError(f"`num_steps` must not be negative, got {num_steps}.")
    recipe = make_recipe(loss, optimizer, ema_decay, trainable, mesh)
    source = make_source(
        batches, batch_size, mesh, needs_position=checkpoints is not None
    )
    state = init_state(
        model, optimizer, ema_decay=ema_decay, trainable=trainable, key=key
    )
    callbacks = [one if isinstance(one, Every) else Every(1, one) for one in callbacks]
    with contextlib.ExitStack() as stack:
        saver = (
            None
            if checkpoints is None
            else stack.enter_context(contextlib.closing(Saver(checkpoints)))
        )
        run = _Run(
            recipe, source, state, saver, callbacks, steps_per_call=steps_per_call
        )
        if checkpoints is not None and run.step > num_steps:
            raise ValueError(
                f"`num_steps`={num_steps} is the total, and {checkpoints.directory} is already at step {run.step}; "
                "ask for more steps, or pass another `directory`."
            )
        stopped = stack.enter_context(_ctrl_c(active=saver is not None))
        bar = stack.enter_context(
            tqdm(
                total=num_steps,
                initial=run.step,
                disable=not progress or jax.process_index() > 0,
                unit="step",
            )
        )
        run.train(num_steps, bar, stopped)
    return FitResult(run.state(), run.recorder.history())


class _Run:
    """The state of the loop: arrays on the device, and what surrounds them."""

    def __init__(
        self,
        recipe: Recipe,
        source: Resident | Stream,
        state: TrainState,
        saver: Saver | None,
        callbacks: list[Every],
        *,
        steps_per_call: int,
    ):
        self.steps_per_call = steps_per_call
        self.source, self.saver, self.callbacks = source, saver, callbacks
        arrays, self.frame = take_apart(state)
        self.arrays = arrays if recipe.mesh is None else replicate(arrays, recipe.mesh)
        self.programs = ft.lru_cache(
            lambda length: compiled(recipe, self.frame, source.feed(length))
        )
        self.step, history = 0, {}
        found = None if saver is None else saver.resume(self.state())
        if found is not None:
            state, history, position = found
            self.arrays, self.step = take_apart(state)[0], int(state.step)
            source.seek(position)
        self.recorder = Recorder(history, stacked=steps_per_call > 1)
        self.whole = True

    def state(self) -> TrainState:
        return self.frame.build(self.arrays)

    def copy(self) -> TrainState:
        """The state in buffers that no later step takes over."""
        return self.frame.build(_copies(self.arrays))

    def train(self, num_steps: int, bar: Any, stopped: threading.Event) -> None:
        """The loop. Between calls `whole` says that state, step and position in the data belong together."""
        try:
            if self.step == 0:
                self.call_back(self.callbacks)
            while self.step < num_steps and not stopped.is_set():
                self.advance(num_steps, bar)
            self.save()
            if stopped.is_set():
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            if self.whole:
                self.save()
            raise
        finally:
            bar.close()

    def advance(self, num_steps: int, bar: Any) -> None:
        """Calls up to the next callback, checkpoint or refresh of the bar."""
        start, size = self.step, self.steps_per_call
        intervals = [one.n for one in self.callbacks] + (
            [] if self.saver is None else [self.saver.every]
        )
        pause = min([num_steps] + [(start // every + 1) * every for every in intervals])
        programs, take, pending = self.programs, self.source.take, self.recorder.pending
        step, length, now = start, None, time.monotonic
        refresh = now() + _REFRESH_SECONDS
        while step < pause and now() < refresh:
            if size > 1:
                # Calls end at multiples of `steps_per_call`, whatever step a run resumes from.
                length = min(size - step % size, num_steps - step)
            self.whole = False
            self.arrays, metrics = programs(length)(self.arrays, take(length))
            self.step = step = step + (length or 1)
            self.whole = True
            pending.append((step, metrics))
        self.recorder.drain(wait=step >= pause)
        if self.recorder.loss is not None:
            bar.set_postfix(loss=f"{self.recorder.loss:.4g}", refresh=False)
        bar.update(step - bar.n)
        last = step == num_steps
        self.call_back(
            [one for one in self.callbacks if last or passed(start, step, one.n)]
        )
        if self.saver is not None and passed(start, step, self.saver.every):
            self.save()

    def call_back(self, callbacks: list[Every]) -> None:
        if callbacks:
            state = self.copy()
            for one in callbacks:
                self.recorder.add(self.step, call(one.function, state, self.step))

    def save(self) -> None:
        if self.saver is not None:
            self.recorder.drain(wait=True)
            self.saver.save(
                self.step, self.copy(), self.recorder.history(), self.source.position()
            )


@jax.jit
def _copies(arrays: list[Any]) -> list[Any]:
    return [jnp.copy(array) for array in arrays]


@contextlib.contextmanager
def _ctrl_c(*, active: bool) -> Iterator[threading.Event]:
    """Set the event at the first Ctrl-C, so that the step at hand is finished and saved; the second one stops."""
    stopped = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if (
        not active
        or not main
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield stopped
        return

    def handler(number, frame):
        if stopped.is_set():
            signal.default_int_handler(number, frame)
        stopped.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
