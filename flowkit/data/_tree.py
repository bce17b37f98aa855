"""Pytrees of arrays that share their leading axis."""

from typing import Any

import jax
import numpy as np


def leading_size(data: Any) -> int:
    """The number of examples in a pytree of arrays, which must agree in all of them."""
    leaves = jax.tree.leaves(data)
    if not leaves:
        raise ValueError(
            "`data` has no arrays; give a pytree of arrays with one leading axis, the "
            "examples."
        )

    shapes = [np.shape(leaf) for leaf in leaves]
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
