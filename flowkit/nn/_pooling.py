"""Reductions of a set of features `(n, c)` to one vector.

A pooling is any function `(features, mask=None) -> vector`. Masked rows have no influence, and a set without a valid
row gives zeros.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, Mask
from flowkit.nn._shapes import zero_masked


def max_pool(
    features: Float[AnyArray, "n c"], mask: Mask | None = None
) -> Float[Array, " c"]:
    """The largest value of every feature over the valid rows."""
    features = jnp.asarray(features)
    if mask is None:
        return jnp.max(features, axis=0)
    lowest = jnp.full_like(features, -jnp.inf)
    largest = jnp.max(jnp.where(jnp.asarray(mask)[:, None], features, lowest), axis=0)
    return jnp.where(jnp.any(jnp.asarray(mask)), largest, jnp.zeros_like(largest))


def mean_pool(
    features: Float[AnyArray, "n c"], mask: Mask | None = None
) -> Float[Array, " c"]:
    """The mean of every feature over the valid rows."""
    features = jnp.asarray(features)
    if mask is None:
        return jnp.mean(features, axis=0)
    total = jnp.sum(zero_masked(features, mask), axis=0)
    return total / jnp.maximum(jnp.sum(jnp.asarray(mask)), 1).astype(total.dtype)


def max_mean_pool(
    features: Float[AnyArray, "n c"], mask: Mask | None = None
) -> Float[Array, " c2"]:
    """The largest values and the means side by side, twice as wide: what is there, and how much of it."""
    return jnp.concatenate([max_pool(features, mask), mean_pool(features, mask)])
