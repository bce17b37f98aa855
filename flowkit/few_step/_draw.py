"""What the losses of flow maps draw for a batch, and where an example is on its path."""

from collections.abc import Callable
from typing import NamedTuple

import jax.random as jr
from jaxtyping import Array

from flowkit._flow import Velocity
from flowkit._losses import Batch, Draw, draw_endpoints, draw_times, Example
from flowkit._types import PRNGKey
from flowkit.few_step._flow_map import expanded_interval, FlowMap


def draw_with_times(
    flow_map: FlowMap,
    batch: Batch,
    draw: Draw,
    key: PRNGKey,
    times_of: Callable = draw_times,
) -> Example:
    """Noise, data, keys and times of a batch.

    **Arguments:** `times_of(draw.times, num, dtype, key)` draws what becomes the `t` of the
    examples: one time each, or two.
    """
    ekey, tkey = jr.split(key)
    examples = draw_endpoints(flow_map, batch, draw, ekey)
    num = batch.x1.shape[0]
    return examples._replace(t=times_of(draw.times, num, batch.x1.dtype, tkey))


class PathPoint(NamedTuple):
    """A point on the path of a pair, and the velocity of the pair there."""

    x: Array
    velocity: Array


def path_point(flow_map: FlowMap, example: Example, s: Array) -> PathPoint:
    """Where the pair of an example is at time `s`."""
    c = flow_map.path.coefficients(s)
    return PathPoint(
        x=c.alpha * example.x1 + c.sigma * example.x0,
        velocity=Velocity().evaluate(c, example.x0, example.x1),
    )


def check_all_pairs(flow_map: FlowMap) -> None:
    """Raises for a map that does not distinguish all pairs of times."""
    if flow_map.times is expanded_interval:
        raise ValueError(
            "`flow_map` has `times=expanded_interval`, which only `facm_loss` and "
            "`consistency_loss` train; build it with `both_times`."
        )
