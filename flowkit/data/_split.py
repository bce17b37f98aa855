"""Splitting a data set in two."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from flowkit._types import AnyArray, Number
from flowkit.data._sets import Split
from flowkit.data._tree import leading_size, on_host, take


def train_test_split(
    data: Any,
    *,
    test_fraction: Number = 0.1,
    seed: int = 0,
    stratify: Shaped[AnyArray, " b"] | None = None,
) -> Split:
    """Shuffles the examples and sets a part of them aside.

    With `stratify` every class gives its share of the test set to within one example.

    **Arguments:**

    - `data`: a pytree of arrays with one leading axis, the examples, or what
        `fk.data.npz_folder` or `array_record_folder` returns, of which each side is read
        into memory. It is not changed.
    - `test_fraction`: a number in (0, 1). The test set has the nearest whole number of
        examples, and neither side is empty.
    - `seed`: the random seed; the same seed gives the same split, whatever was drawn
        before.
    - `stratify`: one label per example.

    **Returns:** `Split(train, test)` of NumPy arrays.
    """
    num = leading_size(data)
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"`test_fraction` must lie between 0 and 1, got {test_fraction}."
        )
    if num < 2:
        raise ValueError(f"`data` has {num} example; a split needs at least two.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    if stratify is not None and len(stratify) != num:
        raise ValueError(
            f"`stratify` must have one label per example, {num}; got {len(stratify)}."
        )

    num_test = min(max(round(float(test_fraction) * num), 1), num - 1)
    order_key, train_key, test_key = np.random.SeedSequence(seed).spawn(3)
    order = np.random.default_rng(order_key).permutation(num)
    if stratify is not None:
        # Stable, so that the examples of a class stay in random order.
        order = order[np.argsort(np.asarray(stratify)[order], kind="stable")]
    # Evenly spaced places in the order of the classes: exactly `num_test` of all, and its
    # share of each class.
    rank = np.arange(num + 1) * num_test // num
    chosen = rank[1:] > rank[:-1]

    # Shuffled again, because with labels the order is that of the classes.
    train = np.random.default_rng(train_key).permutation(order[~chosen])
    test = np.random.default_rng(test_key).permutation(order[chosen])
    return Split(_take(data, train), _take(data, test))


def _take(data: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: take(on_host(leaf), index), data)
