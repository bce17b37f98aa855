"""What the losses share: checks, the point and the velocity of a pair, reductions, and the mean over a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._blocks import check_block, mean_over_batch
from flowkit._checks import check_data, check_rows
from flowkit._flow import zero_masked
from flowkit._losses import draw_examples, draw_times, Example
from flowkit.few_step._flow_map import expanded_interval, FlowMap


def check_batch(x1: Any, cond: Any, mask: Any, block: int | None) -> None:
    check_data("x1", x1, mask)
    check_rows("cond", cond, x1.shape[0], "example of `x1`")
    check_block(block, x1.shape[0])


def check_all_pairs(flow_map: FlowMap) -> None:
    """Raises for a map that has no number for some pairs of times."""
    if flow_map.times is expanded_interval:
        raise ValueError(
            "`flow_map` has `times=expanded_interval`, which only `facm_loss` and `consistency_loss` can train; build "
            "it with `both_times`."
        )


class Start(NamedTuple):
    """Where a pair of noise and data is at a time, and how fast it moves."""

    s: Float[Array, ""]
    x: Float[Array, "..."]
    velocity: Float[Array, "..."]


def start(flow_map: FlowMap, example: Example, s: Float[Array, ""]) -> Start:
    """The point of the pair at `s`, or at the last time at which the path has a derivative."""
    s = jnp.minimum(s, flow_map.path.t_end)
    c = flow_map.path.coefficients(s)
    x = c.alpha * example.x1 + c.sigma * example.x0
    velocity = c.d_alpha * example.x1 + c.d_sigma * example.x0
    if example.mask is not None:
        x, velocity = zero_masked(x, example.mask), zero_masked(velocity, example.mask)
    return Start(s, x, velocity)


def reduced(values: Float[Array, "..."], mask: Array | None, reduction: Callable) -> Float[Array, ""]:
    """The sum or mean over the valid entries; zero if there are none."""
    if mask is None:
        return reduction(values)
    # A cloud without points has zeros everywhere: count them all, not 0 / 0.
    valid = mask | ~jnp.any(mask)
    return reduction(values, where=jnp.reshape(valid, valid.shape + (1,) * (values.ndim - 1)))


def weighted(square: Float[Array, ""], weight: Callable | None) -> Float[Array, ""]:
    """The squared error times its adaptive weight."""
    return square if weight is None else square * jax.lax.stop_gradient(weight(square))


def keywords(example: Example) -> dict[str, Any]:
    return {"mask": example.mask, "key": example.key}


@eqx.filter_jit
def mean_loss(error, flow_map, x1, cond, key, source, coupling, times, mask, block, draw=draw_times):
    """The mean of `error(flow_map, example) -> (value, parts)` over a batch as it is drawn, and the mean parts."""
    examples = draw_examples(flow_map, x1, cond, key, source, coupling, times, mask, draw=draw)
    loss, parts = mean_over_batch(_CoupledError(error), flow_map, examples, block=block)
    return loss, {name: jnp.mean(value) for name, value in parts.items()}


class _CoupledError(eqx.Module):
    """An error times the factor of its pair, if the coupling has factors."""

    error: Callable

    def __call__(self, flow_map: FlowMap, example: Example):
        value, parts = self.error(flow_map, example)
        return value if example.weight is None else example.weight * value, parts
