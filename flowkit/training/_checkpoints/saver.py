"""The folder of a run in progress: where it resumes from, and where it is saved."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from flowkit.training._checkpoints.compare import (
    config_differences,
    model_differences,
    shortened,
)
from flowkit.training._checkpoints.describe import describe_arrays, describe_static
from flowkit.training._checkpoints.options import (
    check_writable,
    Checkpoints,
    try_to_write,
)
from flowkit.training._checkpoints.positions import (
    own_position,
    recorded,
)
from flowkit.training._checkpoints.storage import (
    BEST,
    damage_reported,
    Damaged,
    damaged_message,
    fill,
    manager_options,
    numbered,
    quiet,
    read_arrays,
    read_meta,
)
from flowkit.training._checkpoints.versions import changed_versions, versions
from flowkit.training._step import TrainState


class Snapshot(NamedTuple):
    """What a checkpoint holds.

    - `state`: the training state.
    - `history`: a pair of arrays, steps and values, for each name.
    - `position`: how far the data of this process were read.
    - `seconds`: how long the run has taken.
    - `stopped`: the `num_steps` of a run that a callback ended; otherwise `None`.
    """

    state: TrainState
    history: Mapping[str, tuple[np.ndarray, np.ndarray]]
    position: Any
    seconds: float
    stopped: int | None


class SaveFailed(OSError):
    """Raised by `Saver`; `fit` adds what was reached."""


class Saver:
    """The open folder of one run."""

    def __init__(self, checkpoints: Checkpoints):
        self._options = checkpoints
        self.every = checkpoints.every
        self._directory = checkpoints.directory
        check_writable(self._directory)
        self._manager = self._open()
        self._last: int | None = None
        self._failed = False

    def _open(self):
        options = manager_options(self._options.keep, self._options.best)
        with quiet():
            return ocp.CheckpointManager(self._directory, options=options)

    def resume(self, state: TrainState) -> Snapshot | None:
        """The last checkpoint that can be read; `None` if there is none at all.

        `state` is one of the same structure.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for count, step in enumerate(steps):
            try:
                with quiet():
                    snapshot = self._read(step, state)
            except Damaged as damage:
                message = damaged_message(self._directory, step, damage)
                warnings.warn(message, stacklevel=4)
            else:
                self._last = step
                self._set_aside(steps[:count])
                return snapshot

        if steps:
            raise ValueError(
                f"No checkpoint in {self._directory} can be read (steps {steps[::-1]}). "
                "Nothing was deleted: move the folder away to start again, or pass "
                "another `directory` to `Checkpoints`."
            )
        return None

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Save in the background. The state must not be donated afterwards.

        It waits for the save before, and raises `SaveFailed` if one of them fails. A
        mistake in `best` is a `ValueError`, after the checkpoint is written without it.
        """
        if step == self._last:
            return
        parts = _parts(snapshot.state)
        meta = {
            "config": self._options.config,
            "arrays": {name: describe_arrays(part) for name, part in parts.items()},
            "static": describe_static(snapshot.state.model),
            "names": list(snapshot.history),
            **recorded(snapshot.position),
            "seconds": snapshot.seconds,
            "stopped": snapshot.stopped,
            "versions": versions(),
        }
        # Numbered, since names of metrics may have characters that a path may not.
        history = {}
        for number, (steps, values) in enumerate(snapshot.history.values()):
            history[str(number)] = {"steps": steps, "values": values}

        items: dict[str, Any] = {}
        for name, part in parts.items():
            items[name] = ocp.args.StandardSave(numbered(part))
        items["meta"] = ocp.args.JsonSave(meta)
        items["history"] = ocp.args.StandardSave(history)

        mistake = self._mistake(step, snapshot.history)
        metrics = None if mistake else self._metrics(step, snapshot.history)
        if not self._directory.exists():
            warnings.warn(
                f"The folder {self._directory} was removed during the training, "
                "and the checkpoints in it are gone; "
                "it is made again.",
                stacklevel=2,
            )
        with self._failures_reported():
            # orbax would wait for minutes for a folder that it cannot make.
            try_to_write(self._directory)
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics=metrics, force=True
            )
        self._last = step
        if mistake:
            raise ValueError(f"{mistake} Step {step} is saved: correct it and go on.")

    def _mistake(
        self, step: int, history: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> str | None:
        """What is wrong with `best`."""
        name = self._options.best
        # An interruption may come before the callback was called at all.
        if name is None or (name not in history and step < self.every):
            return None
        if name not in history:
            return (
                f"`best` is {name!r}, which is not in the history, only "
                f"{sorted(history)}: let a callback `Every({self.every}, function)` "
                "return it."
            )
        _, values = history[name]
        if values.ndim != 1:
            return (
                f"`best` is {name!r}, whose values have shape {values.shape[1:]}; it "
                "must be one number."
            )
        return None

    def _metrics(
        self, step: int, history: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> dict[str, float] | None:
        """What the best checkpoint is found by; `None` if there is no value at this step."""
        name = self._options.best
        if name is None or name not in history:
            return None
        steps, values = history[name]
        value = float(values[-1])
        return {BEST: value} if steps[-1] == step and np.isfinite(value) else None

    def wait(self) -> None:
        """Wait until everything is on disk."""
        # A save that has failed would be raised once more.
        if not self._failed:
            with self._failures_reported():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is on disk, and close the folder."""
        self.wait()
        with quiet(), contextlib.suppress(Exception):
            self._manager.close()

    @contextlib.contextmanager
    def _failures_reported(self) -> Iterator[None]:
        """Errors of every kind come from a thread, and name files of orbax."""
        try:
            with quiet():
                yield
        except Exception as error:
            self._failed = True
            raise SaveFailed(
                f"A checkpoint could not be written to {self._directory} ({error}). "
                f"The checkpoints of the steps {self._complete()} are complete "
                "and stay unchanged: "
                "make room or bring the folder back, "
                "and the same command resumes from the last of them. "
                "The `result` of this error holds what was reached."
            ) from error

    def _complete(self) -> list[int]:
        if not self._directory.is_dir():
            return []
        names = [path.name for path in self._directory.iterdir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def _read(self, step: int, state: TrainState) -> Snapshot:
        parts = _parts(state)
        with damage_reported():
            meta = read_meta(self._manager, step)
        self._check_same(meta, parts)

        with damage_reported(changed_versions(meta)):
            arrays = read_arrays(self._manager, step, parts)
            history = _read_history(self._manager, step, meta["names"])
        return Snapshot(
            _joined(parts, arrays),
            history,
            own_position(meta, self._directory),
            # Not stored by 0.2.0.
            meta.get("seconds", 0.0),
            meta.get("stopped"),
        )

    def _check_same(self, meta, parts):
        differences = config_differences(meta["config"], self._options.config)
        for name, part in parts.items():
            differences += model_differences(name, meta, part)
        for name in meta["arrays"]:
            if name not in parts:
                differences.append(f"`{name}` is only in the folder")
        if differences:
            raise ValueError(
                f"{self._directory} holds checkpoints of another run: "
                f"{shortened(differences)}{changed_versions(meta)}. Nothing was "
                "deleted: pass another `directory` to `Checkpoints`, or build model, "
                "optimizer and config as they were."
            )
        if "static" not in meta:
            warnings.warn(
                f"The checkpoints in {self._directory} were written by flowkit 0.2.0 or "
                "older, which recorded arrays only. Make sure that the model takes no "
                "default that has changed since: the sinusoidal embedding of times had "
                "`scale=1000`.",
                stacklevel=6,
            )

    def _set_aside(self, steps):
        """Rename damaged checkpoints, so that new ones can take their places."""
        if not steps:
            return

        # The manager keeps its own list of steps, so it is opened again afterwards.
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                path = self._directory / str(step)
                target = path.with_name(f"damaged-{step}")
                count = 1
                while target.exists():
                    target = path.with_name(f"damaged-{step}-{count}")
                    count += 1
                path.rename(target)
        if jax.process_count() > 1:
            ocp.multihost.sync_global_processes("flowkit_set_aside")
        self._manager = self._open()


def _parts(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint that hold the state."""
    parts = {"model": state.model}
    if state.average is not None:
        parts["ema"] = state.average
    parts["training"] = (state.opt_state, state.step, state.key)
    return parts


def _joined(parts: dict[str, Any], arrays: dict[str, list[Any]]) -> TrainState:
    filled = {name: fill(part, arrays[name]) for name, part in parts.items()}
    opt_state, step, key = filled["training"]
    return TrainState(filled["model"], filled.get("ema"), opt_state, step, key)


def _read_history(
    manager: ocp.CheckpointManager, step: int, names: list[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    wanted = ocp.args.Composite(history=ocp.args.StandardRestore())
    stored = manager.restore(step, args=wanted)["history"]
    history = {}
    for number, name in enumerate(names):
        series = stored[str(number)]
        history[name] = (np.asarray(series["steps"]), np.asarray(series["values"]))
    return history
