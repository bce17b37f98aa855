r"""Where training runs: which device holds what, and which one does what work.

With $n$ devices and $P$ bytes of weights, a step of flowkit's losses moves over each link, in
every placement,

$$2 \frac{n - 1}{n} P$$

bytes: the gradients are added up and come back (`Replicated`, `Pmapped`), or the weights are
gathered before and the gradients scattered after (`FullySharded`).
"""

import abc
import functools as ft
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from flowkit._devices import (
    AXIS,
    divided,
    Division,
    sharded_axis,
    split_at,
    with_auto_axes,
)
from flowkit.training._step.sharding import (
    check_divisible,
    check_mesh,
    data_mesh,
    replicated,
    split,
    split_over,
)


class AbstractPlacement(eqx.Module):
    """How training is spread over devices: the type of `parallel=`.

    All placements make the same steps, up to the order of sums. In each of them the loss
    sees the whole batch, so couplings, stratified times and random numbers do not depend on
    the number of devices; flowkit's losses divide the work on single examples.
    """

    @abc.abstractmethod
    def place_state(self, leaves: list[Any]) -> list[Any]:
        """The arrays of a state, equal on every process, where they belong."""

    @abc.abstractmethod
    def place_batch(self, batch: PyTree[Any], *, axis: int) -> PyTree[Any]:
        """A batch of this process, whose axis number `axis` counts the examples."""

    @abc.abstractmethod
    def place_data(self, data: PyTree[Any], batch_size: int) -> PyTree[Any]:
        """All data, equal on every process, of which each step draws a batch."""

    @abc.abstractmethod
    def whole_batch(self, batch: PyTree[Any], *, resident: bool) -> PyTree[Any]:
        """Within a step, the batch that the loss sees."""

    @abc.abstractmethod
    def value_and_grad(self, objective: Callable, params: PyTree[Any]) -> Any:
        """`jax.value_and_grad(objective, has_aux=True)(params)` for the whole batch."""

    @abc.abstractmethod
    def compiled(self, run: Callable, *, batch_axis: int | None) -> Callable:
        """`run(arrays, batch) -> (arrays, metrics)` as a program that donates the arrays.

        `batch_axis` counts the examples; `None` means that every device has all of them.
        """


class OneDevice(AbstractPlacement):
    """Everything happens on one device, JAX's default: the default of `parallel=`.

    `fit` refuses it on several processes, each of which would train its own model. If that
    is intended, pass `Replicated(data_mesh(jax.local_devices()))`.
    """

    def place_state(self, leaves):
        return leaves

    def place_batch(self, batch, *, axis):
        del axis
        return batch

    def place_data(self, data, batch_size):
        del batch_size
        return jax.tree.map(jnp.asarray, data)

    def whole_batch(self, batch, *, resident):
        del resident
        return batch

    def value_and_grad(self, objective, params):
        return jax.value_and_grad(objective, has_aux=True)(params)

    def compiled(self, run, *, batch_axis):
        del batch_axis
        return jax.jit(run, donate_argnums=0)


class _AbstractPartitioned(AbstractPlacement):
    """One program over a mesh, which the compiler partitions."""

    mesh: eqx.AbstractVar[Mesh]

    def __check_init__(self):
        check_mesh(self.mesh)

    @abc.abstractmethod
    def sharding_of(self, leaf: Any) -> NamedSharding:
        """Where an array of the state lives."""

    def place_state(self, leaves):
        return _moved(leaves, [self.sharding_of(leaf) for leaf in leaves])

    def place_batch(self, batch, *, axis):
        return split(batch, self.mesh, axis=axis)

    def place_data(self, data, batch_size):
        return _everywhere(data, batch_size, self.mesh)

    def whole_batch(self, batch, *, resident):
        if not resident:
            return batch
        # Drawn on every device; each goes on with its own part.
        return jax.lax.with_sharding_constraint(batch, split_over(self.mesh))


