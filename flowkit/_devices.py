r"""Work on the examples of a batch, divided over devices.

A loss sees the whole batch, whatever the number of devices: what it draws, how it pairs
noise with data, and which times it chooses do not depend on where it runs. Only the work on
single examples is divided. Each device takes its share of

$$L = \frac1B \sum_{i=1}^B f(\theta, z_i)$$

with the gradient of that share, and the gradients are added up once, at the end. A
compiler that partitions the whole program would add them up in every iteration of a
loop inside $f$.

A training step specifies the division in a context. JAX compares the context when it looks
up a traced program, so functions that are jitted inside the step follow it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import PyTree


AXIS = "data"
"""The axis of devices over which the examples of a batch are split."""

LEAST_SHARDED = 256
"""Smaller arrays stay whole: splitting them would save nothing."""


class Division:
    """How the work on examples is divided. Compared by identity: one for each program.

    **Arguments:**

    - `num`: the number of devices.
    - `mesh`: the mesh of a partitioned program; `None` inside of a mapped one, in which
      the devices are those of the axis `AXIS`.
    - `sharded`: whether large weights are split over the mesh too.
    """

    def __init__(self, num: int, mesh: Mesh | None, *, sharded: bool = False):
        self.num = num
        self.mesh = mesh
        self.sharded = sharded

        # Whether anything was divided so far.
        self.used = False


def check_axes(mesh: Mesh) -> None:
    """Raises for a mesh with any axis but `AXIS`."""
    if mesh.axis_names != (AXIS,):
        raise ValueError(
            f'`mesh` must have the axis "{AXIS}" alone, got {mesh.axis_names}; '
            "`fk.training.data_mesh()` makes one."
        )


def with_auto_axes(mesh: Mesh) -> Mesh:
    """Those of `jax.make_mesh` are explicit, for programs that state every sharding."""
    types = (AxisType.Auto,) * mesh.devices.ndim
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


_division: Any = jax.make_user_context(None)

# What the context holds where the examples are those of one device.
_WITHIN = "one device"


@contextlib.contextmanager
def divided(division: Division) -> Iterator[None]:
    """Work on examples, traced in this context, is divided."""
    with _division(division):
        yield


def is_within_device() -> bool:
    """Whether the examples at hand are those of one device."""
    return _division.value is _WITHIN


def num_shares(size: int) -> int:
    """The number of devices that share a batch; 1 if they cannot share it equally."""
    division = _division.value
    if not isinstance(division, Division) or size % division.num:
        return 1
    return division.num


def over_devices(
    fn: Callable[..., Any], shared: PyTree[Any], examples: PyTree[Any]
) -> PyTree[Any]:
    """`fn(shared, examples)`, called by each device with its own part of the examples.

    What the devices return is joined along the first axis of every array. It has to be
    called where `num_shares` is above 1.
    """
    division = _division.value
    division.used = True

    def per_device(shared, examples):
        with _division(_WITHIN):
            return fn(shared, examples)

    if division.mesh is None:
        return _mapped(per_device, shared, examples, division.num)
    return _partitioned(per_device, shared, examples, division)


def _mapped(
    fn: Callable[..., Any], shared: PyTree[Any], examples: PyTree[Any], num: int
) -> PyTree[Any]:
    """In a mapped program every device has all examples, and takes its own."""
    index = jax.lax.axis_index(AXIS)

    def own(leaf):
        if not eqx.is_array(leaf):
            return leaf
        size = leaf.shape[0] // num
        return jax.lax.dynamic_slice_in_dim(leaf, index * size, size)

    results = fn(shared, jax.tree.map(own, examples))
    join = lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True)
    return jax.tree.map(join, results)


def _partitioned(
    fn: Callable[..., Any],
    shared: PyTree[Any],
    examples: PyTree[Any],
    division: Division,
) -> PyTree[Any]:
    """In a partitioned program the part of each device is a program of its own."""
    weights, rest = eqx.partition(shared, eqx.is_array)
    rows, other = eqx.partition(examples, eqx.is_array)

    def axis(leaf):
        is_split = division.sharded and eqx.is_inexact_array(leaf)
        return sharded_axis(leaf.shape, division.num) if is_split else None

    leaves, treedef = jax.tree.flatten(weights)
    axes = [axis(leaf) for leaf in leaves]

    def whole(leaf, axis):
        # The transpose of gathering is to add up and scatter: one round of each.
        if axis is None:
            return leaf
        return jax.lax.all_gather(leaf, AXIS, axis=axis, tiled=True)

    def per_device(leaves, rows):
        pairs = zip(leaves, axes, strict=True)
        weights = jax.tree.unflatten(treedef, [whole(*pair) for pair in pairs])
        return fn(eqx.combine(weights, rest), eqx.combine(rows, other))

    # Without the checks, which refuse loops whose state starts as a constant.
    mapped = jax.shard_map(
        per_device,
        mesh=division.mesh,
        in_specs=([split_at(axis) for axis in axes], PartitionSpec(AXIS)),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    return mapped(leaves, rows)


def sharded_axis(shape: tuple[int, ...], num: int) -> int | None:
    """The axis along which an array of weights is split; `None` if it stays whole.

    It is the longest of those that the devices share equally.
    """
    fitting = [axis for axis, length in enumerate(shape) if length % num == 0]
    if math.prod(shape) < LEAST_SHARDED or not fitting:
        return None
    return max(fitting, key=lambda axis: shape[axis])


def split_at(axis: int | None) -> PartitionSpec:
    """An array that is split along one axis, or whole."""
    if axis is None:
        return PartitionSpec()
    return PartitionSpec(*[None] * axis, AXIS)
