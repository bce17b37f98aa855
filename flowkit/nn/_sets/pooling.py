"""Reductions of a set of features `(n, c)` to one vector.

A pooling is any function `(features, mask=None) -> vector`. Masked rows have no
influence. A set without a valid row gives zeros here and in `AttentionPool`; `PMA` and
`Set2Set` give a vector that depends on their weights alone.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Mask
from flowkit.nn._layers.arrays import in_sum_dtype


def max_pool(
    features: Float[AnyArray, "n c"], mask: Mask | None = None
) -> Float[Array, " c"]:
    """The largest value of every feature over the valid rows."""
    features = jnp.asarray(features)
    if mask is None:
        return jnp.max(features, axis=0)

    # Features may be negative, so that a masked row must not count as zero.
    valid = jnp.asarray(mask)
    largest = jnp.max(jnp.where(valid[:, None], features, -jnp.inf), axis=0)
    return jnp.where(jnp.any(valid), largest, 0)


def mean_pool(
    features: Float[AnyArray, "n c"], mask: Mask | None = None
) -> Float[Array, " c"]:
    """The mean of every feature over the valid rows."""
    features = jnp.asarray(features)
    rows = in_sum_dtype(features)
    if mask is None:
        return jnp.mean(rows, axis=0).astype(features.dtype)

    # A count of at least 1 makes the mean of an empty set zero instead of NaN.
    total = jnp.sum(zero_masked(rows, mask), axis=0)
    count = jnp.maximum(jnp.sum(jnp.asarray(mask)), 1)
    return (total / count.astype(total.dtype)).astype(features.dtype)


def max_mean_pool(
    features: Float[AnyArray, "n c"], mask: Mask | None = None
) -> Float[Array, " c2"]:
    """The largest values and the means, concatenated: twice as wide as the features.

    The largest values say what is there, and the means how much of it.
    """
    return jnp.concatenate([max_pool(features, mask), mean_pool(features, mask)])