def _as_mesh(mesh: Any) -> Mesh:
    if mesh is None:
        return data_mesh()
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"`mesh` must be a mesh, got {type(mesh).__name__}; "
            "`fk.training.data_mesh(devices)` makes one."
        )
    return with_auto_axes(mesh)


class Replicated(_AbstractPartitioned):
    """Every device holds the whole state: the usual data parallelism.

    `mesh=` of `fit` and `make_step` is short for it.

    **Arguments:**

    - `mesh`: from `data_mesh`; `None` takes all devices.
    """

    mesh: Mesh = eqx.field(default=None, converter=_as_mesh, static=True)

    def sharding_of(self, leaf):
        del leaf
        return replicated(self.mesh)

    def value_and_grad(self, objective, params):
        with divided(Division(self.mesh.shape[AXIS], self.mesh)):
            return jax.value_and_grad(objective, has_aux=True)(params)

    def compiled(self, run, *, batch_axis):
        del batch_axis
        # Stated, or XLA may choose to leave a part of the state split.
        everywhere = replicated(self.mesh)
        return jax.jit(run, donate_argnums=0, out_shardings=everywhere)


class FullySharded(_AbstractPartitioned):
    r"""Every large array of the state is split over the devices.

    Weights, moments of the optimizer and averages take $1 / n$ of the memory on each of
    $n$ devices. An array is split along the longest axis that $n$ divides; one without such
    an axis, or with fewer than 256 numbers, stays whole.

    flowkit's losses gather each weight where the examples are worked on, and scatter its
    gradient. For a loss that averages over the batch by itself, the weights are gathered
    before it is called; `fk.training.mean_over_batch` saves a third of the bytes there.

    **Arguments:**

    - `mesh`: from `data_mesh`; `None` takes all devices.

    **Reference:** Rajbhandari et al., *ZeRO: Memory optimizations toward training trillion
    parameter models*, 2020 (arXiv 1910.02054), stage 3.
    """

    mesh: Mesh = eqx.field(default=None, converter=_as_mesh, static=True)

    def sharding_of(self, leaf):
        axis = None
        if eqx.is_inexact_array(leaf):
            axis = sharded_axis(leaf.shape, self.mesh.shape[AXIS])
        return NamedSharding(self.mesh, split_at(axis))

    def value_and_grad(self, objective, params):
        division = Division(self.mesh.shape[AXIS], self.mesh, sharded=True)
        with divided(division):
            eqx.filter_eval_shape(objective, params)
            if division.used:
                return jax.value_and_grad(objective, has_aux=True)(params)

            # Left alone, XLA would add up activations in place of gathering weights.
            gathered = lambda params: objective(jax.tree.map(self._gather, params))
            return jax.value_and_grad(gathered, has_aux=True)(params)

    def compiled(self, run, *, batch_axis):
        del batch_axis

        def placed(arrays, batch):
            arrays, metrics = run(arrays, batch)
            kept = [
                jax.lax.with_sharding_constraint(leaf, self.sharding_of(leaf))
                for leaf in arrays
            ]
            # Left alone, a metric of each example stays split, and no process has all of it.
            whole = jax.lax.with_sharding_constraint(metrics, replicated(self.mesh))
            return kept, whole

        return jax.jit(placed, donate_argnums=0)

    def _gather(self, leaf: Any) -> Any:
        return _gathered(leaf, replicated(self.mesh), self.sharding_of(leaf))


