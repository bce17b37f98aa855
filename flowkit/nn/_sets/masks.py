"""Which rows of a set are there.

The content of a masked row has no influence on values and gradients. Encoders return
rows of zeros where there is no latent, and networks ignore such rows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Mask, Points


def valid_points(
    points: Points, mask: Mask | None, in_size: int
) -> Float[Array, "n d"]:
    """The cloud with its masked rows set to zero.

    Raises a `ValueError` if the points do not have `in_size` coordinates.
    """
    if points.shape[-1] != in_size:
        raise ValueError(
            f"`points` have {points.shape[-1]} coordinates, but the network was built "
            f"with in_size={in_size}."
        )
    return zero_masked(jnp.asarray(points), mask)


def nonzero_rows(latents: Float[AnyArray, "k c"]) -> Bool[Array, " k"]:
    """Which latents are there."""
    return jnp.any(jnp.asarray(latents) != 0, axis=-1)


def masked_softmax(
    scores: Float[Array, "*leading n"], mask: Bool[AnyArray, " n"] | None
) -> Float[Array, "*leading n"]:
    """The softmax over the valid entries of the last axis; zeros if there are none."""
    if mask is None:
        return jax.nn.softmax(scores, axis=-1)

    valid = jnp.broadcast_to(jnp.asarray(mask), scores.shape)
    # The lowest finite number instead of -inf: a softmax over -inf alone is NaN, and so
    # is its gradient, even where it is not selected.
    lowest = jnp.finfo(scores.dtype).min
    weights = jax.nn.softmax(jnp.where(valid, scores, lowest), axis=-1)
    return jnp.where(valid, weights, 0)
