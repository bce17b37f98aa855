"""What is recorded during a run, and how it leaves the device without delaying training.

Metrics of calls that are still running are pending. They are fetched once they are
ready, or when a callback or a checkpoint needs them.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class TooManySkipped(FloatingPointError):
    """Raised by `Recorder`; `fit` adds what was reached."""


class Series(NamedTuple):
    """Values, and the steps after which they were recorded.

    `steps` has shape `(n,)`, `values` has shape `(n, ...)`.
    """

    steps: np.ndarray
    values: np.ndarray


class Recorder:
    """Collects metrics from the device and values of callbacks.

    **Arguments:**

    - `history`: what was recorded before this run was resumed.
    - `stacked`: whether metrics on the device have a leading axis of steps.
    - `most_skipped`: how many skipped steps in a row end the training.
    """

    def __init__(
        self,
        history: Mapping[str, Series],
        *,
        stacked: bool,
        most_skipped: int | None,
    ):
        self._parts = {name: [series] for name, series in history.items()}
        self._shapes = {
            name: series.values.shape[1:] for name, series in history.items()
        }
        self._stacked = stacked
        self._pending: deque[tuple[int, Any]] = deque()
        self._most_skipped = most_skipped
        self._skipped = 0
        self._diverged: TooManySkipped | None = None
        self._metrics: set[str] = set()
        self._reported: set[str] = set()
        self.loss: float | None = None
        self.last: dict[str, np.ndarray] = {}

    def add_pending(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics on the device, of the call that ended at `step`."""
        if not self._metrics:
            self._metrics = set(metrics)
            self._check_distinct()
        lead = 1 if self._stacked else 0
        for name, metric in metrics.items():
            self._check_shape("loss", name, metric.shape[lead:])
        self._pending.append((step, metrics))

    def add(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Values on the host, each of one step."""
        self._reported |= set(values)
        self._check_distinct()
        for name, value in values.items():
            self._check_shape("callbacks", name, value.shape)
            self._append(name, Series(np.array([step]), value[None]))

    def drain(self, *, wait: bool) -> None:
        """Fetch the metrics that are ready, or all of them."""
        fetched = []
        while self._pending and (wait or self._pending[0][1]["loss"].is_ready()):
            fetched.append(self._pending.popleft())
        if fetched:
            self._record(fetched)
        # A process that stops alone leaves the others waiting: only looks that wait are at
        # the same step everywhere.
        is_common = wait or jax.process_count() == 1
        if is_common and self._diverged is not None:
            raise self._diverged

    def history(self) -> dict[str, Series]:
        """Everything fetched so far."""
        for name, parts in self._parts.items():
            if len(parts) > 1:
                steps = np.concatenate([series.steps for series in parts])
                values = np.concatenate([series.values for series in parts])
                # Joined once, so that the next call has less to join.
                self._parts[name] = [Series(steps, values)]
        return {name: parts[0] for name, parts in self._parts.items()}

    def _record(self, fetched):
        # Calls of several steps have a leading axis of steps already.
        join = np.concatenate if self._stacked else np.stack
        last_step, _ = fetched[-1]
        values = {}
        for name in fetched[0][1]:
            values[name] = join([np.asarray(metrics[name]) for _, metrics in fetched])

        count = len(values["loss"])
        steps = np.arange(last_step - count + 1, last_step + 1)
        for name, value in values.items():
            self._append(name, Series(steps, value))

        self.loss = float(np.mean(values["loss"], dtype=np.float32))
        self.last = {name: np.asarray(value[-1]) for name, value in values.items()}
        self._check_finite(steps, values["skipped"])

    def _check_distinct(self):
        both = sorted(self._metrics & self._reported)
        if both:
            raise ValueError(
                f"`callbacks`: {both} are returned by a callback, and are metrics of "
                "`loss`, too; rename one of them, or they would be one series."
            )

    def _check_shape(self, argument, name, shape):
        first = self._shapes.setdefault(name, shape)
        if shape != first:
            raise ValueError(
                f"`{argument}`: {name!r} was recorded with "
                f"shape {first} and now has shape {shape}; "
                "return arrays of one shape, "
                "such as a mean over the batch, "
                "or rename one of them."
            )

    def _append(self, name, series):
        self._parts.setdefault(name, []).append(series)

    def _check_finite(self, steps, skipped):
        # The count goes on from one fetch to the next.
        for step, skip in zip(steps, skipped, strict=True):
            self._skipped = self._skipped + 1 if skip else 0
            if self._skipped == self._most_skipped and self._diverged is None:
                self._diverged = TooManySkipped(
                    f"The loss or its gradient was not finite, or the gradient longer "
                    f"than `max_grad_norm`, in {self._skipped} steps in a row, up to "
                    f"step {step}. Likely causes: NaN or infinity in "
                    "`batches`; a learning rate that is too large (lower it, or clip: "
                    "`optax.chain(optax.clip_by_global_norm(1.0), ...)`); an empty or "
                    "fully masked set, a label out of range, or the root of zero, in `loss`. "
                    "`jax.config.update('jax_debug_nans', True)` finds the place. "
                    "Skipped steps do not change the weights, and checkpoints are "
                    "untouched."
                )
