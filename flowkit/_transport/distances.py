"""Squared distances between the rows of two batches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import FloatArray, sum_dtype


# Up to about this many coordinates differences are no slower than a matrix product.
MAX_DIRECT_SIZE = 8


@jax.jit
def squared_costs(x: FloatArray, y: FloatArray) -> Float[Array, "a b"]:
    """$|x_i - y_j|^2$ with each batch moved to mean zero, without gradient.

    Moving a batch changes no optimal permutation, and it keeps the digits of batches that
    are far from the origin or from each other.
    """
    x, y = jax.lax.stop_gradient((flat_rows(x), flat_rows(y)))
    x = x - jnp.mean(x, axis=0, keepdims=True)
    y = y - jnp.mean(y, axis=0, keepdims=True)
    return squared_distances(x, y)


def squared_distances(x: FloatArray, y: FloatArray) -> Float[Array, "a b"]:
    r"""$|x_i - y_j|^2$ between the flattened rows of two batches, in at least float32.

    With few coordinates these are sums of squared differences. With more they are
    $|x_i|^2 + |y_j|^2 - 2 x_i \cdot y_j$ of points moved to the mean of `y`, clipped at
    zero: their error is a few units in the last place of $|x_i|^2$, so the distance of
    two points that nearly coincide is lost.
    """
    x = flat_rows(x)
    y = flat_rows(y)

    if x.shape[1] <= MAX_DIRECT_SIZE:
        # One term per coordinate, which XLA fuses with the reduction that follows:
        # there is no (a, b, d) array.
        total = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)
        for k in range(x.shape[1]):
            total = total + jnp.square(x[:, None, k] - y[None, :, k])
        return total

    center = jnp.mean(y, axis=0, keepdims=True)
    x = x - center
    y = y - center
    # Full precision: some accelerators round float32 products to ten bits.
    inner = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    squares_x = jnp.sum(x**2, axis=1)[:, None]
    squares_y = jnp.sum(y**2, axis=1)[None, :]
    return jnp.maximum(squares_x + squares_y - 2 * inner, 0)


def flat_rows(x: FloatArray) -> Float[Array, "a d"]:
    """One row per example, in at least float32: squares of half-precision data overflow."""
    x = jnp.reshape(jnp.asarray(x), (x.shape[0], -1))
    return x.astype(sum_dtype(x.dtype))
