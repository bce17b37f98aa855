"""Squared distances between two batches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import FloatArray


@jax.jit
def squared_costs(x: FloatArray, y: FloatArray) -> Float[Array, "a b"]:
    """$|x_i - y_j|^2$ between the flattened rows of two batches, each moved to mean zero, without gradient.

    Moving a batch changes no optimal permutation, and keeps the products of far-away batches exact.
    """
    x, y = (jnp.reshape(z, (z.shape[0], -1)) for z in (x, y))
    return squared_distances(x - jnp.mean(x, axis=0), y - jnp.mean(y, axis=0))


def squared_distances(x: FloatArray, y: FloatArray) -> Float[Array, "a b"]:
    """$|x_i - y_j|^2$ between the flattened rows of two batches, without gradient."""
    x, y = (jax.lax.stop_gradient(jnp.reshape(z, (z.shape[0], -1))) for z in (x, y))
    inner = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(x**2, axis=-1)[:, None] + jnp.sum(y**2, axis=-1) - 2 * inner
