"""The loop of `fit`: calls of the compiled step, with callbacks, checkpoints and the
progress bar between them."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flowkit.training._checkpoints import SaveFailed, Saver, Snapshot
from flowkit.training._loop.batches import Resident, Stream
from flowkit.training._loop.callbacks import (
    call,
    Callback,
    check_names,
    passed,
)
from flowkit.training._loop.history import Recorder, Series, TooManySkipped
from flowkit.training._loop.interrupts import Interruption
from flowkit.training._step import (
    compiled,
    CompileKey,
    Configuration,
    Pace,
    partition,
    TrainState,
)


_REFRESH_SECONDS = 0.25

# How many steps apart several processes look at their metrics together.
_STEPS_APART = 100


class Loop:
    """A run under way: the state on the device, and what surrounds it.

    A new loop starts where the run begins: at step 0, or at the last checkpoint of
    `saver`.

    **Arguments:**

    - `configuration`: the parts of the step.
    - `source`: the batches.
    - `state`: the state before the first step. Its buffers are donated.
    - `saver`: the folder of checkpoints, if there is one.
    - `callbacks`, `steps_per_call`: as in `fit`.
    """

    def __init__(
        self,
        configuration: Configuration,
        source: Resident | Stream,
        state: TrainState,
        saver: Saver | None,
        *,
        callbacks: list[Callback],
        steps_per_call: int,
    ):
        self._configuration = configuration
        self._source = source
        self._saver = saver
        self._callbacks = callbacks
        self._steps_per_call = steps_per_call
        self._programs: dict[int | None, Callable[..., Any]] = {}
        self._pace = Pace()

        # Between calls the state is a flat list of arrays, which is what the step takes.
        arrays, self._static = partition(state)
        self._arrays = configuration.placement.place_state(arrays)

        self.step = 0
        # The `num_steps` of the run that a callback ended. The same command then trains no
        # further; another `num_steps` does.
        self._stopped_total: int | None = None
        self._seconds_before = 0.0
        self._calls: dict[int, int] = {}
        self._owners: dict[str, Callback] = {}  # of names in the history
        history = self._resume()
        self._began = time.monotonic()
        self._recorder = Recorder(
            history,
            stacked=steps_per_call > 1,
            most_skipped=configuration.skipping.most_in_a_row,
        )

        # Whether the batches have come to their end.
        self._ended = False

        # How far the data were read for the steps that were made.
        self._position = source.position()

        # Whether state, step, history and position in the data belong together.
        self._consistent = True

    def _resume(self) -> dict[str, Series]:
        """Go to the last checkpoint, and return the history up to it."""
        found = None if self._saver is None else self._saver.resume(self.state())
        if found is None:
            return {}
        # Arrays have no position: which of them a step draws follows from its number.
        if (found.position is None) != (self._source.position() is None):
            before = "arrays" if found.position is None else "a grain dataset"
            raise ValueError(
                f"`batches` were {before} when this run was saved, so it cannot resume "
                f"from any other; pass {before}, or another `directory` to `Checkpoints`."
            )
        self._arrays, _ = partition(found.state)
        self.step = int(found.state.step)
        # What was due at this step was called before it was saved.
        self._calls = {id(one): self.step for one in self._callbacks}
        self._stopped_total = found.stopped
        self._seconds_before = found.seconds
        self._source.seek(found.position)
        return {name: Series(*pair) for name, pair in found.history.items()}

    def state(self) -> TrainState:
        """The state, in buffers that the next step takes over."""
        return self._static.combine(self._arrays)

    def copy(self) -> TrainState:
        """The state in buffers that no later step takes over."""
        return self._static.combine(_copies(self._arrays))

    def history(self) -> dict[str, Series]:
        """What was recorded so far."""
        return self._recorder.history()

    def seconds(self) -> float:
        """How long the run has taken, together with the parts before it was resumed."""
        return self._seconds_before + time.monotonic() - self._began

    def train(self, num_steps: int, bar: Any, interruption: Interruption) -> None:
        """Make steps until there are `num_steps`, a callback stops, or a signal comes."""
        try:
            if self.step == 0:
                self._run_callbacks(
                    [one for one in self._callbacks if not one.takes_metrics], num_steps
                )
            while not (self._is_over(num_steps) or interruption.is_due):
                self._advance(num_steps, bar, interruption)
            self._save()
            interruption.raise_if_due()
        except (KeyboardInterrupt, SystemExit):
            self._save_reached()
            raise
        except (SaveFailed, TooManySkipped):
            # The disk would fail again; skipped steps have changed nothing.
            raise
        except Exception as error:
            # The first error is the one to be seen, even if saving fails too.
            try:
                self._save_reached()
                if self._saver is not None:
                    self._saver.wait()
            except Exception as failure:
                error.add_note(f"What was reached is lost: {failure}")
            raise
        finally:
            bar.close()

    def _is_over(self, num_steps: int) -> bool:
        done = self.step >= num_steps or self._ended
        return done or self._stopped_total == num_steps

    def _advance(self, num_steps: int, bar: Any, interruption: Interruption) -> None:
        """Calls up to the next callback, checkpoint or refresh of the bar."""
        start = self.step
        pause = self._next_pause(num_steps)
        refresh = time.monotonic() + _REFRESH_SECONDS
        while self.step < pause and time.monotonic() < refresh:
            before = self.step
            self._run_steps(num_steps)
            interruption.agree(before, self.step)
            if self._ended or interruption.is_due:
                break

        # Without a pause only what is ready is fetched: the device stays busy.
        self._recorder.drain(wait=self.step >= pause or self._ended)
        if self._recorder.loss is not None:
            bar.set_postfix(loss=f"{self._recorder.loss:.4g}", refresh=False)
        bar.update(self.step - bar.n)

        at_end = self.step == num_steps or self._ended
        due = [one for one in self._callbacks if at_end or one.is_due(start, self.step)]
        self._run_callbacks(due, num_steps)
        if self._stopped_total == num_steps:
            # Every callback is called at the end, and this is the end.
            self._run_callbacks([o for o in self._callbacks if o not in due], num_steps)
        if self._saver is not None and passed(start, self.step, self._saver.every):
            self._save()

    def _next_pause(self, num_steps: int) -> int:
        """The next step at which a callback or a checkpoint is due, or the run ends."""
        intervals = [one.every for one in self._callbacks]
        if self._saver is not None:
            intervals.append(self._saver.every)
        if jax.process_count() > 1:
            intervals.append(_STEPS_APART)
        pauses = [(self.step // every + 1) * every for every in intervals]
        return min([num_steps, *pauses])

    def _run_steps(self, num_steps: int) -> None:
        """One call of the compiled step."""
        length = None
        if self._steps_per_call > 1:
            # Calls end at multiples of `steps_per_call`, whatever step a run resumes
            # from.
            rest = self._steps_per_call - self.step % self._steps_per_call
            length = min(rest, num_steps - self.step)

        batch, count = self._source.take(length)
        if count == 0:
            self._end(num_steps)
            return
        program = self._program(None if length is None else count)

        # Ctrl-C can come at any line. Arrays that were donated are gone, so nothing may be
        # saved in between.
        self._consistent = False
        try:
            arrays, metrics = program(self._arrays, batch)
        except Exception:
            # Nothing is donated before the step is traced.
            deleted = [array.is_deleted() for array in self._arrays]
            self._consistent = not any(deleted)
            raise
        self._arrays = arrays
        self.step += count
        self._recorder.add_pending(self.step, metrics)
        # Taken here: a read that fails later may have used up some batches.
        self._position = self._source.position()
        self._consistent = True
        # Waits now and then: too many calls in flight deadlock several CPU devices.
        self._pace(metrics["loss"])

    def _end(self, num_steps: int) -> None:
        """There are no more batches."""
        remedy = (
            "repeat a grain dataset before it is shuffled into batches with "
            "`dataset.repeat()`, and let an iterator go on forever."
        )
        if self.step == 0:
            raise ValueError(f"`batches` has no batch; {remedy}")
        if jax.process_count() > 1:
            raise ValueError(
                f"`batches` of this process ended after {self.step} of {num_steps} steps, "
                f"and the other processes wait for it; {remedy}"
            )
        # No error: the steps made so far are worth more than the missing ones.
        warnings.warn(
            f"`batches` ended after {self.step} of {num_steps} steps, and so does the "
            f"training; {remedy}",
            stacklevel=2,
        )
        self._ended = True

    def _program(self, length: int | None) -> Callable[..., Any]:
        # Kept here because the key of `compiled` takes longer to hash than a small step.
        if length not in self._programs:
            key = CompileKey(
                length,
                self._source.resident,
                self._source.batch_size,
            )
            program = compiled(self._configuration, self._static, key)
            self._programs[length] = program
        return self._programs[length]

    def _run_callbacks(self, callbacks: list[Callback], num_steps: int) -> None:
        # Batches may end right after the call of a callback.
        callbacks = [one for one in callbacks if self._calls.get(id(one)) != self.step]
        if not callbacks:
            return
        self._calls |= {id(one): self.step for one in callbacks}
        state = self.copy()
        metrics = dict(self._recorder.last)
        for one in callbacks:
            values, stops = call(one, state, self.step, metrics)
            check_names(self._owners, one, values)
            self._recorder.add(self.step, values)
            metrics |= values
            if stops:
                self._stopped_total = num_steps

    def _save(self) -> None:
        # At step 0 there is nothing to go on from.
        if self._saver is None or self.step == 0:
            return
        self._recorder.drain(wait=True)
        snapshot = Snapshot(
            self.copy(),
            self.history(),
            self._position,
            self.seconds(),
            self._stopped_total,
        )
        self._saver.save(self.step, snapshot)

    def _save_reached(self) -> None:
        """Save after an error, if that makes sense."""
        # Before the first step there is nothing to lose, and a checkpoint would tie the
        # folder to a run that may be mistaken. Other processes may be at another step.
        is_alone = jax.process_count() == 1
        if self.step > 0 and self._consistent and is_alone:
            self._save()


@jax.jit
def _copies(arrays: list[Any]) -> list[Any]:
    return [jnp.copy(array) for array in arrays]
