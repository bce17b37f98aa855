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
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from flowkit.data._order import make_order, Order, step_numbers
from flowkit.data._shards import on_host
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
        one array), or what `fk.data.npz_folder` returns, of which only the rows of a batch
        are read. It is never changed, and not copied if it is on the host: do not change it
        while batches are drawn.
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
    records = batch_records(
        data,
        batch_size,
        num_steps=num_steps,
        seed=seed,
        transform=transform,
        shard_index=shard_index,
        num_shards=num_shards,
    )
    return to_batches(records)


def batch_records(
    data: Any,
    batch_size: int,
    *,
    num_steps: int | None = None,
    seed: int,
    transform: Callable[[Any, np.random.Generator], Any] | None,
    shard_index: int | None,
    num_shards: int | None,
) -> grain.MapDataset:
    """The batches of `batches`, under their numbers."""
    order = make_order(
        leading_size(data),
        batch_size,
        drop_rest=False,
        seed=seed,
        shard_index=shard_index,
        num_shards=num_shards,
    )
    arrays = jax.tree.map(on_host, data)
    return step_numbers(num_steps).map(_Gather(arrays, order, transform))


def to_batches(records: grain.MapDataset) -> grain.IterDataset:
    """Batches one after the other."""
    # No threads: handing a batch over between threads costs more than gathering it.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return records.to_iter_dataset(options)


@dataclasses.dataclass(frozen=True)
class _Gather:
    """From the number of a step to its batch.

    A class, because grain's worker processes cannot take a closure.
    """

    data: Any
    order: Order
    transform: Callable[[Any, np.random.Generator], Any] | None

    def __call__(self, step: int) -> Any:
        rows = self.order.rows(step)
        batch = jax.tree.map(lambda leaf: leaf[rows], self.data)
        if self.transform is None:
            return batch
        return self.transform(batch, self.order.rng(step))
