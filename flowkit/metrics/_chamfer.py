"""The Chamfer distance."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, Mask
from flowkit.metrics._distances import (
    block_entries,
    check_pair,
    fill,
    masked_mean,
    prepare_pair,
    row_blocks,
    safe_sqrt,
    squared_distances,
)


# Wider matrices are cut, so that the minima of columns, which are gone through for every block, stay small.
TILE_WIDTH = 2048


def chamfer(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    """The squared Chamfer distance, `mean_i min_j |x_i - y_j|^2 + mean_j min_i |x_i - y_j|^2`.

    Clouds may differ in size; `O(n m)` work in bounded memory, so that 100,000 points against 100,000 pass, and so
    does the gradient. Some authors sum, halve or take roots; this is the definition of PointFlow.

    **Arguments:** `x (n, d)`, `y (m, d)` with optional masks `(n,)`, `(m,)` of the valid points, whose
    complement has no influence at all.

    **Returns:** a scalar in the squared unit of the points. A cloud with no valid point is a `ValueError`, or
    NaN under a transformation.

    **Reference:** Fan, Su & Guibas, *A Point Set Generation Network* (2017), arXiv 1612.00603; Yang et al.,
    *PointFlow* (2019), arXiv 1906.12320.
    """
    check_pair(x, y, mask_x, mask_y)
    return _chamfer(x, y, mask_x, mask_y)


def chamfer_l1(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    """The Chamfer distance of plain, not squared, distances: `mean_i min_j |x_i - y_j| + mean_j min_i |x_i - y_j|`.

    As `chamfer` otherwise, in the unit of the points and less sensitive to outliers.
    """
    check_pair(x, y, mask_x, mask_y)
    return _chamfer_l1(x, y, mask_x, mask_y)


@eqx.filter_jit
def _chamfer(x, y, mask_x, mask_y):
    x, y, valid_x, valid_y = prepare_pair(x, y, mask_x, mask_y)
    to_y, to_x = _nearest(x, y, mask_x, mask_y)
    return masked_mean(to_y, valid_x) + masked_mean(to_x, valid_y)


@eqx.filter_jit
def _chamfer_l1(x, y, mask_x, mask_y):
    x, y, valid_x, valid_y = prepare_pair(x, y, mask_x, mask_y)
    to_y, to_x = _nearest(x, y, mask_x, mask_y)
    return masked_mean(safe_sqrt(to_y), valid_x) + masked_mean(safe_sqrt(to_x), valid_y)


def _nearest(x, y, mask_x, mask_y):
    """Squared distances of each point to the nearest valid point of the other cloud."""
    # Copies of a valid point change no minimum, so that the inner loop needs no masks.
    return _minima(fill(x, mask_x), fill(y, mask_y))


@jax.custom_jvp
def _minima(x, y):
    """`min_j |x_i - y_j|^2` and `min_i |x_i - y_j|^2`, by tiles of the matrix."""
    if y.shape[0] <= TILE_WIDTH:
        return _minima_of_tile(x, y)

    def step(to_y, tile):
        to_tile, to_x = _minima_of_tile(x, tile)
        return jnp.minimum(to_y, to_tile), to_x

    tiles, _ = row_blocks(y, None, block_entries() // TILE_WIDTH)
    to_y, to_x = lax.scan(step, jnp.full(x.shape[0], jnp.inf, x.dtype), tiles)
    return to_y, to_x.reshape(-1)[: y.shape[0]]


def _minima_of_tile(x, y):
    def step(to_x, points):
        squared = squared_distances(points, y)
        return jnp.minimum(to_x, jnp.min(squared, 0)), jnp.min(squared, 1)

    blocks, _ = row_blocks(x, None, y.shape[0])
    to_x, to_y = lax.scan(step, jnp.full(y.shape[0], jnp.inf, x.dtype), blocks)
    return to_y.reshape(-1)[: x.shape[0]], to_x


@_minima.defjvp
def _minima_jvp(primals, tangents):
    """Derivatives of the distances to the points that are nearest: no block of distances is kept for them."""
    (x, y), (dx, dy) = primals, tangents
    nearest_y, nearest_x = _nearest_index(x, y), _nearest_index(y, x)
    to_y = jnp.sum(2 * (x - y[nearest_y]) * (dx - dy[nearest_y]), 1)
    to_x = jnp.sum(2 * (y - x[nearest_x]) * (dy - dx[nearest_x]), 1)
    return _minima(x, y), (to_y, to_x)


def _nearest_index(x, y):
    """For each point the nearest one of the other cloud; of equally near ones the first."""
    x, y = lax.stop_gradient(x), lax.stop_gradient(y)
    blocks, _ = row_blocks(x, None, y.shape[0])
    index = lax.map(lambda points: jnp.argmin(squared_distances(points, y), 1), blocks)
    return index.reshape(-1)[: x.shape[0]]
