"""A mesh of devices, and batches that are split over it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from flowkit.training._step.checks import not_negative
from flowkit.training._step.host import owned


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, `"data"`, over `devices`.

    `None` takes all devices of all processes. With several processes call
    `jax.distributed.initialize()` first; each process then hands its own part of every
    batch to `fit` or to the step.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("`devices` is empty; leave it out to use all devices.")
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def check_mesh(mesh: Mesh | None) -> None:
    """Raises for a mesh without an axis `"data"`."""
    if mesh is not None and "data" not in mesh.axis_names:
        raise ValueError(
            f'`mesh` must have an axis "data", got {mesh.axis_names}; '
            "`fk.training.data_mesh()` makes one."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays that are whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Arrays whose axis number `axis` is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def shard_batch(batch: PyTree[Any], mesh: Mesh, *, axis: int = 0) -> PyTree[Any]:
    """`batch` with axis number `axis` split over the devices of `mesh`.

    With several processes `batch` is this process's part, and the result is the whole.
    """
    axis = not_negative("axis", axis)
    return split(owned(batch, "batch"), mesh, axis=axis)


def split(batch: PyTree[Any], mesh: Mesh, *, axis: int) -> PyTree[Any]:
    """`shard_batch` for arrays that nobody else writes to."""
    sharding = split_over(mesh, axis)
    processes = jax.process_count()

    def put(leaf):
        size = np.shape(leaf)[axis] * processes if np.ndim(leaf) > axis else 0
        check_divisible(size, mesh)
        if processes == 1:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(put, batch)


def check_divisible(size: int, mesh: Mesh) -> None:
    """Raises for a batch that the devices cannot share equally."""
    devices = mesh.shape["data"]
    if size == 0 or size % devices:
        raise ValueError(
            f"{devices} devices cannot share a batch of {size} examples equally; make "
            f"`batch_size`, or the batches of `batches`, a multiple of {devices}."
        )
