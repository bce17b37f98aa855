"""What was recorded during a run, and how it leaves the device without holding up training."""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


_MAX_SKIPPED = 10


class Series(NamedTuple):
    """Values and the steps after which they were recorded: `steps (n,)`, `values (n, ...)`."""

    steps: np.ndarray
    values: np.ndarray


class Recorder:
    """Collects metrics; those of calls still running are pending.

    `stacked`: metrics on the device have a leading axis of steps.
    """

    def __init__(self, history: Mapping[str, Series], *, stacked: bool):
        self._parts: dict[str, list[Series]] = {
            name: [series] for name, series in history.items()
        }
        self._stacked = stacked
        # (step, metrics on the device of the call that ended there)
        self.pending: deque[tuple[int, Any]] = deque()
        self._skipped = 0
        self.loss: float | None = None

    def add(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Values on the host, each of one step."""
        for name, value in values.items():
            self._append(name, Series(np.array([step]), np.asarray(value)[None]))

    def drain(self, *, wait: bool) -> None:
        """Fetch the metrics that are ready, or all of them."""
        fetched = []
        while self.pending and (wait or self.pending[0][1]["loss"].is_ready()):
            fetched.append(self.pending.popleft())
        if not fetched:
            return
        join = np.concatenate if self._stacked else np.stack
        values = {
            name: join([np.asarray(metrics[name]) for _, metrics in fetched])
            for name in fetched[0][1]
        }
        last, count = fetched[-1][0], len(values["loss"])
        steps = np.arange(last - count + 1, last + 1)
        for name, value in values.items():
            self._append(name, Series(steps, value))
        self.loss = float(np.mean(values["loss"]))
        self._check_finite(steps, values["skipped"])

    def history(self) -> dict[str, Series]:
        """Everything fetched so far."""
        for name, parts in self._parts.items():
            if len(parts) > 1:
                steps, values = zip(*parts, strict=True)
                self._parts[name] = [
                    Series(np.concatenate(steps), np.concatenate(values))
                ]
        return {name: parts[0] for name, parts in self._parts.items()}

    def _append(self, name, series):
        parts = self._parts.setdefault(name, [])
        if parts and parts[0].values.shape[1:] != series.values.shape[1:]:
            raise ValueError(
                f"`callbacks`: {name!r} was recorded with shape {parts[0].values.shape[1:]} and now has shape "
                f"{series.values.shape[1:]}; return arrays of one shape, or rename one of them."
            )
        parts.append(series)

    def _check_finite(self, steps, skipped):
        for step, skip in zip(steps, skipped, strict=True):
            self._skipped = self._skipped + 1 if skip else 0
            if self._skipped == _MAX_SKIPPED:
                raise FloatingPointError(
                    f"The loss or its gradient was not finite in {_MAX_SKIPPED} steps in a row, up to step {step}. "
                    "Likely causes: NaN or infinity in `batches`; a learning rate that is too large (lower it, or "
                    "clip: `optax.chain(optax.clip_by_global_norm(1.0), ...)`); an empty or fully masked set, or "
                    "the square root of zero, in `loss`. `jax.config.update('jax_debug_nans', True)` finds the "
                    "place. The weights are those before these steps; checkpoints are untouched."
                )
