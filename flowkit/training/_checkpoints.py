"""Checkpoints on disk, through orbax: nothing is pickled, and nothing is deleted but what `keep` retires.

A checkpoint has the items `model`, `ema` and `training` (arrays, numbered in the order of their tree), `history`
(arrays) and `meta` (JSON: the configuration, names, shapes and dtypes of all arrays, the position in the data).
"""

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from flowkit.training._history import Series
from flowkit.training._state import TrainState


class Checkpoints:
    """Where and how often `fit` saves, and from where it resumes.

    If the folder holds checkpoints of this run, `fit` goes on from the last one: the same command resumes.
    A last checkpoint that is damaged is set aside with a warning, and the one before it is used. Checkpoints
    of another model, optimiser or configuration are a `ValueError`, and stay as they are.

    **Arguments:**

    - `directory`: the folder; it is made if it does not exist.
    - `every`: save each time this many steps are done; the last step and an interruption by Ctrl-C save too.
    - `keep`: how many checkpoints stay; older ones are deleted after a newer one is complete.
    - `config`: what `restore_model` hands to `build`: anything that JSON can hold, or a dataclass of such
        things. A run with another `config` does not resume here, so leave out how long the run is.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int = 1000,
        keep: int = 2,
        config: Any = None,
    ):
        if every < 1 or keep < 1:
            raise ValueError(
                f"`every` and `keep` must be at least 1, got every={every} and keep={keep}."
            )
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            config = dataclasses.asdict(config)
        try:
            self.config = json.loads(json.dumps(config))
        except TypeError as error:
            raise ValueError(
                f"`config` must be what JSON can hold: {error}; use numbers, strings and lists."
            ) from error
        self.directory = Path(directory).expanduser().absolute()
        self.every = every
        self.keep = keep


class Saver:
    """The open folder of one run."""

    def __init__(self, checkpoints: Checkpoints):
        self.every = checkpoints.every
        self._config = checkpoints.config
        self._directory = checkpoints.directory
        self._keep = checkpoints.keep
        check_writable(self._directory)
        self._manager = self._open()
        self._last: int | None = None

    def _open(self):
        with _quiet():
            options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=False)
            return ocp.CheckpointManager(self._directory, options=options)

    def resume(
        self, state: TrainState
    ) -> tuple[TrainState, dict[str, Series], Any] | None:
        """State, history and position of the last checkpoint that loads; `None` if there is none at all."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        parts = _parts(state)
        for count, step in enumerate(steps):
            with _quiet():
                meta, error = _try(_read_meta, self._manager, step)
                if meta is not None:
                    self._check_same(meta, parts)
                    read = lambda step=step, meta=meta: (
                        _read_arrays(self._manager, step, parts),
                        _read_history(self._manager, step, meta),
                    )
                    found, error = _try(read)
                    if found is not None:
                        restored, history = found
                        self._last = step
                        self._set_aside(steps[:count])
                        return _join(state, restored), history, meta["position"]
            warnings.warn(_damaged(self._directory, step, error), stacklevel=4)
        if steps:
            raise ValueError(
                f"No checkpoint in {self._directory} can be read (steps {steps[::-1]}). Nothing was deleted: move the "
                "folder away to start again, or pass another `directory` to `Checkpoints`."
            )
        return None

    def save(
        self, step: int, state: TrainState, history: dict[str, Series], position: Any
    ) -> None:
        """Save in the background. `state` must not be donated afterwards."""
        if step == self._last:
            return
        parts = _parts(state)
        meta = {
            "config": self._config,
            "arrays": {name: _describe(part) for name, part in parts.items()},
            "names": list(history),
            "position": position,
        }
        items: dict[str, Any] = {
            name: ocp.args.StandardSave(_numbered(part)) for name, part in parts.items()
        }
        items["meta"] = ocp.args.JsonSave(meta)
        items["history"] = ocp.args.StandardSave(
            {
                str(i): {"steps": series.steps, "values": series.values}
                for i, series in enumerate(history.values())
            }
        )
        with _quiet():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._last = step

    def close(self) -> None:
        """Wait until everything is on disk."""
        with _quiet():
            self._manager.close()

    def _check_same(self, meta, parts):
        differences = _config_differences(meta["config"], self._config)
        for name, part in parts.items():
            differences += _array_differences(
                name, meta["arrays"].get(name, []), _describe(part)
            )
        differences += [
            f"`{name}` is only in the folder"
            for name in meta["arrays"]
            if name not in parts
        ]
        if differences:
            raise ValueError(
                f"{self._directory} holds checkpoints of another run: {_shorten(differences)}. Nothing was deleted: "
                "pass another `directory` to `Checkpoints`, or build model, optimiser and config as they were."
            )

    def _set_aside(self, steps):
        """Rename damaged checkpoints, so that a new one of the same step can take the place."""
        if not steps:
            return
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                path = self._directory / str(step)
                target, count = path.with_name(f"damaged-{step}"), 1
                while target.exists():
                    target, count = path.with_name(f"damaged-{step}-{count}"), count + 1
                path.rename(target)
        if jax.process_count() > 1:
            ocp.multihost.sync_global_processes("flowkit_set_aside")
        self._manager = self._open()


