"""All distances between two lists of clouds."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from flowkit._devices import (
    check_axes,
    divided,
    Division,
    over_devices,
    with_auto_axes,
)
from flowkit._types import AnyArray, is_traced
from flowkit.metrics._inputs import check_values, working_dtype
from flowkit.metrics._reductions import block_entries


def pairwise(
    distance: Callable[..., Any],
    xs: Float[AnyArray, "a n d"],
    ys: Float[AnyArray, "b m d"] | None = None,
    *,
    mask_xs: Bool[AnyArray, "a n"] | None = None,
    mask_ys: Bool[AnyArray, "b m"] | None = None,
    block_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "a b"]:
    """The matrix of `distance(xs[i], ys[j])` between two lists of clouds.

    Without `ys` these are the distances within `xs`: those with `i <= j` are computed and
    mirrored, so `distance` must be symmetric, as all in this namespace are. The program is
    compiled once per distance and shapes. Give the same function object each time, or a
    `jax.tree_util.Partial(sliced_w2, key=key)`, since a new lambda is compiled again.

    **Arguments:**

    - `distance`: `(x, y) -> ()`, also with `mask_x=` and `mask_y=` if masks are given.
    - `xs`, `ys`: clouds of shape `(a, n, d)` and `(b, m, d)`, padded if sizes differ.
    - `mask_xs`, `mask_ys`: their valid points.
    - `block_size`: the number of pairs that are computed together. By default, as many as
      fit into a few MB of memory.
    - `mesh`: devices with the axis `"data"`, such as those of `fk.training.data_mesh`;
      each computes its share of the pairs. The number of clouds is arbitrary, and the
      clouds may be spread over the devices of several processes.

    **Returns:** `(a, b)`, rows for `xs`, whole on every device. A distance that is NaN
    raises a `ValueError` that names its pair.
    """
    check_values("xs", xs, mask_xs)
    if ys is not None:
        check_values("ys", ys, mask_ys)
    elif mask_ys is not None:
        raise ValueError(
            "`mask_ys` was given without `ys`; within one list `mask_xs` is used for both."
        )
    return matrix_of(
        distance,
        xs,
        ys,
        mask_xs=mask_xs,
        mask_ys=mask_ys,
        block_size=block_size,
        mesh=mesh,
    )


def matrix_of(
    distance: Callable[..., Any],
    xs: AnyArray,
    ys: AnyArray | None = None,
    *,
    mask_xs: AnyArray | None = None,
    mask_ys: AnyArray | None = None,
    block_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "a b"]:
    """`pairwise` for clouds that the caller has checked, under its own argument names."""
    if ys is None:
        rows, columns = np.triu_indices(len(xs))
    else:
        rows, columns = np.indices((len(xs), len(ys))).reshape(2, -1)

    width = (xs if ys is None else ys).shape[1]
    fitting = max(1, 4 * block_entries() // (xs.shape[1] * width))
    size = fitting if block_size is None else int(block_size)
    if size < 1:
        raise ValueError(
            f"`block_size` is {block_size}; at least one pair must be computed at a time."
        )

    pairs = np.stack([rows, columns], axis=1).astype(np.int32)
    if mesh is not None:
        check_axes(mesh)
        mesh = with_auto_axes(mesh)
        # Each device gets the same number: the last pair is repeated as padding.
        pairs = np.pad(pairs, ((0, -len(pairs) % mesh.size), (0, 0)), mode="edge")
    size = min(size, len(pairs))
    matrix = _pairwise(distance, xs, ys, mask_xs, mask_ys, pairs, size, mesh)
    _check_matrix(matrix)
    return matrix


def _check_matrix(matrix) -> None:
    if is_traced(matrix):
        return

    bad = np.argwhere(np.isnan(np.asarray(matrix)))
    if len(bad):
        raise ValueError(
            f"`distance` is NaN for {len(bad)} pairs, the first of them "
            f"{tuple(bad[0].tolist())}; distances by assignment need as many valid points "
            "in one cloud as in the other."
        )


def _number(value: Any) -> Array:
    if eqx.is_array_like(value) and jnp.ndim(value) == 0:
        return jnp.asarray(value)
    raise ValueError(
        "`distance` must return one number for two clouds, such as "
        f"`lambda x, y: emd_bounds(x, y).upper`; got {type(value).__name__}."
    )


@eqx.filter_jit
def _pairwise(distance, xs, ys, mask_xs, mask_ys, pairs, block_size, mesh):
    within = ys is None
    if within:
        ys = xs
        mask_ys = mask_xs
    dtype = working_dtype(xs)
    shape = (len(xs), len(ys))
    xs = jnp.asarray(xs, dtype)
    ys = jnp.asarray(ys, dtype)

    def of_pairs(shared, pairs):
        one = lambda pair: _of_pair(shared, pair)
        return lax.map(one, pairs, batch_size=block_size)

    shared = (distance, xs, ys, mask_xs, mask_ys)
    if mesh is None:
        values = of_pairs(shared, pairs)
    else:
        with divided(Division(mesh.size, mesh)):
            values = over_devices(of_pairs, shared, pairs)
        whole = NamedSharding(mesh, PartitionSpec())
        values = lax.with_sharding_constraint(values, whole)

    # Pairs that fill up the shares of the devices are written again, with the same
    # value.
    i, j = pairs.T
    matrix = jnp.zeros(shape, values.dtype).at[i, j].set(values)
    return matrix.at[j, i].set(values) if within else matrix


def _of_pair(shared, pair):
    distance, xs, ys, mask_xs, mask_ys = shared
    i, j = pair
    masks = {}
    if mask_xs is not None:
        masks["mask_x"] = jnp.asarray(mask_xs)[i]
    if mask_ys is not None:
        masks["mask_y"] = jnp.asarray(mask_ys)[j]
    return _number(distance(xs[i], ys[j], **masks))
