"""Batches from the host: read as arrays, and copied into memory that nobody else writes.

JAX runs a compiled step after the call has returned, and on a CPU it reads the memory of
a NumPy array in place. If that memory is refilled in the meantime (a ring of buffers,
shared memory, a memory map), the batch changes while the step runs, so every array is
copied first.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


_AS_THEY_ARE = (jax.Array, jax.ShapeDtypeStruct, bool, int, float, complex)


def owned(tree: PyTree[Any], name: str) -> PyTree[Any]:
    """`tree` with a copy of every array of the host; arrays of JAX stay as they are.

    Whatever has `__array__`, such as a tensor of PyTorch, becomes a NumPy array.

    **Raises:** `ValueError` about the argument `name` for leaves that are no numbers.
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_array_like)
    if all(isinstance(leaf, _AS_THEY_ARE) for leaf in leaves):
        return tree

    copies = []
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, _AS_THEY_ARE):
            copies.append(leaf)
        else:
            copies.append(_copy_of(leaf, f"`{name}`{_place(tree, number)}"))
    return jax.tree.unflatten(treedef, copies)


def _copy_of(leaf: Any, where: str) -> np.ndarray:
    try:
        array = np.array(leaf)
    except Exception as error:
        raise ValueError(
            f"{where} is a {type(leaf).__qualname__} that NumPy cannot read "
            f"({error}); convert it to an array."
        ) from error
    is_number = jnp.issubdtype(array.dtype, jnp.number)
    if not is_number and array.dtype != np.bool_:
        raise ValueError(
            f"{where} holds {array.dtype} values such as {np.ravel(array)[:1]}, where "
            "numbers are needed; encode labels as integers, and drop the rest."
        )
    return array


def _place(tree: PyTree[Any], number: int) -> str:
    """The path of a leaf, looked up only where an error needs it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_array_like)
    return jax.tree_util.keystr(leaves[number][0])


def _is_array_like(node: Any) -> bool:
    return hasattr(node, "__array__")
