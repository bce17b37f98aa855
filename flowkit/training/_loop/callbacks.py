"""Functions called during training, which report values and may end it."""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from flowkit._checks import check_call, check_instance
from flowkit.training._step import METRICS, positive, TrainState


class Every(eqx.Module):
    """A callback that `fit` calls before the first step, every `n` steps, and at the end.

    `function(state, step)` returns `None`, or a dict of numbers or arrays that join the
    history under its names, which no other callback may return, or
    `fk.training.Stop()` to end the training. `state` is a copy that may be kept.

    With an argument `metrics`, `function(state, step, metrics)` is also given the
    metrics of the last step, a dict of NumPy arrays with `"loss"`, `"grad_norm"`,
    `"skipped"`, whatever the loss reports, and what callbacks before it in the list have
    returned. There are none before the first step, so such a function is not called then.

    The call before the first step shows a mistake in the callback at once, and records
    what the untrained model does. With several steps per call it comes at the end of
    the call in which a multiple of `n` was reached. With `n` equal to `every` of the
    checkpoints, it comes just before each of them is written.

    If the function is an object with a method `begin_run()`, `fit` calls that as a run
    begins or is resumed, so that one object may serve several runs.
    """

    n: int = eqx.field(converter=operator.index)
    function: Callable[..., Any]

    def __check_init__(self):
        check_instance("function", self.function)
        if self.n < 1:
            raise ValueError(
                f"`n` must be at least 1, got {self.n}: the callback is called every "
                "`n` steps."
            )


class Stop(Exception):
    """Returned or raised by a callback, it ends `fit`, which returns its result.

    The other callbacks are called once more, and the last step is saved. The run then
    counts as complete: the same command does not train further, but one with another
    `num_steps` does.

    **Arguments:**

    - `values`: a dict of what joins the history, as a callback returns it.
    """

    def __init__(self, values: Mapping[str, Any] | None = None):
        super().__init__(values)
        self.values = values


class EarlyStopping:
    """A callback that ends training when a validation loss stops improving.

    ```python
    validation = fk.training.EarlyStopping(lambda state: loss_of(state.ema), patience=5)
    callbacks = [fk.training.Every(100, validation)]
    ```

    Its values join the history as `name`. It begins again with each run and with each
    resumption.

    **Arguments:**

    - `function`: `state -> number`; lower is better.
    - `patience`: how many calls in a row may pass without a new minimum.
    - `min_improvement`: by how much a value must lie below the minimum to count as new.
    - `name`: the name in the history.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        patience: int,
        min_improvement: float = 0.0,
        name: str = "validation_loss",
    ):
        self._function = function
        self._patience = positive("patience", patience)
        self._min_improvement = min_improvement
        self._name = name
        self.begin_run()

    def begin_run(self) -> None:
        """Forget the minimum; `fit` calls it."""
        self._minimum = float("inf")
        self._waited = 0

    def __call__(self, state: TrainState, step: int) -> dict[str, float] | Stop:
        # A callback that calls this one hides `begin_run` from `fit`.
        if step == 0:
            self.begin_run()

        value = float(self._function(state))
        # NaN is never below the minimum, so it counts as no improvement.
        if value < self._minimum - self._min_improvement:
            self._minimum = value
            self._waited = 0
        else:
            self._waited += 1

        values = {self._name: value}
        return Stop(values) if self._waited >= self._patience else values


class Callback(NamedTuple):
    """A function, how often it is called, and whether it is given the metrics."""

    every: int
    function: Callable[..., Any]
    takes_metrics: bool

    def is_due(self, before: int, now: int) -> bool:
        """Whether a multiple of `every` lies in `(before, now]`."""
        return passed(before, now, self.every)


def passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in `(before, now]`."""
    return now // every > before // every


def as_callbacks(given: Sequence[Every | Callable[..., Any]]) -> list[Callback]:
    """The callbacks of a run that begins; plain functions are called after every call."""
    callbacks = []
    for one in given:
        check_instance("callbacks", one)
        every = one if isinstance(one, Every) else Every(1, one)
        if hasattr(every.function, "begin_run"):
            every.function.begin_run()
        takes_metrics = _takes_metrics(every.function)
        keywords = ["metrics"] if takes_metrics else []
        check_call("callbacks", every.function, "state, step", *keywords)
        callbacks.append(Callback(every.n, every.function, takes_metrics))
    return callbacks


def _takes_metrics(function: Callable[..., Any]) -> bool:
    try:
        return "metrics" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


def call(
    callback: Callback, state: TrainState, step: int, metrics: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], bool]:
    """What the callback reports, on the host, and whether it ends the training."""
    keywords = {"metrics": dict(metrics)} if callback.takes_metrics else {}
    try:
        report = callback.function(state, step, **keywords)
    except Stop as stop:
        report = stop
    if report is Stop:
        report = Stop()
    if isinstance(report, Stop):
        return _values(callback.function, report.values), True
    return _values(callback.function, report), False


def check_names(
    owners: dict[str, Callback], callback: Callback, values: Mapping[str, Any]
) -> None:
    """Raises for a name that another callback has returned; `owners` keeps all of them."""
    for name in values:
        owner = owners.setdefault(name, callback)
        if owner is not callback:
            raise ValueError(
                f"`callbacks`: {owner.function} and {callback.function} both return "
                f"{name!r}, which would be one series; rename one of them."
            )


def _values(function: Callable[..., Any], report: Any) -> dict[str, np.ndarray]:
    if report is None:
        return {}
    named = isinstance(report, Mapping) and all(
        isinstance(name, str) for name in report
    )
    if not named:
        raise ValueError(
            f"`callbacks`: {function} must return None or a dict of named values, or "
            f"`fk.training.Stop()` to end the training, got {type(report)}."
        )
    taken = sorted(set(report) & set(METRICS))
    if taken:
        raise ValueError(
            f"`callbacks`: {function} returns {taken}, which training records itself; "
            "rename them."
        )
    # Copies: the callback may fill the same array again at its next call.
    arrays = {name: np.array(value) for name, value in report.items()}
    for name, array in arrays.items():
        dtype = array.dtype
        is_number = jnp.issubdtype(dtype, jnp.number)
        is_known = is_number or dtype == np.bool_
        if not is_known or array.size == 0:
            raise ValueError(
                f"`callbacks`: {function} returns "
                f"{dtype} values of shape {array.shape} as {name!r}; "
                "return numbers, or arrays that are not empty."
            )
    return arrays
