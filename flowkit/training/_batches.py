"""Where batches come from, and how far they were read."""

import sys
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from flowkit.training._sharding import check_divisible, replicated, shard_batch
from flowkit.training._step import Feed


class Resident:
    """Data that stays on the device; each step draws its batch there."""

    def __init__(self, data: PyTree[Any], batch_size: int | None, mesh: Mesh | None):
        sizes = {
            np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(data)
        }
        if len(sizes) != 1 or sizes == {0}:
            raise ValueError(
                "`batches` is a pytree of arrays, which must share their first axis, the examples, got lengths "
                f"{sorted(sizes)}; a list of batches is passed as `iter(batches)`."
            )
        (size,) = sizes
        if batch_size is not None and not 1 <= batch_size <= size:
            raise ValueError(
                f"`batch_size` must be between 1 and the {size} examples in `batches`, got {batch_size}."
            )
        if mesh is None:
            self._data = jax.tree.map(jnp.asarray, data)
        else:
            check_divisible(size if batch_size is None else batch_size, mesh)
            self._data = jax.tree.map(lambda leaf: _everywhere(leaf, mesh), data)
        self._batch_size = batch_size

    def feed(self, length: int | None) -> Feed:
        return Feed(length, resident=True, batch_size=self._batch_size)

    def take(self, length: int | None) -> Any:
        del length
        return self._data

    def position(self) -> Any:
        return None

    def seek(self, position: Any) -> None:
        del position


class Stream:
    """Batches from an iterator; grain's knows its position."""

    def __init__(self, batches: Iterable[Any], mesh: Mesh | None):
        self._iterable = batches
        self._iterator = iter(batches)
        self._mesh = mesh
        self.seekable = isinstance(self._iterator, grain.DatasetIterator)

    def feed(self, length: int | None) -> Feed:
        return Feed(length)

    def take(self, length: int | None) -> Any:
        """The next batch, or the next `length` batches stacked."""
        if length is None:
            batch, axis = self._next(), 0
        else:
            batch, axis = (
                jax.tree.map(_stack, *[self._next() for _ in range(length)]),
                1,
            )
        return (
            batch if self._mesh is None else shard_batch(batch, self._mesh, axis=axis)
        )

    def position(self) -> Any:
        return (
            self._iterator.get_state()
            if isinstance(self._iterator, grain.DatasetIterator)
            else None
        )

    def seek(self, position: Any) -> None:
        if isinstance(self._iterator, grain.DatasetIterator):
            self._iterator.set_state(position)

    def _next(self):
        try:
            return next(self._iterator)
        except StopIteration:
            pass
        # Another pass where that is a fresh one; a grain pipeline would repeat the same order.
        if not self.seekable and self._iterator is not self._iterable:
            self._iterator = iter(self._iterable)
            for batch in self._iterator:
                return batch
        raise ValueError(
            "`batches` ended before `num_steps` steps were made; repeat a grain dataset before it is shuffled into "
            "batches with `dataset.repeat()`, and let an iterator go on for ever."
        )


def make_source(
    batches: Any, batch_size: int | None, mesh: Mesh | None, *, needs_position: bool
) -> Resident | Stream:
    """The source of batches for anything that `fit` accepts."""
    is_grain = isinstance(
        batches, grain.MapDataset | grain.IterDataset | grain.DatasetIterator
    )
    if not is_grain and _is_arrays(batches):
        return Resident(batches, batch_size, mesh)
    if batch_size is not None:
        raise ValueError(
            "`batch_size` is for arrays in `batches`; a dataset or an iterator gives batches itself."
        )
    if not is_grain and not isinstance(batches, Iterable):
        raise ValueError(
            f"`batches` must be arrays, a grain dataset or an iterable of batches, got {type(batches)}."
        )
    if needs_position and not is_grain:
        raise ValueError(
            "`checkpoints` cannot hold the position of a plain iterator, so a resumed run would see other data; "
            "pass a grain dataset or arrays as `batches`, or leave `checkpoints` out."
        )
    if isinstance(batches, grain.MapDataset):
        if len(batches) == 0:
            raise ValueError("`batches` is an empty grain dataset.")
        # No threads: records that are whole batches of arrays in memory are read 25 times faster without.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        endless = batches if len(batches) == sys.maxsize else batches.repeat()
        batches = endless.to_iter_dataset(read_options=options)
    return Stream(batches, mesh)


def _is_arrays(batches: Any) -> bool:
    """Whether it is a pytree of arrays; looking at an iterator must not use it up."""
    is_stream = lambda node: (
        isinstance(node, Iterable) and not isinstance(node, dict | list | tuple)
    )
    leaves = jax.tree.leaves(batches, is_leaf=is_stream)
    return bool(leaves) and all(eqx.is_array(leaf) for leaf in leaves)


def _stack(*leaves: Any) -> Any:
    return jnp.stack(leaves) if isinstance(leaves[0], jax.Array) else np.stack(leaves)


def _everywhere(leaf: Any, mesh: Mesh) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(leaf, replicated(mesh))
    return jax.make_array_from_process_local_data(
        replicated(mesh), np.asarray(leaf), np.shape(leaf)
    )
