r"""Batches of data as a grain dataset: shuffled, sharded, resumed exactly.

With $n$ examples, batch size $B$ and the permutation $P_e$ of epoch $e$, the examples of
all epochs form one endless line

    P_0(0) ... P_0(n-1) P_1(0) ... P_1(n-1) P_2(0) ...

and batch $i$ holds the places $i B$ to $(i + 1) B - 1$. So batches cross the border of two
epochs, no example is dropped, and the numbers of times that two examples have been seen
never differ by more than one. A batch on the border may hold an example twice, once from
each epoch.
"""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from flowkit.data._order import make_order, Order, step_numbers
from flowkit.data._tree import leading_size, on_host, take


def batches(
    data: Any,
    batch_size: int,
    *,
    num_steps: int | None = None,
    seed: int = 0,
    transform: Callable[[Any, np.random.Generator], Any] | None = None,
    num_threads: int = 0,
    shard_index: int | None = None,
    num_shards: int | None = None,
) -> grain.IterDataset:
    """A grain dataset whose elements are shuffled batches of a pytree of arrays.

    One record is one batch. A batch of data in memory is gathered in a few hundredths
    of a millisecond, in the calling thread. Batch `i` is a pure function of `seed` and
    `i`: an iterator that is set to a saved state (`get_state`, `set_state`) continues
    with exactly the batches that would have followed, bit by bit.

    **Arguments:**

    - `data`: a pytree of arrays with one leading axis, the examples (`PointSets`, a
        dict, one array). It is never changed, and not copied if it is on the host: do
        not change it while batches are drawn. If it comes from `fk.data.npz_folder` or
        `array_record_folder`, or is any `grain.MapDataset` of examples, only the
        examples of a batch are read.
    - `batch_size`: the size of a batch over all shards. It may exceed the data: a batch
        then goes through more than one epoch, and holds examples several times.
    - `num_steps`: the number of batches; `None` means no end.
    - `seed`: the random seed of the permutations and of the transform.
    - `transform`: a function `(batch, rng)` that returns the batch to use. Each step and
        shard has a NumPy generator `rng` of its own. Use it for augmentation and noise.
    - `num_threads`: how many batches are read at the same time, ahead of training; 0
      reads each batch when it is requested. Use several threads for files that are slow
      to read.
    - `shard_index`, `num_shards`: this process takes the `shard_index`-th of `num_shards`
        equal parts of each batch. The default is JAX's own process index and count.

    **Returns:** a `grain.IterDataset` of pytrees of NumPy arrays, of leading size
    `batch_size // num_shards`.
    """
    options = read_options(num_threads)
    records = batch_records(
        data,
        batch_size,
        num_steps=num_steps,
        seed=seed,
        transform=transform,
        shard_index=shard_index,
        num_shards=num_shards,
    )
    return records.to_iter_dataset(options)


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


def read_options(num_threads: int) -> grain.ReadOptions:
    """How far ahead batches are read; 0 threads read each when it is asked for."""
    num_threads = operator.index(num_threads)
    if num_threads < 0:
        raise ValueError(f"`num_threads` must not be negative, got {num_threads}.")
    return grain.ReadOptions(num_threads, prefetch_buffer_size=2 * num_threads)


@dataclasses.dataclass(frozen=True)
class _Gather:
    """Maps the number of a step to its batch.

    A class, because grain's worker processes cannot take a closure.
    """

    data: Any
    order: Order
    transform: Callable[[Any, np.random.Generator], Any] | None

    def __call__(self, step: int) -> Any:
        rows = self.order.rows(step)
        batch = jax.tree.map(lambda leaf: take(leaf, rows), self.data)
        if self.transform is None:
            return batch
        return self.transform(batch, self.order.rng(step))
