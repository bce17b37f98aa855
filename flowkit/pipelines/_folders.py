"""The folder of a run: which run it belongs to, and what its stages left there."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowkit import training
from flowkit._checks import check_folder
from flowkit._files import replacing


_RECORD = "config.json"

# What a run is of, by a field that only its models have.
_KINDS = {
    "encoder_sizes": "point clouds",
    "channels": "images",
    "network": "sparse images",
}


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
    - `config`: what the results depend on, as values that JSON can hold. An option that is
      left out, since it has no effect this time, keeps the value stored in the folder. One
      that is not stored there yet is added.
    - `made`: a pattern of results, by default checkpoints. While there are none, the
        configuration may still change.

    **Raises:** `ValueError` if the folder holds results of another configuration or
    something else, or cannot be written to. It is left as it is.
    """
    folder = Path(folder)
    record = folder / _RECORD
    check_folder("folder", folder)
    # Refused, not filled: its files may be someone else's.
    if not record.exists() and any(folder.iterdir()):
        raise ValueError(f"`folder`: {folder} holds something else; name a new folder.")

    # Through JSON and back, because the record has lists where the options have tuples.
    given = json.loads(json.dumps(dict(config)))
    found = {}
    if record.exists() and any(folder.glob(made)):
        found = json.loads(record.read_text())
    differences = [
        f"{name} is {found[name]} there and {given[name]} here"
        for name in found
        if name in given and found[name] != given[name]
    ]
    if differences:
        raise ValueError(
            f"`folder`: {folder} holds a run of another configuration "
            f"({'; '.join(differences)}). Nothing was changed: name another folder, or "
            "give the options as they were."
        )
    text = json.dumps(found | given, indent=2) + "\n"
    if not record.exists() or record.read_text() != text:
        with replacing(record) as file:
            file.write_text(text)

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


def stored_run(
    folder: str | os.PathLike[str], kind: str
) -> tuple[Path, dict[str, Any]]:
    """The folder with the last checkpoints of a run, and the stored options of the run.

    **Arguments:**

    - `folder`: the output folder.
    - `kind`: what the run must be: "point clouds", "images" or "sparse images".

    **Raises:** `FileNotFoundError` without checkpoints, and `ValueError` for a run of
    another kind.
    """
    checkpoints = Path(folder) / "checkpoints"
    # A run in stages has a folder for each of them.
    if not checkpoint_steps(checkpoints):
        checkpoints = _of_last_stage(folder)
    options = training.stored_config(checkpoints)
    found = _kind(options)
    if found != kind:
        raise ValueError(f"`folder`: {folder} holds a run of {found}, not of {kind}.")
    return checkpoints, options


def _of_last_stage(folder: str | os.PathLike[str]) -> Path:
    try:
        return training.last_stage(Path(folder) / "checkpoints")
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(folder)) from error


def _kind(options: Any) -> str:
    model = options.get("model") if isinstance(options, dict) else None
    if not isinstance(model, dict):
        return "something else"
    kinds = [kind for field, kind in _KINDS.items() if field in model]
    return kinds[0] if kinds else "something else"


def checkpoint_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps of the checkpoints in a folder, from the first to the last."""
    names = [path.name for path in Path(folder).glob("[0-9]*")]
    return sorted(int(name) for name in names if name.isdigit())


def _missing(folder: str | os.PathLike[str]) -> str:
    return f"{folder} holds no checkpoints: train there first."
