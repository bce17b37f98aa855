"""Batches of data that lies in memory, as a grain dataset: shuffled, sharded, resumed exactly.

Writing `n` for the examples, `B` for the batch size and `P_e` for the permutation of epoch `e`, the examples
of all epochs stand in one endless line

    P_0(0) ... P_0(n-1) P_1(0) ... P_1(n-1) P_2(0) ...

and batch `i` holds the places `i B` to `(i + 1) B - 1`. So batches run over the border of two epochs, no
example is dropped, and the times that two examples have been seen never differ by more than one. (A batch on
the border may hold an example twice, once from each epoch.)
"""

import dataclasses
import functools as ft
import sys
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from flowkit.data._tree import leading_size


def batches(
    data: Any,
    batch_size: int,
    *,
    num_steps: int | None = None,
    seed: int = 0,
    transform: Callable[[Any, np.random.Generator], Any] | None = None,
    shard_index: int | None = None,
    num_shards: int | None = None,
) -> grain.IterDataset:
    """A grain dataset whose elements are shuffled batches of a pytree of arrays.

    One record is one batch, gathered in the calling thread, which costs a few hundredths of a millisecond.
    Batch `i` is a pure function of `seed` and `i`: an iterator that was set to a saved state (`get_state`,
    `set_state`) goes on with bitwise the batches that would have come.

    **Arguments:**

    - `data`: a pytree of arrays with one leading axis, the examples (`PointSets`, a dict, one array). It is
        never changed, and not copied if it is on the host: leave it as it is while batches are drawn.
    - `batch_size`: the size of a batch over all shards; it may be larger than the data.
    - `num_steps`: how many batches there are; `None` for no end.
    - `seed`: of the permutations and of the transform.
    - `transform`: `transform(batch, rng)` returns the batch to use; `rng` is a NumPy generator of its own for
        each step and shard. For augmentation and fresh noise.
    - `shard_index`, `num_shards`: this process takes the `shard_index`-th of `num_shards` equal parts of each
        batch. The default is JAX's own process index and count.

    **Returns:** a `grain.IterDataset` of pytrees of NumPy arrays, of leading size `batch_size // num_shards`.
    """
    size = leading_size(data)
    if (shard_index is None) != (num_shards is None):
        raise ValueError(
            "`shard_index` and `num_shards` belong together; give both or neither."
        )
    shard_index = jax.process_index() if shard_index is None else shard_index
    num_shards = jax.process_count() if num_shards is None else num_shards
    _check_shards(batch_size, shard_index, num_shards)
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    if num_steps is not None and num_steps < 1:
        raise ValueError(
            f"`num_steps` must be at least 1, or None for no end; got {num_steps}."
        )
    gather = _Gather(
        jax.tree.map(np.asarray, data),
        size,
        batch_size,
        seed,
        transform,
        shard_index,
        num_shards,
    )
    records = grain.MapDataset.range(sys.maxsize if num_steps is None else num_steps)
    # No threads: handing a batch over between threads costs more than gathering it.
    return records.map(gather).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )


def _check_shards(batch_size: int, shard_index: int, num_shards: int) -> None:
    if not 0 <= shard_index < num_shards:
        raise ValueError(
            f"`shard_index` must lie in 0 ... {num_shards - 1}, got {shard_index}."
        )
    if batch_size < 1 or batch_size % num_shards:
        raise ValueError(
            f"`batch_size` must be a positive multiple of `num_shards`, {num_shards}; got {batch_size}."
        )


@dataclasses.dataclass(frozen=True)
class _Gather:
    """From the number of a step to its batch. A class, because grain's worker processes cannot take a
    closure."""

    data: Any
    size: int
    batch_size: int
    seed: int
    transform: Callable[[Any, np.random.Generator], Any] | None
    shard_index: int
    num_shards: int

    def __call__(self, step: int) -> Any:
        rows = self._rows(step)
        batch = jax.tree.map(lambda leaf: leaf[rows], self.data)
        if self.transform is None:
            return batch
        return self.transform(
            batch, np.random.default_rng((self.seed, 1, step, self.shard_index))
        )

    def _rows(self, step: int) -> np.ndarray:
        """The examples of this shard's part of a batch: one slice from each epoch that it touches."""
        local = self.batch_size // self.num_shards
        start = step * self.batch_size + self.shard_index * local
        stop = start + local
        parts = []
        while start < stop:
            epoch, place = divmod(start, self.size)
            part = _permutation(self.seed, epoch, self.size)[
                place : place + stop - start
            ]
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@ft.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    permutation = np.random.default_rng((seed, 0, epoch)).permutation(size)
    permutation.flags.writeable = False
    return permutation
