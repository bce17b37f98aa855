"""The Chamfer distance."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, Mask
from flowkit.metrics._distances import check_pair, masked_mean, prepare_pair, row_blocks, safe_sqrt, squared_distances


def chamfer(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    """The squared Chamfer distance, `mean_i min_j |x_i - y_j|^2 + mean_j min_i |x_i - y_j|^2`.

    Clouds may differ in size; `O(n m)` work in bounded memory, so that 100,000 points against 100,000 pass.
    Differentiable. Some authors sum, halve or take roots; this is the definition of PointFlow.

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
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    to_y, to_x = _nearest(x, y, mask_x, mask_y)
    return masked_mean(to_y, mask_x) + masked_mean(to_x, mask_y)


@eqx.filter_jit
def _chamfer_l1(x, y, mask_x, mask_y):
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    to_y, to_x = _nearest(x, y, mask_x, mask_y)
    return masked_mean(safe_sqrt(to_y), mask_x) + masked_mean(safe_sqrt(to_x), mask_y)


def _nearest(x, y, mask_x, mask_y):
    """Squared distances of each point to the nearest valid point of the other cloud."""
    far_y = jnp.where(mask_y, 0, jnp.inf).astype(x.dtype)

    def step(to_x, rows):
        points, mask = rows
        squared = squared_distances(points, y)
        far = jnp.where(mask, 0, jnp.inf).astype(x.dtype)
        return jnp.minimum(to_x, jnp.min(squared + far[:, None], 0)), jnp.min(squared + far_y, 1)

    initial = jnp.full(y.shape[0], jnp.inf, x.dtype)
    to_x, to_y = lax.scan(step, initial, row_blocks(x, mask_x, y.shape[0]))
    return to_y.reshape(-1)[: x.shape[0]], to_x
