"""Pytrees whose leaves share their leading axis, the examples.

A leaf is an array, one in files, or a dataset of grain, each of whose elements is one
example.
"""

import sys
from typing import Any

import grain
import jax
import numpy as np

from flowkit.data._shards import StoredArray


def leading_size(data: Any) -> int:
    """The number of examples in a pytree of arrays, which must agree in all of them."""
    leaves = jax.tree.leaves(data)
    if not leaves:
        raise ValueError(
            "`data` has no arrays; give a pytree of arrays with one leading axis, the "
            "examples."
        )

    shapes = [_shape(leaf) for leaf in leaves]
    if not all(shapes):
        raise ValueError(
            "`data` must have arrays with a leading axis, the examples; got shapes "
            f"{shapes}."
        )

    sizes = {shape[0] for shape in shapes}
    if len(sizes) > 1:
        raise ValueError(
            "`data` must have arrays with equal leading axes, the examples; got shapes "
            f"{shapes}."
        )
    if sizes == {0}:
        raise ValueError(f"`data` has no examples, shapes {shapes}.")

    return sizes.pop()


def _shape(leaf: Any) -> tuple[int, ...]:
    if not isinstance(leaf, grain.MapDataset):
        return np.shape(leaf)
    if len(leaf) == sys.maxsize:
        raise ValueError(
            "`data` is a dataset of grain that has no end; leave its `repeat()` out."
        )
    return (len(leaf),)


def on_host(leaf: Any) -> Any:
    """The leaf as an array whose rows NumPy reads; what is in files stays there."""
    if isinstance(leaf, StoredArray | grain.MapDataset):
        return leaf
    return np.asarray(leaf)


def take(leaf: Any, rows: np.ndarray) -> Any:
    """The examples with these numbers; those of a dataset of grain are stacked."""
    if not isinstance(leaf, grain.MapDataset):
        return leaf[rows]

    examples = [leaf[int(row)] for row in rows]
    try:
        return jax.tree.map(_stack, *examples)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`data` is a dataset of grain, whose examples need the same names, types and "
            f"shapes, and none left out by `filter` ({error})."
        ) from error


def _stack(*arrays: Any) -> np.ndarray:
    # Without type promotion, which might happen in one batch and not in the next.
    dtype = np.asarray(arrays[0]).dtype
    return np.stack(arrays, dtype=dtype, casting="no")
