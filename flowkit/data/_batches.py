r"""Batches of data in memory as a grain dataset: shuffled, sharded, resumed exactly.

With $n$ examples, batch size $B$ and the permutation $P_e$ of epoch $e$, the examples of
all epochs form one endless line

    P_0(0) ... P_0(n-1) P_1(0) ... P_1(n-1) P_2(0) ...

and batch $i$ holds the places $i B$ to $(i + 1) B - 1$. So batches cross the border of two
epochs, no example is dropped, and the numbers of times that two examples have been seen
never differ by more than one. A batch on the border may hold an example twice, once from
each epoch.
"""

import dataclasses
import functools as ft
import operator
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

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

    One record is one batch, gathered in the calling thread, which costs a few hundredths
    of a millisecond. Batch `i` is a pure function of `seed` and `i`: an iterator that is
    set to a saved state (`get_state`, `set_state`) continues with bitwise the batches that
    would have come.

    **Arguments:**

    - `data`: a pytree of arrays with one leading axis, the examples (`PointSets`, a dict,
        one array). It is never changed, and not copied if it is on the host: do not change
        it while batches are drawn.
    - `batch_size`: the size of a batch over all shards; it may exceed the data.
    - `num_steps`: the number of batches; `None` means no end.
    - `seed`: the random seed of the permutations and of the transform.
    - `transform`: a function `(batch, rng)` that returns the batch to use. Each step and
        shard has a NumPy generator `rng` of its own. Use it for augmentation and noise.
    - `shard_index`, `num_shards`: this process takes the `shard_index`-th of `num_shards`
        equal parts of each batch. The default is JAX's own process index and count.

    **Returns:** a `grain.IterDataset` of pytrees of NumPy arrays, of leading size
    `batch_size // num_shards`.
    """
    size = leading_size(data)
    if (shard_index is None) != (num_shards is None):
        raise ValueError(
            "`shard_index` and `num_shards` belong together; give both or neither."
        )

    if shard_index is None or num_shards is None:
        shard_index = jax.process_index()
        num_shards = jax.process_count()
    shard = _Shard(operator.index(shard_index), operator.index(num_shards))
    batch_size = operator.index(batch_size)
    _check_shard(batch_size, shard)

    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    if num_steps is not None and num_steps < 1:
        raise ValueError(
            f"`num_steps` must be at least 1, or None for no end; got {num_steps}."
        )

    on_host = jax.tree.map(np.asarray, data)
    order = _Order(size, batch_size, operator.index(seed), shard)
    num_records = sys.maxsize if num_steps is None else operator.index(num_steps)
    records = grain.MapDataset.range(num_records)
    # No threads: handing a batch over between threads costs more than gathering it.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return records.map(_Gather(on_host, order, transform)).to_iter_dataset(options)


class _Shard(NamedTuple):
    index: int
    count: int


def _check_shard(batch_size: int, shard: _Shard) -> None:
    if not 0 <= shard.index < shard.count:
        raise ValueError(
            f"`shard_index` must lie in 0 ... {shard.count - 1}, got {shard.index}."
        )
    if batch_size < 1 or batch_size % shard.count:
        raise ValueError(
            f"`batch_size` must be a positive multiple of `num_shards`, {shard.count}; "
            f"got {batch_size}."
        )


class _Order(NamedTuple):
    """Which examples a step takes."""

    size: int
    batch_size: int
    seed: int
    shard: _Shard

    def rows(self, step: int) -> np.ndarray:
        """The examples of this shard's part of a batch, one slice from each epoch."""
        local = self.batch_size // self.shard.count
        start = step * self.batch_size + self.shard.index * local
        stop = start + local

        parts = []
        while start < stop:
            epoch, place = divmod(start, self.size)
            permutation = _permutation(self.seed, epoch, self.size)
            parts.append(permutation[place : place + stop - start])
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class _Gather:
    """From the number of a step to its batch.

    A class, because grain's worker processes cannot take a closure.
    """

    data: Any
    order: _Order
    transform: Callable[[Any, np.random.Generator], Any] | None

    def __call__(self, step: int) -> Any:
        rows = self.order.rows(step)
        batch = jax.tree.map(lambda leaf: leaf[rows], self.data)
        if self.transform is None:
            return batch
        # The 1 keeps this stream apart from that of the permutations, which has a 0
        # there.
        seed = (self.order.seed, 1, step, self.order.shard.index)
        return self.transform(batch, np.random.default_rng(seed))


@ft.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    permutation = np.random.default_rng((seed, 0, epoch)).permutation(size)
    # Shared by all batches of the epoch.
    permutation.flags.writeable = False
    return permutation
