"""Reading and writing the items of a checkpoint."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from flowkit.training._checkpoints.describe import is_array


BEST = "best"
"""The name of the number that is lowest for the best checkpoint."""


class Damaged(Exception):
    """Raised for a checkpoint that cannot be read; the message is the reason."""


@contextlib.contextmanager
def damage_reported(changed: str = "") -> Iterator[None]:
    """Every error inside becomes `Damaged`: damaged files raise errors of every kind.

    `changed` says which libraries have changed since, as `changed_versions` does.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise Damaged(f"{reason}{changed}") from error


def damaged_message(directory: Path, step: int, damage: Damaged) -> str:
    """What the warning about a damaged checkpoint says."""
    return (
        f"The checkpoint {directory / str(step)} is damaged and not used ({damage}); "
        "trying the one before it."
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences orbax, which reports its housekeeping; errors still come through."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def manager_options(keep: int, best: str | None) -> ocp.CheckpointManagerOptions:
    """Keeps the last `keep` checkpoints, and the best one if there is a measure of it."""
    policies = ocp.checkpoint_managers
    latest = policies.LatestN(keep)
    if best is None:
        return ocp.CheckpointManagerOptions(preservation_policy=latest, create=False)

    # In descending order, because the last one is kept.
    lowest = policies.BestN(
        get_metric_fn=best_value,
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    return ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([latest, lowest]),
        best_fn=best_value,
        best_mode="min",
        create=False,
    )


def best_value(metrics: Any) -> float:
    """The number of a checkpoint that is compared."""
    return metrics[BEST]


def numbered(tree: PyTree[Any]) -> dict[str, Any]:
    """The arrays of `tree` under their numbers."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if is_array(leaf)]
    return {str(number): array for number, array in enumerate(arrays)}


def fill(tree: PyTree[Any], arrays: list[Any]) -> PyTree[Any]:
    """`tree` with `arrays` in place of its own."""
    rest = iter(arrays)
    return jax.tree.map(lambda leaf: next(rest) if is_array(leaf) else leaf, tree)


def read_meta(manager: ocp.CheckpointManager, step: int) -> Any:
    """The item `meta`."""
    wanted = ocp.args.Composite(meta=ocp.args.JsonRestore())
    meta = manager.restore(step, args=wanted)["meta"]
    if not {"config", "arrays", "names", "position"} <= set(meta):
        raise ValueError("it was not written by flowkit")
    return meta


def read_arrays(
    manager: ocp.CheckpointManager, step: int, parts: dict[str, Any]
) -> dict[str, list[Any]]:
    """The arrays of the items named in `parts`, with the types and places of those."""
    # The first of all devices belongs to the first process only.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(leaf):
        sharding = leaf.sharding or here
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    items = {}
    for name, part in parts.items():
        targets = jax.tree.map(target, numbered(part))
        items[name] = ocp.args.StandardRestore(targets)
    restored = manager.restore(step, args=ocp.args.Composite(**items))

    arrays = {}
    for name in parts:
        stored = restored[name]
        arrays[name] = [_own(stored[str(i)]) for i in range(len(stored))]
    return arrays


def _own(leaf: jax.Array) -> jax.Array:
    """A copy of an array just read, in a buffer that may be donated and moved."""
    # The arrays of orbax are committed to their device, so they could not join others on
    # a mesh.
    if len(leaf.sharding.device_set) > 1:
        return leaf.copy()
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jr.wrap_key_data(_own(jr.key_data(leaf)), impl=jr.key_impl(leaf))
    return jnp.array(np.asarray(leaf))
