"""The energy distance."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, Mask
from flowkit.metrics._distances import (
    check_pair,
    prepare_pair,
    row_blocks,
    safe_sqrt,
    squared_distances,
)


def energy_distance(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    """The energy distance `sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|)` between two empirical distributions.

    Expectations run over all pairs of points, a point with itself included, so the value is a metric: never
    negative, and zero only for equal distributions. In one dimension it is `scipy.stats.energy_distance`.
    It needs no bandwidth and no assignment; sizes may differ; memory is bounded.

    **Arguments:** `x (n, d)`, `y (m, d)` with optional masks `(n,)`, `(m,)` of the valid points.

    **Reference:** Szekely & Rizzo, *Energy statistics: a class of statistics based on distances* (2013).
    """
    check_pair(x, y, mask_x, mask_y)
    return _energy_distance(x, y, mask_x, mask_y)


@eqx.filter_jit
def _energy_distance(x, y, mask_x, mask_y):
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    between = _mean_distance(x, y, mask_x, mask_y)
    within = sum(
        _mean_distance(z, z, mask, mask, within=True)
        for z, mask in ((x, mask_x), (y, mask_y))
    )
    squared = 2 * between - within
    return safe_sqrt(jnp.where(squared < 0, 0, squared))


def _mean_distance(x, y, mask_x, mask_y, *, within=False):
    """The mean of `|x_i - y_j|` over valid pairs, each row averaged first to keep float32 sums short."""
    count = jnp.sum(mask_y, dtype=x.dtype)

    def step(carry, rows):
        total, start = carry
        points, mask = rows
        valid = mask[:, None] & mask_y
        if within:  # a point is at distance zero from itself, whatever the rounding
            valid &= (start + jnp.arange(len(points)))[:, None] != jnp.arange(len(y))
        distances = jnp.where(valid, safe_sqrt(squared_distances(points, y)), 0)
        return (
            total + jnp.sum(jnp.sum(distances, 1) / count),
            start + len(points),
        ), None

    (total, _), _ = lax.scan(
        step, (jnp.zeros((), x.dtype), 0), row_blocks(x, mask_x, y.shape[0])
    )
    return total / jnp.sum(mask_x, dtype=x.dtype)