class Pmapped(AbstractPlacement):
    """The classic replicated step of `jax.pmap`: each device runs the same program.

    If the loss averages over the batch by itself, every device does all of the work, and a
    warning says so. If it uses `fk.training.mean_over_batch`, each device does its own
    share. For several processes, use `Replicated`.

    **Arguments:**

    - `devices`: of this process; `None` takes all of them.
    """

    mesh: Mesh = eqx.field(static=True)

    def __init__(self, devices: Sequence[Any] | None = None):
        if jax.process_count() > 1:
            raise ValueError(
                "`parallel`: `Pmapped` is for one process; use `fk.training.Replicated`, "
                "which is the same for several."
            )
        self.mesh = data_mesh(devices)

    def place_state(self, leaves):
        # As a step returns them, or the second call would compile again.
        return _moved(leaves, [replicated(self.mesh)] * len(leaves))

    def place_batch(self, batch, *, axis):
        num = self.mesh.size

        def parts(leaf):
            shape = np.shape(leaf)
            size = shape[axis] if len(shape) > axis else 0
            check_divisible(size, self.mesh)
            shape = (*shape[:axis], num, size // num, *shape[axis + 1 :])
            return leaf.reshape(shape)

        return jax.tree.map(parts, batch)

    def place_data(self, data, batch_size):
        return _everywhere(data, batch_size, self.mesh)

    def whole_batch(self, batch, *, resident):
        if resident:
            return batch
        join = lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True)
        return jax.tree.map(join, batch)

    def value_and_grad(self, objective, params):
        division = Division(self.mesh.size, None)
        with divided(division):
            value, grads = jax.value_and_grad(objective, has_aux=True)(params)
        if not division.used and self.mesh.size > 1:
            warnings.warn(
                "`parallel=Pmapped()`: the loss averages over the batch by itself, so every "
                "device does all of the work; use `fk.training.mean_over_batch` in it.",
                stacklevel=2,
            )
        # The gradient of what was joined comes back to each device as a sum.
        return value, jax.lax.pmean(grads, AXIS)

    def compiled(self, run, *, batch_axis):
        program = jax.pmap(
            lambda arrays, batch, index: run(arrays, batch),
            axis_name=AXIS,
            # Something has to be mapped, even where every device has all data.
            in_axes=(None, batch_axis, 0),
            out_axes=None,
            devices=list(self.mesh.devices.flat),
            donate_argnums=0,
        )
        return _WithIndices(program, np.arange(self.mesh.size))


class _WithIndices:
    """A mapped program, called without the numbers of its devices."""

    def __init__(self, program: Any, indices: np.ndarray):
        self._program = program
        self._indices = indices

    def __call__(self, arrays: list[Any], batch: PyTree[Any]) -> Any:
        return self._program(arrays, batch, self._indices)

    def lower(self, arrays: list[Any], batch: PyTree[Any]) -> Any:
        return self._program.lower(arrays, batch, self._indices)


def as_placement(parallel: AbstractPlacement, mesh: Mesh | None) -> AbstractPlacement:
    """The placement that the arguments `parallel` and `mesh` ask for."""
    if mesh is None:
        return parallel
    if not isinstance(parallel, OneDevice):
        raise ValueError(
            "`mesh` is short for `parallel=fk.training.Replicated(mesh)`; pass one of them."
        )
    return Replicated(mesh)


def _everywhere(data: PyTree[Any], batch_size: int, mesh: Mesh) -> PyTree[Any]:
    """All data on every device."""
    check_divisible(batch_size, mesh)
    sharding = replicated(mesh)

    def put(leaf):
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        rows = np.asarray(leaf)
        return jax.make_array_from_process_local_data(sharding, rows, rows.shape)

    return jax.tree.map(put, data)


def _moved(leaves: list[Any], shardings: list[NamedSharding]) -> list[Any]:
    pairs = zip(leaves, shardings, strict=True)
    if all(leaf.sharding == sharding for leaf, sharding in pairs):
        return leaves

    if jax.process_count() == 1:
        return jax.device_put(leaves, shardings)
    # Through jit: a typed key cannot be put onto the devices of several processes.
    return jax.jit(_identity, out_shardings=shardings)(leaves)


def _identity(leaves: list[Any]) -> list[Any]:
    return leaves


@ft.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(leaf: Any, whole: NamedSharding, shard: NamedSharding) -> Any:
    """The whole array; its gradient comes back as a shard."""
    del shard
    return jax.lax.with_sharding_constraint(leaf, whole)


def _gathered_fwd(leaf, whole, shard):
    return _gathered(leaf, whole, shard), None


def _gathered_bwd(whole, shard, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, shard),)


_gathered.defvjp(_gathered_fwd, _gathered_bwd)
