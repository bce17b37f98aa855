"""Where and how often a run is saved."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.training._step import positive


class Checkpoints:
    """Where and how often `fit` saves, and from where it resumes.

    If the folder holds checkpoints of this run, `fit` resumes from the last one, so the
    same command continues the run. A last checkpoint that is damaged is set aside with
    a warning, and the one before it is used. Checkpoints of another model or
    configuration raise a `ValueError` and are left unchanged; so do those of an
    optimizer whose state has other arrays. What a model is made of counts too, not only
    its arrays: the prediction and the path of a flow, activations, sizes and other
    options. Not compared are the loss, the data, the batch size and the settings of an
    optimizer, so a run may resume with another learning rate. For an experiment that
    differs in one of these, name another folder, or put it into `config`.

    **Arguments:**

    - `directory`: the folder; it is made if it does not exist.
    - `every`: the number of steps between two checkpoints; the last step is saved too,
      and so is the one before an interruption by Ctrl-C, or an error in a callback.
    - `keep`: how many checkpoints stay; older ones are deleted after a newer one is
      complete.
    - `best`: the name of a series of the history, such as what a callback returns. The
      checkpoint with its lowest value stays too, and `best_step` finds it. A callback is
      called just before a checkpoint if its `n` is `every`; a checkpoint in between, and
      one whose value is not finite, is never the best.
    - `config`: what `restore_model` hands to `build`: anything that JSON can hold, or a
      dataclass of such things. A run with another `config` does not resume here, so
      leave out how long the run is.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int = 1000,
        keep: int = 2,
        best: str | None = None,
        config: Any = None,
    ):
        self.directory = Path(directory).expanduser().absolute()
        self.every = positive("every", every)
        self.keep = positive("keep", keep)
        self.best = best
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            config = dataclasses.asdict(config)
        # Through JSON and back, as it will be when it is compared with a stored one.
        try:
            self.config = json.loads(json.dumps(config, default=_plain))
        except TypeError as error:
            raise ValueError(
                f"`config` must be what JSON can hold: {error}; use numbers, strings "
                "and lists."
            ) from error

    def within(self, name: str) -> "Checkpoints":
        """The same for a folder inside of this one."""
        return Checkpoints(
            self.directory / name,
            every=self.every,
            keep=self.keep,
            best=self.best,
            config=self.config,
        )


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as JSON has them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__qualname__} is not a value that JSON can hold")


def check_writable(directory: Path) -> None:
    """Makes the folder, and raises if nothing can be written there."""
    try:
        try_to_write(directory)
    except OSError as error:
        raise ValueError(
            f"`Checkpoints`: the folder {directory} cannot be written to "
            f"({error.strerror}); pass another `directory`."
        ) from error


def try_to_write(directory: Path) -> None:
    """Makes the folder and a file in it, for a moment."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass
