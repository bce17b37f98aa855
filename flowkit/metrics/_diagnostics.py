"""Diagnostics of trajectories and of latents, from arrays alone."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowkit._types import AnyArray, is_traced
from flowkit.metrics._distances import check_values


def straightness(
    times: Float[AnyArray, " t"], points: Float[AnyArray, " t *shape"]
) -> Float[Array, ""]:
    """How far one trajectory is from a straight line at constant speed: `int |(x_1 - x_0) - dx/dt|^2 dt`.

    Between the given times the trajectory is taken as straight, so the value grows to the integral as the grid
    gets finer. Zero means that one Euler step is exact. Other ranges of time are scaled to [0, 1].

    **Arguments:** increasing `times (t,)` and `points (t, ...)`, at least two; `jax.vmap` for several.

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
            "`times` must increase; reverse a trajectory that was integrated backwards."
        )
    return _straightness(times, points)


@eqx.filter_jit
def _straightness(times, points):
    points = jnp.asarray(points)
    times = jnp.asarray(times, points.dtype)
    points = points.reshape(points.shape[0], -1)
    steps = jnp.diff(times) / (times[-1] - times[0])
    deviation = (points[-1] - points[0]) - jnp.diff(points, axis=0) / steps[:, None]
    return jnp.sum(steps * jnp.sum(jnp.square(deviation), 1))


class LatentStatistics(NamedTuple):
    """Moments of latents over examples: shape `(...)` overall, `(num_classes, ...)` by class."""

    mean: Array
    variance: Array
    std: Array
    count: Array


def latent_statistics(
    latents: Float[AnyArray, " b *shape"],
    labels: Int[AnyArray, " b"] | None = None,
    num_classes: int | None = None,
) -> LatentStatistics:
    """Mean, variance and standard deviation of every latent entry, over all examples or within each class.

    **Arguments:** `latents (b, ...)`; `labels (b,)` in `0 .. num_classes - 1` for moments by class.

    **Returns:** `LatentStatistics(mean, variance, std, count)`; the variance divides by the count; a class with no
    example has NaN moments and count 0.
    """
    check_values("latents", latents)
    if (labels is None) != (num_classes is None):
        raise ValueError(
            "`labels` and `num_classes` belong together: give both or neither."
        )
    if labels is None or num_classes is None:
        labels, num_classes = np.zeros(len(latents), np.int32), 1
        return jax.tree.map(lambda a: a[0], _statistics(latents, labels, num_classes))
    if not is_traced(labels) and (np.min(labels) < 0 or np.max(labels) >= num_classes):
        raise ValueError(
            f"`labels` run from {np.min(labels)} to {np.max(labels)}, outside 0 .. {num_classes - 1}."
        )
    return _statistics(latents, labels, num_classes)


@eqx.filter_jit
def _statistics(latents, labels, num_classes):
    latents, labels = jnp.asarray(latents), jnp.asarray(labels)
    total = lambda a: jax.ops.segment_sum(a, labels, num_classes)
    count = total(jnp.ones(len(labels), latents.dtype))
    divisor = count.reshape(-1, *[1] * (latents.ndim - 1))
    mean = total(latents) / divisor
    variance = total(jnp.square(latents - mean[labels])) / divisor
    return LatentStatistics(mean, variance, jnp.sqrt(variance), count)
