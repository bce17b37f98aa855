"""Batches of clouds of different sizes; the clouds in one batch have about the same size.

A program is compiled for one shape, and the computation on padding is wasted. With all
clouds padded to the largest one there is one program, and most of the work may be padding.
Buckets lie in between: each has a size of its own, to which its clouds are padded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Float, Integer

from flowkit._types import AnyArray
from flowkit.data._batches import batch_records, read_options
from flowkit.data._order import step_numbers
from flowkit.data._sets import check_alike, pad


def bucketed_batches(
    clouds: Sequence[Float[AnyArray, "_ _"]],
    batch_size: int,
    *,
    buckets: int | Sequence[int] = 4,
    labels: Integer[AnyArray, " b"] | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    transform: Callable[[Any, np.random.Generator], Any] | None = None,
    shard_index: int | None = None,
    num_shards: int | None = None,
) -> grain.IterDataset:
    """A grain dataset of shuffled batches of clouds `(n_i, d)`, each from one bucket of sizes.

    ```python
    batches = fk.data.bucketed_batches(clouds, 64, buckets=(100, 200, 500))

    def loss(flow, sets, key):
        return fk.flow_matching_loss(flow, sets.points, mask=sets.mask, key=key)

    fk.training.fit(loss, flow, batches, num_steps=1000, key=key)
    ```

    A cloud is padded to the smallest bucket that holds it. Buckets take turns, each in
    proportion to its share of the clouds, so every cloud is seen equally often. A step is
    compiled once for each bucket; since their shapes differ, `steps_per_call` is 1. All
    processes take the same bucket in the same step.

    **Arguments:**

    - `clouds`: arrays `(n_i, d)`, each with at least one point.
    - `buckets`: the sizes to fill up to, the largest of which must hold every cloud; or the
      number of buckets, each of which then gets about the same number of clouds.
    - `labels`: one integer per cloud.
    - `batch_size`, `num_steps`, `seed`, `transform`, `shard_index`, `num_shards`: as in
      `fk.data.batches`.

    **Returns:** a `grain.IterDataset` of `PointSets` with masks, each `(batch, size, d)`.
    """
    _check(clouds, labels)
    lengths = np.array([len(cloud) for cloud in clouds])
    sizes = _sizes(lengths, buckets)
    # The smallest bucket that holds each cloud.
    numbers = np.searchsorted(sizes, lengths)

    records = []
    shares = []
    for number in np.unique(numbers):
        rows = np.flatnonzero(numbers == number).tolist()
        sets = pad(
            [clouds[row] for row in rows],
            num_points=int(sizes[number]),
            labels=None if labels is None else np.asarray(labels)[rows],
        )
        bucket = batch_records(
            sets,
            batch_size,
            # Buckets of one size would have the same permutations.
            seed=seed * len(sizes) + int(number),
            transform=transform,
            shard_index=shard_index,
            num_shards=num_shards,
        )
        records.append(bucket)
        shares.append(len(rows))

    mixed = grain.MapDataset.mix(records, weights=shares)
    batches = mixed[: len(step_numbers(num_steps))]
    return batches.to_iter_dataset(read_options(0))


def _check(clouds: Sequence[Any], labels: Any) -> None:
    """What `pad` checks of a bucket, for all clouds."""
    check_alike(clouds)
    # A bucket has only some of the clouds, and would name another one.
    for number, cloud in enumerate(clouds):
        if not len(cloud) or not np.isfinite(cloud).all():
            raise ValueError(
                f"`clouds`: cloud {number} is empty, or not finite everywhere; remove it, "
                "or those points."
            )
    if labels is not None and len(labels) != len(clouds):
        raise ValueError(
            f"`labels` must be one integer for each of {len(clouds)} clouds, "
            f"got {len(labels)}."
        )


def _sizes(lengths: np.ndarray, buckets: int | Sequence[int]) -> np.ndarray:
    """The sizes of the buckets, in ascending order."""
    if not len(lengths):
        raise ValueError("`clouds` is empty; give at least one cloud.")
    if not isinstance(buckets, Sequence):
        if buckets < 1:
            raise ValueError(f"`buckets` must be at least 1, got {buckets}.")
        shares = np.arange(1, buckets + 1) / buckets
        return np.unique(np.quantile(lengths, shares, method="higher"))

    sizes = np.unique(buckets)
    if lengths.max() > max(buckets, default=0):
        raise ValueError(
            f"`buckets` are {list(buckets)}, but cloud {lengths.argmax()} has "
            f"{lengths.max()} points; add a bucket that holds it."
        )
    return sizes