def restore_model(
    directory: str | os.PathLike[str],
    build: Callable[..., Any],
    *,
    step: int | None = None,
    ema: bool = True,
) -> PyTree[Any]:
    """The model of a run, from its checkpoints.

    `build(config)` makes a model like the one that was trained, from the `config` that `Checkpoints` was given.
    It is only traced: nothing is computed or allocated, and the arrays are read from disk.

    **Arguments:**

    - `directory`: the folder that `Checkpoints` was given.
    - `build`: makes the model; the values of its arrays do not matter.
    - `step`: which checkpoint; `None` is the last one that can be read.
    - `ema`: the averaged weights (the default), or those of the last step.
    """
    directory = Path(directory).expanduser().absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"`directory`: there is no folder {directory}.")
    with _quiet(), contextlib.closing(_reader(directory)) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        if not steps:
            raise FileNotFoundError(
                f"`directory`: the folder {directory} holds no checkpoint."
            )
        if step is not None and step not in steps:
            raise ValueError(
                f"`step`: {directory} has no checkpoint {step}, only {steps[::-1]}."
            )
        for candidate in steps if step is None else [step]:
            meta, error = _try(_read_meta, manager, candidate)
            if meta is not None:
                skeleton = _skeleton(directory, build, meta, "ema" if ema else "model")
                restored, error = _try(_read_arrays, manager, candidate, skeleton)
                if restored is not None:
                    (part,) = skeleton.values()
                    return _fill(part, *restored.values())
            if step is None:
                warnings.warn(_damaged(directory, candidate, error), stacklevel=3)
    raise ValueError(
        f"`directory`: no checkpoint that was asked for can be read in {directory}: {error}"
    )


def _reader(directory: Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        directory, options=ocp.CheckpointManagerOptions(read_only=True)
    )


def _skeleton(
    directory: Path, build: Callable[..., Any], meta: Any, name: str
) -> dict[str, Any]:
    if name not in meta["arrays"]:
        raise ValueError(
            f"{directory} was trained without an average of the weights; pass `ema=False`."
        )
    part = eqx.filter_eval_shape(lambda: build(meta["config"]))
    differences = _array_differences(name, meta["arrays"][name], _describe(part))
    if differences:
        raise ValueError(
            f"`build` makes another model than the one in {directory}: {_shorten(differences)}; build it as it was "
            f"for training. The stored config is {meta['config']}."
        )
    return {name: part}


def _parts(state: TrainState) -> dict[str, Any]:
    parts = {
        "model": state.model,
        "ema": state.ema,
        "training": (state.opt_state, state.step, state.key),
    }
    return {name: part for name, part in parts.items() if part is not None}


