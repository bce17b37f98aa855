"""The folder of a run: which run it belongs to, and what its stages left there."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowkit import training


_RECORD = "config.json"


def open_run(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    made: str = "checkpoints/**/[0-9]*",
) -> Path:
    """The folder of a run, which belongs to one configuration.

    The configuration is written to `config.json`. The folder is made if it does not exist.

    **Arguments:**

    - `folder`: the folder.
    - `config`: what all results in the folder depend on, as JSON can hold it.
    - `made`: a pattern of results, by default checkpoints. While there are none, the
        configuration may still change.

    **Raises:** `ValueError` if the folder holds results of another configuration or
    something else, or cannot be written to. It is left as it is.
    """
    folder = Path(folder)
    record = folder / _RECORD
    _check_writable(folder)
    # Refused, not filled: its files may be someone else's.
    if not record.exists() and any(folder.iterdir()):
        raise ValueError(f"`folder`: {folder} holds something else; name a new folder.")

    # Through JSON and back, because the record has lists where the options have tuples.
    given = json.loads(json.dumps(dict(config)))
    found = json.loads(record.read_text()) if record.exists() else given
    if found != given and any(folder.glob(made)):
        differences = [
            f"{name} is {found.get(name)} there and {given.get(name)} here"
            for name in found | given
            if found.get(name) != given.get(name)
        ]
        raise ValueError(
            f"`folder`: {folder} holds a run of another configuration "
            f"({'; '.join(differences)}). Nothing was changed: name another folder, or "
            "give the options as they were."
        )
    record.write_text(json.dumps(given, indent=2) + "\n")

    return folder


def restore_stages(
    folder: str | os.PathLike[str], build: Callable[[Any], Any]
) -> tuple[dict[str, Any], Any]:
    """The models that the stages of `fk.training.fit_stages` left, and the configuration.

    **Arguments:**

    - `folder`: the `directory` of the `fk.training.Checkpoints` of the run.
    - `build`: as in `fk.training.restore_model`.

    **Returns:** stage -> model with averaged weights, in the order of the stages, and the
    `config` of the checkpoints.

    **Raises:** `FileNotFoundError` if no stage has a checkpoint.
    """
    folder = Path(folder)
    record = folder / "stages.json"
    if not record.exists():
        raise FileNotFoundError(_missing(folder))

    names = [name for name, _ in json.loads(record.read_text())]
    trained = [name for name in names if checkpoint_steps(folder / name)]
    if not trained:
        raise FileNotFoundError(_missing(folder))
    models = {name: training.restore_model(folder / name, build) for name in trained}
    return models, training.stored_config(folder / trained[0])


def checkpoint_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps of the checkpoints in a folder, from the first to the last."""
    names = [path.name for path in Path(folder).glob("[0-9]*")]
    return sorted(int(name) for name in names if name.isdigit())


def _missing(folder: Path) -> str:
    return f"{folder} holds no checkpoints: train there first."


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions do not tell everything, such as a full or read-only disk; a file
        # does.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"`folder`: {folder} cannot be written to ({error.strerror}); name another."
        ) from error
