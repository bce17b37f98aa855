"""The Chamfer distance: from every point to the nearest one of the other cloud, and back."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from flowkit._distances import squared_distances
from flowkit._types import AnyArray, Mask
from flowkit.metrics._inputs import check_pair, fill, prepare_pair
from flowkit.metrics._reductions import (
    block_entries,
    join_blocks,
    map_blocks,
    row_blocks,
    safe_sqrt,
    valid_mean,
)


# Wider matrices are cut into tiles, so that the minima of the columns, which are read and
# written once per block of rows, stay in the cache.
TILE_WIDTH = 2048


def chamfer(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    r"""The squared Chamfer distance of two clouds.

    $$\tfrac1n \sum_i \min_j |x_i - y_j|^2 + \tfrac1m \sum_j \min_i |x_i - y_j|^2.$$

    Distances are computed from differences of coordinates, so near points keep their
    digits in every dimension. The work is `O(n m d)` in bounded memory, with gradients
    too: 100,000 points against 100,000 are possible. Some authors sum, halve, or take
    roots; this is the definition of PointFlow.

    **Arguments:** `x (n, d)` and `y (m, d)`, with optional masks `(n,)` and `(m,)` of the
    valid points. Masked points have no influence, whatever they hold.

    **Returns:** a scalar in the squared unit of the points. A cloud without a valid point
    raises `ValueError`, or gives NaN under a transformation.

    **Reference:** Fan, Su & Guibas, *A Point Set Generation Network* (2017), arXiv
    1612.00603; Yang et al., *PointFlow* (2019), arXiv 1906.12320.
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
    r"""The Chamfer distance of plain distances instead of squared ones.

    $$\tfrac1n \sum_i \min_j |x_i - y_j| + \tfrac1m \sum_j \min_i |x_i - y_j|.$$

    The value has the unit of the points and is less sensitive to outliers. Everything
    else is as in `chamfer`.
    """
    check_pair(x, y, mask_x, mask_y)
    return _chamfer_l1(x, y, mask_x, mask_y)


@eqx.filter_jit
def _chamfer(x, y, mask_x, mask_y):
    x, y, valid_x, valid_y = prepare_pair(x, y, mask_x, mask_y)
    to_y, to_x = _nearest(x, y, mask_x, mask_y)
    return valid_mean(to_y, valid_x) + valid_mean(to_x, valid_y)


@eqx.filter_jit
def _chamfer_l1(x, y, mask_x, mask_y):
    x, y, valid_x, valid_y = prepare_pair(x, y, mask_x, mask_y)
    to_y, to_x = _nearest(x, y, mask_x, mask_y)
    return valid_mean(safe_sqrt(to_y), valid_x) + valid_mean(safe_sqrt(to_x), valid_y)


def _nearest(x, y, mask_x, mask_y):
    """Squared distances of each point to the nearest valid point of the other cloud."""
    # Copies of a valid point change no minimum, so the inner loop needs no masks.
    return _minima(fill(x, mask_x), fill(y, mask_y))


@jax.custom_jvp
def _minima(x, y):
    """`min_j |x_i - y_j|^2` and `min_i |x_i - y_j|^2`, by tiles of the matrix."""
    num_y = len(y)
    if num_y <= TILE_WIDTH:
        return _minima_of_tile(x, y)

    def step(to_y, tile):
        to_tile, to_x = _minima_of_tile(x, tile)
        return jnp.minimum(to_y, to_tile), to_x

    start = jnp.full(len(x), jnp.inf, x.dtype)
    tiles = row_blocks(y, block_entries() // TILE_WIDTH)
    to_y, to_x = lax.scan(step, start, tiles)
    return to_y, join_blocks(to_x, num_y)


def _minima_of_tile(x, y):
    def step(to_x, points):
        squared = squared_distances(points, y)
        return jnp.minimum(to_x, jnp.min(squared, axis=0)), jnp.min(squared, axis=1)

    # Minima of columns are carried from block to block; a block has those of its rows.
    start = jnp.full(len(y), jnp.inf, x.dtype)
    to_x, to_y = lax.scan(step, start, row_blocks(x, len(y)))
    return join_blocks(to_y, len(x)), to_x


@_minima.defjvp
def _minima_jvp(primals, tangents):
    """The derivatives of the distances between nearest points: no matrix is kept."""
    x, y = primals
    dx, dy = tangents
    of_y = _nearest_index(x, y)
    of_x = _nearest_index(y, x)

    to_y = jnp.sum(2 * (x - y[of_y]) * (dx - dy[of_y]), axis=1)
    to_x = jnp.sum(2 * (y - x[of_x]) * (dy - dx[of_x]), axis=1)
    return _minima(x, y), (to_y, to_x)


def _nearest_index(x, y):
    """For each point the nearest one of the other cloud, the first of equally near."""
    x, y = lax.stop_gradient((x, y))
    nearest = lambda points: jnp.argmin(squared_distances(points, y), axis=1)
    return map_blocks(nearest, x, len(y))
