"""Neighbors and centers of point clouds. Masked points are never chosen.

Squared distances are sums of squared differences, never `|x|^2 + |y|^2 - 2 x . y`: that
sum loses all digits of distances that are small next to the spread of the cloud, so
within two tight groups, rounding errors would decide which neighbors are nearest.
"""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowkit._distances import squared_distances
from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Mask, Points
from flowkit.nn._layers.arrays import in_sum_dtype
from flowkit.nn._sets.pooling import mean_pool


def nearest_neighbors(
    points: Points, num: int, mask: Mask | None = None
) -> tuple[Int[Array, "n k"], Bool[Array, "n k"]]:
    """The nearest other points of each point, and which of them are there.

    **Returns:** the indices of the `k = max(1, min(num, n - 1))` nearest points, nearest
    first, and a mask. If fewer than `k` valid points are left, the last indices mean
    nothing, and the mask says so.
    """
    points = jax.lax.stop_gradient(zero_masked(in_sum_dtype(points), mask))
    n = points.shape[0]
    excluded = jnp.eye(n, dtype=bool)
    if mask is not None:
        excluded = excluded | ~jnp.asarray(mask)[None, :]

    squares = squared_distances(points, points)
    return _smallest(squares, excluded, max(1, min(num, n - 1)))


def nearest_points(
    queries: Float[AnyArray, "m d"], points: Points, num: int, mask: Mask | None = None
) -> tuple[Int[Array, "m num"], Bool[Array, "m num"]]:
    """The `num` points nearest to each query, nearest first, and which are there.

    Ties, which are common on a grid, are broken by the coordinates, not by the order of
    the points. There must be at least `num` points, masked or not.
    """
    order = order_of_coordinates(points, mask)
    valid = jnp.ones(order.shape, bool) if mask is None else jnp.asarray(mask)
    points = in_sum_dtype(zero_masked(points, mask)[order])
    queries = in_sum_dtype(queries)

    squares = jax.lax.stop_gradient(squared_distances(queries, points))
    # Of equal distances, the first in the order of coordinates is taken.
    indices, there = _smallest(squares, ~valid[order][None, :], num)
    return order[indices], there


def _smallest(
    squares: Float[Array, "m n"], excluded: Bool[Array, "_ n"], num: int
) -> tuple[Int[Array, "m k"], Bool[Array, "m k"]]:
    closeness = jnp.where(excluded, -jnp.inf, -squares)
    values, indices = jax.lax.top_k(closeness, num)
    return indices, jnp.isfinite(values)


def farthest_points(
    points: Points, num: int, mask: Mask | None = None
) -> Int[Array, " num"]:
    """The indices of `num` valid points, each the farthest from those before it.

    The first is the farthest from the mean. Equal distances are told apart by the
    coordinates, not by the order of the points. After the last distinct point the first
    in the order of coordinates is repeated.
    """
    return _farthest_points(points, operator.index(num), mask)


# An eager loop over a new function would be compiled in every call. Inlined, it is the
# same as before in compiled programs, to the last digit.
@eqx.filter_jit(inline=True)  # pyright: ignore
def _farthest_points(points: Points, num: int, mask: Mask | None) -> Int[Array, " num"]:
    points = jax.lax.stop_gradient(zero_masked(in_sum_dtype(points), mask))
    valid = jnp.ones(points.shape[0], bool) if mask is None else jnp.asarray(mask)
    order = order_of_coordinates(points, mask)
    points = points[order]
    valid = valid[order]

    def squares_to(center: Float[Array, " d"]) -> Float[Array, " n"]:
        return jnp.sum((points - center[None]) ** 2, axis=-1)

    def farthest(squares: Float[Array, " n"]) -> Int[Array, ""]:
        # -1 is below every square, so that no masked point is chosen.
        return jnp.argmax(jnp.where(valid, squares, -1))

    def step(squares: Float[Array, " n"], _: None):
        chosen = farthest(squares)
        return jnp.minimum(squares, squares_to(points[chosen])), chosen

    first = farthest(squares_to(mean_pool(points, valid)))
    _, others = jax.lax.scan(step, squares_to(points[first]), length=num - 1)
    return order[jnp.concatenate([first[None], others])]


def order_of_coordinates(points: Points, mask: Mask | None = None) -> Int[Array, " n"]:
    """The order of the points by their coordinates, with masked points at the end.

    The first coordinate counts first, then the second, and so on.
    """
    points = jax.lax.stop_gradient(zero_masked(jnp.asarray(points), mask))
    keys = list(points.T[::-1])
    if mask is not None:
        keys.append(~jnp.asarray(mask))
    # `lexsort` sorts by its last key first.
    return jnp.lexsort(tuple(keys))


def k_means(
    points: Points,
    centers: Float[AnyArray, "k d"],
    *,
    num_steps: int = 5,
    mask: Mask | None = None,
) -> Float[Array, "k d"]:
    """The centers after some steps of Lloyd's algorithm.

    In each step a center becomes the mean of the valid points that are nearest to it. A
    center that is not nearest to any point stays where it is.

    **Reference:** Lloyd, Least Squares Quantization in PCM, 1982.
    """
    return _k_means(points, centers, operator.index(num_steps), mask)


@eqx.filter_jit(inline=True)  # pyright: ignore
def _k_means(
    points: Points, centers: Float[AnyArray, "k d"], num_steps: int, mask: Mask | None
) -> Float[Array, "k d"]:
    dtype = jnp.asarray(points).dtype
    points = zero_masked(in_sum_dtype(points), mask)

    def step(_: Int[Array, ""], centers: Float[Array, "k d"]) -> Float[Array, "k d"]:
        nearest = jnp.argmin(squared_distances(points, centers), axis=1)
        member = jax.nn.one_hot(nearest, centers.shape[0], dtype=points.dtype)
        member = zero_masked(member, mask)

        sizes = jnp.sum(member, axis=0)[:, None]
        totals = jnp.matmul(member.T, points, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(sizes > 0, totals / jnp.maximum(sizes, 1), centers)

    start = jnp.asarray(centers, points.dtype)
    return jax.lax.fori_loop(0, num_steps, step, start).astype(dtype)
