r"""Squared distances between the rows of two arrays, exact or by a matrix product.

A sum of squared differences is exact to rounding, however near two points are. The form
$|x|^2 + |y|^2 - 2 x \cdot y$ is several times faster in many dimensions, but it errs by
some units in the last place of $|x|^2$: good enough for the costs of a coupling, wrong
for the distance of points that nearly coincide.
"""

import functools as ft

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import FloatArray, sum_dtype


# Coordinates whose differences are added up in one loop over the pairs. Up to this number,
# differences are about as fast as a matrix product.
_GROUP = 16


@jax.jit
def squared_costs(x: FloatArray, y: FloatArray) -> Float[Array, "a b"]:
    """$|x_i - y_j|^2$ with each batch moved to mean zero, without gradient.

    Moving a batch changes no optimal permutation, and it keeps the digits of batches that
    are far from the origin or from each other.
    """
    x, y = jax.lax.stop_gradient((flat_rows(x), flat_rows(y)))
    x = x - jnp.mean(x, axis=0, keepdims=True)
    y = y - jnp.mean(y, axis=0, keepdims=True)
    if x.shape[1] <= _GROUP:
        return squared_distances(x, y)

    # Full precision: some accelerators round float32 products to ten bits.
    inner = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    squares_x = jnp.sum(x**2, axis=1)[:, None]
    squares_y = jnp.sum(y**2, axis=1)[None, :]
    return jnp.maximum(squares_x + squares_y - 2 * inner, 0)


# Inlined, it is the same as before in compiled programs, to the last digit.
@ft.partial(jax.jit, inline=True)
def squared_distances(x: FloatArray, y: FloatArray) -> Float[Array, "a b"]:
    r"""$|x_i - y_j|^2$ between the flattened rows of two batches, in at least float32.

    Sums of squared differences in every dimension, so that near points keep all digits.
    No array `(a, b, d)` exists, neither here nor in the backward pass.
    """
    # Coordinates first: the loop over pairs then reads consecutive numbers.
    x = flat_rows(x).T
    y = flat_rows(y).T
    if len(x) <= _GROUP:
        return _sum_of_squares(x, y)

    # The backward pass would otherwise keep the differences in every coordinate.
    sum_of_squares = jax.checkpoint(_sum_of_squares)

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        return total + sum_of_squares(*group), None

    zeros = jnp.zeros((x.shape[1], y.shape[1]), x.dtype)
    total, _ = jax.lax.scan(add, zeros, (_in_groups(x), _in_groups(y)))
    return total


def _in_groups(x: Float[Array, "d n"]) -> Float[Array, "groups size n"]:
    """The coordinates in groups; zeros fill up the last one."""
    padded = jnp.pad(x, ((0, -len(x) % _GROUP), (0, 0)))
    return padded.reshape(-1, _GROUP, x.shape[1])


def _sum_of_squares(
    x: Float[Array, "d a"], y: Float[Array, "d b"]
) -> Float[Array, "a b"]:
    # One term per coordinate, which the compiler fuses into a single loop.
    total = jnp.zeros((x.shape[1], y.shape[1]), x.dtype)
    for k in range(len(x)):
        total = total + jnp.square(x[k, :, None] - y[k, None, :])
    return total


def flat_rows(x: FloatArray) -> Float[Array, "a d"]:
    """One row per example, in at least float32: squares of half-precision data overflow."""
    x = jnp.reshape(jnp.asarray(x), (x.shape[0], -1))
    return x.astype(sum_dtype(x.dtype))
