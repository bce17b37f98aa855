"""Sums over pairs of points in bounded memory, and means and roots that stay defined.

A matrix of costs `(n, m)` is never held as a whole: it is computed for one block of rows
at a time, and each block is reduced before the next one is computed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree, Real

from flowkit._masks import masked_mean


# Entries of a matrix that exist at one time: 1 MB in float32, which a core's cache holds.
_BLOCK_ENTRIES = 2**18


def block_entries() -> int:
    """How many entries of a matrix exist at one time; accelerators need more at once."""
    if jax.default_backend() == "cpu":
        return _BLOCK_ENTRIES
    return 64 * _BLOCK_ENTRIES


def row_blocks(rows: PyTree[Array], width: int) -> PyTree[Array]:
    """Rows `(n, ...)` cut into blocks `(blocks, size, ...)`, for matrices `width` wide.

    The last block is filled up with copies of the last row, masks with `False`.
    """
    num_rows = len(jax.tree.leaves(rows)[0])
    largest = max(1, block_entries() // width)
    # At least two blocks: the compiler unrolls a loop of one, and then computes the
    # matrix again for each of its reductions.
    size = min(-(-num_rows // 2), largest)
    num_blocks = -(-num_rows // size)

    def cut(leaf: Array) -> Array:
        mode = "constant" if leaf.dtype == bool else "edge"
        padding = [(0, num_blocks * size - num_rows)] + [(0, 0)] * (leaf.ndim - 1)
        padded = jnp.pad(leaf, padding, mode=mode)
        return padded.reshape(num_blocks, size, *leaf.shape[1:])

    return jax.tree.map(cut, rows)


def join_blocks(blocks: PyTree[Array], num_rows: int) -> PyTree[Array]:
    """The rows of blocks `(blocks, size, ...)` in one piece, without those filled up."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_rows], blocks
    )


def map_blocks(
    fn: Callable[[Any], Any], rows: PyTree[Array], width: int
) -> PyTree[Array]:
    """`fn` of each block of rows, its results `(size, ...)` joined to `(n, ...)`."""
    num_rows = len(jax.tree.leaves(rows)[0])
    return join_blocks(lax.map(fn, row_blocks(rows, width)), num_rows)


def valid_mean(values: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """The mean over valid entries; NaN if there are none, as the mean of nothing is."""
    return jnp.where(jnp.any(mask), masked_mean(values, mask), jnp.nan)


def safe_sqrt(x: Real[Array, "*shape"]) -> Real[Array, "*shape"]:
    """The square root with derivative zero at zero; NaN passes through."""
    positive = x > 0
    # Selected twice: the derivative of a root at zero is infinite even if not selected.
    root = jnp.sqrt(jnp.where(positive, x, 1))
    return jnp.where(positive, root, jnp.where(jnp.isnan(x), x, 0))
