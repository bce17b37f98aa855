"""All distances between two lists of clouds."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, is_traced
from flowkit.metrics._distances import block_entries, check_values


def pairwise(
    distance: Callable[..., Any],
    xs: Float[AnyArray, "a n d"],
    ys: Float[AnyArray, "b m d"] | None = None,
    *,
    mask_xs: Bool[AnyArray, "a n"] | None = None,
    mask_ys: Bool[AnyArray, "b m"] | None = None,
    block_size: int | None = None,
) -> Float[Array, "a b"]:
    """The matrix of `distance(xs[i], ys[j])` between two lists of clouds.

    Without `ys`, the distances within `xs`: those with `i <= j` are computed and mirrored, so `distance` must be
    symmetric, as all in this namespace are. Compiled once per distance and shapes; pass the same function object
    each time, or a `jax.tree_util.Partial(sliced_w2, key=key)`, since a fresh lambda compiles anew.

    **Arguments:**

    - `distance`: `(x, y) -> ()`, also `mask_x=` and `mask_y=` where the masks are given.
    - `xs`, `ys`: clouds of shape `(a, n, d)` and `(b, m, d)`, padded where their sizes differ.
    - `mask_xs`, `mask_ys`: their valid points.
    - `block_size`: how many pairs are worked on together; by default as many as keep the memory at some MB.

    **Returns:** `(a, b)`, rows for `xs`. A distance that is NaN is a `ValueError` that names its pair.
    """
    check_values("xs", xs, mask_xs)
    if ys is None:
        if mask_ys is not None:
            raise ValueError(
                "`mask_ys` was given without `ys`; within one list `mask_xs` counts for both."
            )
        rows, columns = np.triu_indices(len(xs))
    else:
        check_values("ys", ys, mask_ys)
        rows, columns = (i.reshape(-1) for i in np.indices((len(xs), len(ys))))
    width = xs.shape[1] if ys is None else ys.shape[1]
    block = (
        max(1, 4 * block_entries() // (xs.shape[1] * width))
        if block_size is None
        else block_size
    )
    if block < 1:
        raise ValueError(
            f"`block_size` is {block}; at least one pair must be worked on at a time."
        )
    rows, columns = rows.astype(np.int32), columns.astype(np.int32)
    matrix = _pairwise(
        distance, xs, ys, mask_xs, mask_ys, rows, columns, min(block, len(rows))
    )
    _check_matrix(matrix)
    return matrix


def _check_matrix(matrix) -> None:
    if is_traced(matrix):
        return
    bad = np.argwhere(np.isnan(np.asarray(matrix)))
    if len(bad):
        raise ValueError(
            f"`distance` is NaN for {len(bad)} pairs, the first of them {tuple(bad[0].tolist())}; distances by "
            "assignment need as many valid points in one cloud as in the other."
        )


@eqx.filter_jit
def _pairwise(distance, xs, ys, mask_xs, mask_ys, rows, columns, block):
    within = ys is None
    if within:
        ys, mask_ys = xs, mask_xs
    xs = jnp.asarray(xs)
    ys = jnp.asarray(ys, xs.dtype)

    def one(pair):
        i, j = pair
        masks = {}
        if mask_xs is not None:
            masks["mask_x"] = jnp.asarray(mask_xs)[i]
        if mask_ys is not None:
            masks["mask_y"] = jnp.asarray(mask_ys)[j]
        return distance(xs[i], ys[j], **masks)

    values = lax.map(one, (rows, columns), batch_size=block)
    if not within:
        return values.reshape(len(xs), len(ys))
    matrix = jnp.zeros((len(xs), len(xs)), values.dtype)
    return matrix.at[rows, columns].set(values).at[columns, rows].set(values)
