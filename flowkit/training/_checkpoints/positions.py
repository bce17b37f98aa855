"""How far the processes have read their data, each of which may be elsewhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather


def recorded(position: Any) -> dict[str, Any]:
    """The entries of `meta` about the positions; all processes ask together.

    `positions` are those of all of them, if they are not the same.
    """
    everywhere = _gathered(position)
    if all(one == everywhere[0] for one in everywhere):
        return {"position": position}
    return {"position": position, "positions": everywhere}


def own_position(meta: Mapping[str, Any], directory: Path) -> Any:
    """The position of this process."""
    everywhere = meta.get("positions")
    if everywhere is None:
        return meta["position"]
    before = len(everywhere)
    count = jax.process_count()
    if before != count:
        raise ValueError(
            f"{directory} was written by {before} processes, "
            "each at another place in its data, "
            f"and cannot go on with {count}: "
            "start as many as before, "
            "or pass another `directory` to `Checkpoints`."
        )
    return everywhere[jax.process_index()]


def _gathered(position: Any) -> list[Any]:
    if jax.process_count() == 1:
        return [position]
    # Arrays of one size are all that processes can exchange.
    text = json.dumps(position).encode()
    size = len(text)
    sizes = process_allgather(np.int32(size))
    padded = np.zeros(np.max(sizes), np.uint8)
    padded[:size] = np.frombuffer(text, np.uint8)
    rows = process_allgather(padded)

    found = []
    for row, size in zip(rows, sizes, strict=True):
        found.append(json.loads(row[:size].tobytes()))
    return found
