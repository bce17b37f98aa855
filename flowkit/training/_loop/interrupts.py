"""Ctrl-C and SIGTERM: the step at hand is finished and saved before the process ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


_DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


class Interruption:
    """Whether somebody has asked the training to end, and how."""

    def __init__(self):
        self._number: int | None = None

    @property
    def is_due(self) -> bool:
        """Whether the training is to end now."""
        return self._number is not None

    def agree(self, before: int, step: int) -> None:
        """Called after the steps from `before` to `step`: all processes end at the same."""
        has_service = getattr(jax.config, "jax_enable_preemption_service", True)
        if jax.process_count() == 1 or not has_service:
            return
        # `jax.distributed` has caught a SIGTERM, whichever process it came to, and names a
        # step that none of them has passed. It has to be asked about every step.
        is_last = multihost_utils.reached_preemption_sync_point
        if any([is_last(number) for number in range(before + 1, step + 1)]):
            self._number = signal.SIGTERM

    def raise_if_due(self) -> None:
        """Ends the process as the signal asks for: with status 130 or 143."""
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number is not None:
            raise SystemExit(128 + self._number)

    def handle(self, number: int, frame: Any) -> None:
        """The first signal is kept for later, the second one interrupts at once."""
        is_second = self._number is not None
        self._number = number
        if is_second:
            self.raise_if_due()


@contextlib.contextmanager
def interruptions(*, active: bool) -> Iterator[Interruption]:
    """Catches Ctrl-C and SIGTERM, unless somebody else does."""
    interruption = Interruption()
    # Only the main thread may set a handler. Several processes have to agree on a step, so
    # they leave SIGTERM to `jax.distributed`.
    is_main = threading.current_thread() is threading.main_thread()
    if not (active and is_main and jax.process_count() == 1):
        yield interruption
        return

    with contextlib.ExitStack() as stack:
        for number, default in _DEFAULTS.items():
            if signal.getsignal(number) == default:
                signal.signal(number, interruption.handle)
                stack.callback(signal.signal, number, default)
        yield interruption
