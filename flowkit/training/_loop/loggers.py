"""Callbacks that log metrics during training.

They are given the metrics of the last step, and what callbacks before them returned.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np

from flowkit._files import replacing
from flowkit.training._step import TrainState


class JsonLines:
    """A callback that appends the metrics to a file, one JSON object in a line.

    ```python
    callbacks = [fk.training.Every(100, fk.training.JsonLines("run/log.jsonl"))]
    ```

    A line holds the `step`, and the `run`: the key of the training, or of its stage. A
    run that is resumed or repeated removes the lines about its own later steps from the
    file. Numbers that are not finite are `null`.

    **Arguments:**

    - `path`: the file; its folder is made if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path).expanduser().absolute()
        self._begun = False

    def begin_run(self) -> None:
        """Look again for lines that the run will write once more; `fit` calls it."""
        self._begun = False

    def __call__(
        self, state: TrainState, step: int, metrics: dict[str, np.ndarray]
    ) -> None:
        if jax.process_index() > 0:
            return
        run = np.asarray(jr.key_data(state.key)).tobytes().hex()
        if not self._begun:
            self._forget_from(run, step)
        values = {name: _plain(value.tolist()) for name, value in metrics.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"run": run, "step": step} | values) + "\n")

    def _forget_from(self, run: str, step: int) -> None:
        self._begun = True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.exists():
            return
        found = self._path.read_text().splitlines()
        # Those of later stages may come behind them.
        kept = [line for line in found if not _is_later(line, run, step)]
        with replacing(self._path) as file:
            lines = [f"{line}\n" for line in kept]
            file.write_text("".join(lines))


class TensorBoard:
    """A callback that writes the metrics that are single numbers for TensorBoard.

    ```python
    callbacks = [fk.training.Every(100, fk.training.TensorBoard("run/logs"))]
    ```

    **Arguments:**

    - `where`: a folder, for which tensorboardX is needed (`pip install
      "flowkit-jax[tensorboard]"`), or a writer with a method
      `add_scalar(name, value, step)`, such as PyTorch's `SummaryWriter`.
    """

    def __init__(self, where: Any):
        self._where = where
        self._writer: Any = where if hasattr(where, "add_scalar") else None

    def __call__(
        self, state: TrainState, step: int, metrics: dict[str, np.ndarray]
    ) -> None:
        if jax.process_index() > 0:
            return
        if self._writer is None:
            self._writer = _summary_writer(self._where)
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, step)
        if hasattr(self._writer, "flush"):
            self._writer.flush()


class WeightsAndBiases:
    """A callback that logs the metrics that are single numbers to Weights & Biases.

    ```python
    run = wandb.init(project="flows")
    callbacks = [fk.training.Every(100, fk.training.WeightsAndBiases(run))]
    ```

    **Arguments:**

    - `run`: an object with a method `log(values, step=step)`, such as `wandb.init`
      returns.
    """

    def __init__(self, run: Any):
        if not hasattr(run, "log"):
            raise ValueError(
                f"`run` must have a method `log(values, step=step)`, got {type(run)}; "
                "`wandb.init()` returns one."
            )
        self._run = run

    def __call__(
        self, state: TrainState, step: int, metrics: dict[str, np.ndarray]
    ) -> None:
        if jax.process_index() == 0:
            self._run.log(_numbers(metrics), step=step)


def _numbers(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if value.ndim == 0}


def _plain(value: Any) -> Any:
    """Lists and numbers as JSON has them, which knows neither NaN nor infinity."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    is_float = isinstance(value, float)
    return None if is_float and not math.isfinite(value) else value


def _is_later(line: str, run: str, step: int) -> bool:
    """Whether a line is of the same run, at this step or a later one."""
    try:
        values = json.loads(line)
    except ValueError:
        # It was cut off as the process ended.
        return True
    return values.get("run") == run and values["step"] >= step


def _summary_writer(folder: Any) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "`TensorBoard` needs tensorboardX to write to a folder: "
            'pip install "flowkit-jax[tensorboard]"; or pass a writer of your own.'
        ) from error
    return SummaryWriter(os.fspath(folder))
