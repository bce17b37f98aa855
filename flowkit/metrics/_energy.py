"""The energy distance of two sets of points."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._distances import squared_distances
from flowkit._types import AnyArray, Mask
from flowkit.metrics._inputs import check_pair, prepare_pair
from flowkit.metrics._reductions import map_blocks, safe_sqrt, valid_mean


def energy_distance(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    r"""The energy distance between two empirical distributions.

    $$\sqrt{2\, E|X - Y| - E|X - X'| - E|Y - Y'|},$$

    with expectations over all pairs of points, a point with itself included. The value is
    a metric: never negative, and zero only for equal distributions. In one dimension it
    is `scipy.stats.energy_distance`. It needs no bandwidth and no assignment, the sizes
    may differ, and the memory is bounded, with gradients too.

    **Arguments:** `x (n, d)` and `y (m, d)`, with optional masks `(n,)` and `(m,)` of the
    valid points.

    **Reference:** Szekely & Rizzo, *Energy statistics: a class of statistics based on
    distances* (2013).
    """
    check_pair(x, y, mask_x, mask_y)
    return _energy_distance(x, y, mask_x, mask_y)


@eqx.filter_jit
def _energy_distance(x, y, mask_x, mask_y):
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)

    # For near distributions the three expectations nearly cancel. Subtracted point by
    # point, before the last mean, they leave a rounding error as small as their difference.
    excess_x = _mean_distances(x, y, mask_y) - _mean_distances(x, x, mask_x)
    excess_y = _mean_distances(y, x, mask_x) - _mean_distances(y, y, mask_y)
    squared = valid_mean(excess_x, mask_x) + valid_mean(excess_y, mask_y)
    return safe_sqrt(jnp.where(squared < 0, 0, squared))


def _mean_distances(x, y, mask_y):
    """The mean distance of each point of `x` to the valid points of `y`."""
    count = jnp.sum(mask_y, dtype=x.dtype)

    # Recomputed in the backward pass, which would keep all distances otherwise.
    @jax.checkpoint
    def means(points):
        distances = safe_sqrt(squared_distances(points, y))
        return jnp.sum(jnp.where(mask_y[None], distances, 0), axis=1) / count

    return map_blocks(means, x, len(y))
