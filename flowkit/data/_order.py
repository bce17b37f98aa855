"""Which examples a batch has: a pure function of the seed and the number of the step."""

import functools as ft
import operator
import sys
from collections.abc import Callable
from typing import NamedTuple

import grain
import jax
import numpy as np


class Shard(NamedTuple):
    """This process takes the `index`-th of `count` equal parts of each batch."""

    index: int
    count: int


class Order(NamedTuple):
    """An endless line of the examples of all epochs, cut into batches.

    - `size`: the number of examples.
    - `used`: how many of them an epoch has: the first ones of its permutation.
    - `batch_size`: the size of a batch over all shards.
    """

    size: int
    used: int
    batch_size: int
    seed: int
    shard: Shard

    def rows(self, step: int) -> np.ndarray:
        """The examples of this shard's part of a batch, one slice from each epoch."""
        local = self.batch_size // self.shard.count
        # A slice ends with its epoch: either all examples are used, or whole batches.
        start = step * self.batch_size + self.shard.index * local
        stop = start + local

        parts = []
        while start < stop:
            epoch, place = divmod(start, self.used)
            permutation = _permutations(self.seed, self.size)(epoch)
            parts.append(permutation[place : place + stop - start])
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def rng(self, step: int) -> np.random.Generator:
        """A generator of this step and shard for everything else that is random."""
        # The 1 keeps this stream apart from that of the permutations, which has a 0
        # there.
        return np.random.default_rng((self.seed, 1, step, self.shard.index))


def make_order(
    size: int,
    batch_size: int,
    *,
    drop_rest: bool,
    seed: int,
    shard_index: int | None,
    num_shards: int | None,
) -> Order:
    """The order of batches, after a check of the arguments.

    With `drop_rest` no batch crosses the border of two epochs: those examples of each epoch
    that do not fill a batch are left out.
    """
    if (shard_index is None) != (num_shards is None):
        raise ValueError(
            "`shard_index` and `num_shards` belong together; give both or neither."
        )

    if shard_index is None or num_shards is None:
        shard_index = jax.process_index()
        num_shards = jax.process_count()
    shard = Shard(operator.index(shard_index), operator.index(num_shards))
    batch_size = operator.index(batch_size)
    _check_shard(batch_size, shard)

    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    if drop_rest and batch_size > size:
        raise ValueError(
            f"`batch_size` is {batch_size}, but there are only {size} examples, which "
            "do not fill a batch; make it smaller."
        )

    used = size // batch_size * batch_size if drop_rest else size
    return Order(size, used, batch_size, operator.index(seed), shard)


def step_numbers(num_steps: int | None) -> grain.MapDataset:
    """The numbers of the steps, without end for `None`."""
    if num_steps is not None and num_steps < 1:
        raise ValueError(
            f"`num_steps` must be at least 1, or None for no end; got {num_steps}."
        )
    num_records = sys.maxsize if num_steps is None else operator.index(num_steps)
    return grain.MapDataset.range(num_records)


def _check_shard(batch_size: int, shard: Shard) -> None:
    if not 0 <= shard.index < shard.count:
        raise ValueError(
            f"`shard_index` must lie in 0 ... {shard.count - 1}, got {shard.index}."
        )
    if batch_size < 1 or batch_size % shard.count:
        raise ValueError(
            f"`batch_size` must be a positive multiple of `num_shards`, {shard.count}; "
            f"got {batch_size}."
        )


# Those of the buckets that take turns.
@ft.lru_cache(maxsize=64)
def _permutations(seed: int, size: int) -> Callable[[int], np.ndarray]:
    """The permutation of each epoch; of large data it takes 8 bytes for each example."""

    # A batch, or those that are read ahead, may hold parts of two.
    @ft.lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        drawn = np.random.default_rng((seed, 0, epoch)).permutation(size)
        # Shared by all batches of the epoch.
        drawn.flags.writeable = False
        return drawn

    return permutation
