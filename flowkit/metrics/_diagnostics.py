"""Diagnostics of trajectories and of latents, from arrays alone."""

import math
import operator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from flowkit._types import AnyArray, is_traced
from flowkit.metrics._inputs import check_values, working_dtype


def straightness(
    times: Float[AnyArray, " t"], points: Float[AnyArray, " t *shape"]
) -> Float[Array, ""]:
    r"""How far one trajectory is from a straight line at constant speed.

    $$\int_0^1 |(x_1 - x_0) - dx/dt|^2\, dt.$$

    Between the given times the trajectory is taken as straight, so the value increases
    toward the integral as the grid gets finer. Zero means that one Euler step is exact.
    Times over another interval are scaled to [0, 1].

    **Arguments:** increasing `times (t,)` and `points (t, ...)`, at least two. Use
    `jax.vmap` for several trajectories.

    **Reference:** Liu, Gong & Liu, *Flow Straight and Fast* (2023), arXiv 2209.03003.
    """
    if points.shape[0] < 2:
        raise ValueError(
            f"`points` holds {points.shape[0]} times; a trajectory needs at least two."
        )

    check_values("times", times)
    check_values("points", points)
    if not is_traced(times) and not np.all(np.diff(np.asarray(times, float)) > 0):
        raise ValueError(
            "`times` must increase; reverse a trajectory that was integrated backward."
        )

    return _straightness(times, points)


@eqx.filter_jit
def _straightness(times, points):
    dtype = working_dtype(points)
    times = jnp.asarray(times, dtype)
    points = jnp.asarray(points, dtype).reshape(len(points), -1)

    steps = jnp.diff(times) / (times[-1] - times[0])
    velocities = jnp.diff(points, axis=0) / steps[:, None]
    straight = (points[-1] - points[0])[None]
    return jnp.sum(steps * jnp.sum(jnp.square(straight - velocities), axis=1))


class LatentStatistics(NamedTuple):
    """Moments of latents over examples.

    Shapes are `(...)` over all examples, and `(num_classes, ...)` by class.
    """

    mean: Array
    variance: Array
    std: Array
    count: Array


def latent_statistics(
    latents: Float[AnyArray, " b *shape"],
    labels: Integer[AnyArray, " b"] | None = None,
    num_classes: int | None = None,
) -> LatentStatistics:
    """Mean, variance and standard deviation of every entry of the latents.

    **Arguments:**

    - `latents (b, ...)`: one latent per example.
    - `labels (b,)`: classes in `0 .. num_classes - 1`, for moments by class.
    - `num_classes`: the number of classes, given together with `labels`.

    **Returns:** `LatentStatistics(mean, variance, std, count)`. The variance divides by
    the count; a class without examples has NaN moments and count 0.
    """
    check_values("latents", latents)
    if (labels is None) != (num_classes is None):
        raise ValueError(
            "`labels` and `num_classes` belong together: give both or neither."
        )

    if labels is None or num_classes is None:
        one_class = _statistics(latents, np.zeros(len(latents), np.int32), 1)
        return jax.tree.map(lambda a: a[0], one_class)
    num_classes = operator.index(num_classes)
    if not is_traced(labels) and (np.min(labels) < 0 or np.max(labels) >= num_classes):
        raise ValueError(
            f"`labels` run from {np.min(labels)} to {np.max(labels)}, outside "
            f"0 .. {num_classes - 1}."
        )

    return _statistics(latents, labels, num_classes)


@eqx.filter_jit
def _statistics(latents, labels, num_classes):
    latents = jnp.asarray(latents, working_dtype(latents))
    labels = jnp.asarray(labels)
    num_blocks = math.isqrt(len(labels))
    blocks = jnp.arange(len(labels)) % num_blocks

    def total(values):
        # One after another, a million small terms lose their digits in a large sum.
        shape = (num_blocks, num_classes, *values.shape[1:])
        sums = jnp.zeros(shape, values.dtype).at[blocks, labels].add(values)
        return jnp.sum(sums, axis=0)

    count = total(jnp.ones(len(labels), int))
    # Zero for a class without examples, whose moments are then 0/0, NaN.
    divisor = count.reshape(-1, *[1] * (latents.ndim - 1)).astype(latents.dtype)
    # In two passes: a difference of mean squares would cancel for latents far from zero.
    mean = total(latents) / divisor
    variance = total(jnp.square(latents - mean[labels])) / divisor
    return LatentStatistics(mean, variance, jnp.sqrt(variance), count)
