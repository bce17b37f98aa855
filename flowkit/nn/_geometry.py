"""Neighbours and centres of point clouds. Masked points are never chosen."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowkit._types import AnyArray, Mask, Points
from flowkit.nn._pooling import mean_pool
from flowkit.nn._shapes import zero_masked


def nearest_neighbors(
    points: Points, num: int, mask: Mask | None = None
) -> tuple[Int[Array, "n k"], Bool[Array, "n k"]]:
    """The indices of the `k = max(1, min(num, n - 1))` nearest other points, nearest first, and which are there.

    Where fewer valid points are left than `k`, the last indices mean nothing, and the second array says so.
    """
    points = zero_masked(jnp.asarray(points), mask)
    n = points.shape[0]
    # Around their mean, or a cloud far from the origin would cancel. Full precision, or a GPU would round to TF32.
    points = zero_masked(points - mean_pool(points, mask), mask)
    products = jnp.matmul(points, points.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(points * points, axis=-1)
    excluded = jnp.eye(n, dtype=bool)
    if mask is not None:
        excluded = excluded | ~jnp.asarray(mask)
    closeness = jnp.where(
        excluded, jnp.full_like(products, -jnp.inf), 2 * products - norms
    )
    values, indices = jax.lax.top_k(
        jax.lax.stop_gradient(closeness), max(1, min(num, n - 1))
    )
    return indices, jnp.isfinite(values)


def farthest_points(
    points: Points, num: int, mask: Mask | None = None
) -> Int[Array, " num"]:
    """The indices of `num` valid points, each the farthest from those before it, the first from the mean.

    Distances of equal size are told apart by the coordinates and not by the order of the points. After the last
    different point the first in the order of coordinates is repeated.
    """
    points = jax.lax.stop_gradient(zero_masked(jnp.asarray(points), mask))
    valid = jnp.ones(points.shape[0], bool) if mask is None else jnp.asarray(mask)
    order = order_of_coordinates(points, mask)
    points, valid = points[order], valid[order]
    lowest = jnp.full(points.shape[0], -1, points.dtype)
    farthest = lambda squares: jnp.argmax(jnp.where(valid, squares, lowest))
    squares_to = lambda center: jnp.sum((points - center) ** 2, axis=-1)

    def step(squares, _):
        chosen = farthest(squares)
        return jnp.minimum(squares, squares_to(points[chosen])), chosen

    first = farthest(squares_to(mean_pool(points, valid)))
    _, others = jax.lax.scan(step, squares_to(points[first]), length=num - 1)
    return order[jnp.concatenate([first[None], others])]


def order_of_coordinates(points: Points, mask: Mask | None = None) -> Int[Array, " n"]:
    """What sorts the points by their first coordinate, then by the next, and masked points to the end."""
    points = jax.lax.stop_gradient(zero_masked(jnp.asarray(points), mask))
    last = () if mask is None else (~jnp.asarray(mask),)
    return jnp.lexsort((*points.T[::-1], *last))


def k_means(
    points: Points,
    centers: Float[AnyArray, "k d"],
    *,
    num_steps: int = 5,
    mask: Mask | None = None,
) -> Float[Array, "k d"]:
    """The centres after steps in which each becomes the mean of the valid points that are nearest to it.

    A centre to which no point is nearest stays. **Reference:** Lloyd, Least Squares Quantization in PCM, 1982.
    """
    points = zero_masked(jnp.asarray(points), mask)

    def step(_, centers):
        squares = jnp.sum((points[:, None] - centers) ** 2, axis=-1)
        member = zero_masked(
            jax.nn.one_hot(
                jnp.argmin(squares, axis=1), centers.shape[0], dtype=points.dtype
            ),
            mask,
        )
        sizes = jnp.sum(member, axis=0)[:, None]
        totals = jnp.matmul(member.T, points, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(sizes > 0, totals / jnp.maximum(sizes, 1), centers)

    return jax.lax.fori_loop(0, num_steps, step, jnp.asarray(centers))
