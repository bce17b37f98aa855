"""Where batches come from, and how far they were read.

`Resident` data stay on the device, where each step draws its batch. A `Stream` is asked
for one batch after another. Both have `take`, and a `position` that checkpoints keep.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from flowkit.training._step import AbstractPlacement, owned


class Resident:
    """Data that stay on the device; each step draws its batch there."""

    resident = True

    def __init__(
        self,
        data: PyTree[Any],
        batch_size: int | None,
        placement: AbstractPlacement,
    ):
        data = owned(data, "batches")
        sizes = {length(leaf) for leaf in jax.tree.leaves(data)}
        if len(sizes) != 1 or sizes == {0}:
            raise ValueError(
                "`batches` is a pytree of arrays, which must share their first axis, "
                f"the examples, got lengths {sorted(sizes)}; batches one after the "
                "other come from an iterator."
            )

        (size,) = sizes
        if batch_size is not None and not 1 <= batch_size <= size:
            raise ValueError(
                f"`batch_size` must be between 1 and the {size} examples in `batches`, "
                f"got {batch_size}."
            )

        used = size if batch_size is None else batch_size
        self._data = placement.place_data(data, used)
        self.batch_size = batch_size

    def take(self, length: int | None) -> tuple[PyTree[Any], int]:
        """All data, for any number of steps."""
        return self._data, 1 if length is None else length

    def position(self) -> Any:
        """Nothing: the step count says which examples are drawn."""
        return None

    def seek(self, position: Any) -> None:
        """Nothing to do."""
        del position


class Stream:
    """Batches from an iterable; an iterator of grain knows its position."""

    resident = False
    batch_size = None

    def __init__(self, batches: Iterable[Any], placement: AbstractPlacement):
        self._iterable = batches
        self._iterator = iter(batches)
        self._placement = placement

    def take(self, length: int | None) -> tuple[PyTree[Any], int]:
        """The next batch, or the next `length` batches stacked, and how many there are.

        These are fewer where the batches end.
        """
        batches = list(itertools.islice(self._rest(), length or 1))
        if not batches:
            return None, 0
        batch = batches[0] if length is None else _stacked(batches)
        axis = 0 if length is None else 1
        return self._placement.place_batch(batch, axis=axis), len(batches)

    def position(self) -> Any:
        """How far a dataset of grain was read; `None` for other iterables."""
        if isinstance(self._iterator, grain.DatasetIterator):
            return self._iterator.get_state()
        return None

    def seek(self, position: Any) -> None:
        """Go on from a position."""
        if isinstance(self._iterator, grain.DatasetIterator):
            self._iterator.set_state(position)

    def _rest(self) -> Iterator[PyTree[Any]]:
        """The batches that are left."""
        # Copied before the iterator is asked again: it may refill its memory.
        yield from map(_owned, self._iterator)

        # Another pass, where that makes sense: an iterator has only one, and a pipeline
        # of grain would repeat its order.
        is_grain = isinstance(self._iterator, grain.DatasetIterator)
        if is_grain or self._iterator is self._iterable:
            return
        is_empty = False
        while not is_empty:
            self._iterator = iter(self._iterable)
            is_empty = True
            for batch in map(_owned, self._iterator):
                is_empty = False
                yield batch


def _owned(batch: PyTree[Any]) -> PyTree[Any]:
    return owned(batch, "batches")


def make_source(
    batches: Any,
    batch_size: int | None,
    placement: AbstractPlacement,
    *,
    needs_position: bool,
) -> Resident | Stream:
    """The source of batches for anything that `fit` accepts."""
    is_grain = isinstance(
        batches, grain.MapDataset | grain.IterDataset | grain.DatasetIterator
    )
    # A dataset of grain is iterable and has a length, but it is no tree of arrays.
    if not is_grain and _is_tree(batches):
        return Resident(batches, batch_size, placement)
    if batch_size is not None:
        raise ValueError(
            "`batch_size` is for arrays in `batches`; a dataset or an iterator gives "
            "batches itself."
        )
    if not isinstance(batches, Iterable):
        raise ValueError(
            "`batches` must be arrays, a grain dataset or an iterable of batches, got "
            f"{type(batches)}."
        )
    if needs_position and not is_grain:
        raise ValueError(
            "`checkpoints` cannot hold the position of a plain iterator, so a resumed "
            "run would see other data; pass a grain dataset or arrays as `batches`, or "
            "leave `checkpoints` out."
        )
    if isinstance(batches, grain.MapDataset):
        batches = _endless(batches)
    return Stream(batches, placement)


def _is_tree(batches: Any) -> bool:
    """Whether this is a pytree of arrays. The check does not consume an iterator."""
    if isinstance(batches, list):
        raise ValueError(
            "`batches` is a list, which could be one pytree of arrays or a list of "
            "batches: pass a tuple for the former, `itertools.cycle(batches)` for the "
            "latter."
        )
    leaves = jax.tree.leaves(batches, is_leaf=_is_opaque)
    if len(leaves) != 1 or leaves[0] is not batches:
        return bool(leaves)
    return eqx.is_array(batches) or hasattr(batches, "__array__")


def _is_opaque(node: Any) -> bool:
    """Whether this is an iterable other than the containers of a pytree."""
    return isinstance(node, Iterable) and not isinstance(node, dict | list | tuple)


def _endless(dataset: grain.MapDataset) -> grain.IterDataset:
    if len(dataset) == 0:
        raise ValueError("`batches` is an empty grain dataset.")
    # Without threads: records that are whole batches of arrays in memory are then read
    # 25 times faster.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    repeated = dataset if len(dataset) == sys.maxsize else dataset.repeat()
    return repeated.to_iter_dataset(read_options=options)


def length(leaf: Any) -> int:
    """How many examples an array has."""
    return np.shape(leaf)[0] if np.ndim(leaf) else 0


def _stacked(batches: list[PyTree[Any]]) -> PyTree[Any]:
    """One batch per step along a new first axis."""
    first = batches[0]
    for batch in batches[1:]:
        if _shapes(batch) != _shapes(first):
            raise ValueError(
                f"`batches` gives {_shapes(first)} and then {_shapes(batch)}, but with "
                "`steps_per_call` above 1 batches are stacked and must have the same "
                "shapes; drop the smaller last batch of each pass."
            )
    return jax.tree.map(_stack, *batches)


def _shapes(batch: PyTree[Any]) -> PyTree[str]:
    return jax.tree.map(lambda leaf: f"an array {np.shape(leaf)}", batch)


def _stack(*leaves: Any) -> Any:
    return jnp.stack(leaves) if isinstance(leaves[0], jax.Array) else np.stack(leaves)