def _join(state: TrainState, restored: dict[str, list[Any]]) -> TrainState:
    filled = {name: _fill(part, restored[name]) for name, part in _parts(state).items()}
    opt_state, step, key = filled["training"]
    return TrainState(filled["model"], filled.get("ema"), opt_state, step, key)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def _numbered(part: Any) -> dict[str, Any]:
    return {
        str(i): leaf
        for i, leaf in enumerate(
            leaf for leaf in jax.tree.leaves(part) if _is_array(leaf)
        )
    }


def _fill(part: Any, arrays: list[Any]) -> Any:
    rest = iter(arrays)
    return jax.tree.map(lambda leaf: next(rest) if _is_array(leaf) else leaf, part)


def _describe(part: Any) -> list[list[str]]:
    """`[path, dtype and shape]` of every array."""
    return [
        [jax.tree_util.keystr(path), f"{leaf.dtype}{list(leaf.shape)}"]
        for path, leaf in jax.tree_util.tree_leaves_with_path(part)
        if _is_array(leaf)
    ]


def _read_meta(manager: ocp.CheckpointManager, step: int) -> Any:
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
        "meta"
    ]
    if not {"config", "arrays", "names", "position"} <= set(meta):
        raise ValueError("it was not written by flowkit")
    return meta


def _read_arrays(
    manager: ocp.CheckpointManager, step: int, parts: dict[str, Any]
) -> dict[str, list[Any]]:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    items = {}
    for name, part in parts.items():
        target = {
            key: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=leaf.sharding or here
            )
            for key, leaf in _numbered(part).items()
        }
        items[name] = ocp.args.StandardRestore(target)
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    return {
        name: [_own(restored[name][str(i)]) for i in range(len(restored[name]))]
        for name in parts
    }


def _own(leaf: jax.Array) -> jax.Array:
    """A copy of an array just read, in a buffer that may be donated, and free to move to other devices."""
    if len(leaf.sharding.device_set) > 1:
        return leaf.copy()
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jr.wrap_key_data(_own(jr.key_data(leaf)), impl=jr.key_impl(leaf))
    return jnp.array(np.asarray(leaf))


def _read_history(
    manager: ocp.CheckpointManager, step: int, meta: Any
) -> dict[str, Series]:
    stored = manager.restore(
        step, args=ocp.args.Composite(history=ocp.args.StandardRestore())
    )["history"]
    series = [stored[str(i)] for i in range(len(meta["names"]))]
    return {
        name: Series(np.asarray(one["steps"]), np.asarray(one["values"]))
        for name, one in zip(meta["names"], series, strict=True)
    }


def _try(read: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """What it reads, or why it cannot: damaged files raise exceptions of every kind."""
    try:
        return read(*arguments), None
    except Exception as error:
        return None, error


def _damaged(directory: Path, step: int, error: Exception | None) -> str:
    reason = str(error).strip().split("\n")[0][:200]
    return f"The checkpoint {directory / str(step)} is damaged and not used ({reason}); trying the one before it."


def _config_differences(stored: Any, given: Any) -> list[str]:
    if stored == given:
        return []
    if not isinstance(stored, dict) or not isinstance(given, dict):
        return [f"config is {stored!r} there and {given!r} here"]
    keys = [
        key
        for key in stored | given
        if stored.get(key) != given.get(key) or (key in stored) != (key in given)
    ]
    return [
        f"config[{key!r}] is {stored.get(key)!r} there and {given.get(key)!r} here"
        for key in keys
    ]


def _array_differences(
    name: str, stored: list[list[str]], given: list[list[str]]
) -> list[str]:
    there, here = (
        {path: what for path, what in stored},
        {path: what for path, what in given},
    )
    return [
        f"{name}{path} is {there.get(path, 'absent')} there and {here.get(path, 'absent')} here"
        for path in there | here
        if there.get(path) != here.get(path)
    ]


def _shorten(differences: list[str]) -> str:
    more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
    return "; ".join(differences[:4]) + more


def check_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(
            f"`Checkpoints`: the folder {directory} cannot be written to ({error.strerror}); pass another `directory`."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax reports its housekeeping through the log and warnings; errors still come through."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
