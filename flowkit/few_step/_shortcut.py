r"""Shortcut models: a long jump is two half as long."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import Velocity
from flowkit._losses import check_batch, Example, uniform
from flowkit._types import AnyArray, Cond, PRNGKey
from flowkit.few_step._flow_map import FlowMap
from flowkit.few_step._training import (
    check_all_pairs,
    draw,
    mean_square,
    weighted,
)


def shortcut_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    times: Callable = uniform,
    fraction: float = 0.25,
    num_levels: int = 7,
    mask: Bool[AnyArray, "batch n"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    r"""The loss of shortcut models, and its two parts.

    A part of the batch trains the velocity, $u_\theta(x_t, t, t)$, by flow matching. The rest trains jumps of the sizes
    $\delta = 1, \tfrac12, \dots, 2^{1 - n}$ from multiples of them, towards two of half the size:

    $$\left\| u_\theta(x_t, t, t + \delta) - \mathrm{sg}\, \tfrac12 \left(
    u_\theta(x_t, t, t + \tfrac\delta2) + u_\theta(x', t + \tfrac\delta2, t + \delta) \right) \right\|^2,
    \qquad x' = x_t + \tfrac\delta2\, u_\theta(x_t, t, t + \tfrac\delta2).$$

    Below the smallest size the velocity stands for the average. No derivative of the network is needed.

    **Arguments:**

    - `flow_map`: the map, of two times.
    - `x1`, `cond`, `source`, `coupling`, `times`, `mask`: as in `fk.flow_matching_loss`; `times` is of the first part.
    - `fraction`: of the batch that trains jumps.
    - `num_levels`: $n$, how many sizes there are.

    **Returns:** the loss, and `{"flow_matching": ..., "self_consistency": ...}`, the means over their examples.

    **Raises:** `ValueError` for batches that do not fit together, and if either part would be empty.

    **Reference:** Frans et al., One Step Diffusion via Shortcut Models, 2024 (arXiv 2410.12557).
    """
    check_batch(x1, cond, mask)
    check_all_pairs(flow_map)
    num_jumps = round(fraction * x1.shape[0])
    if not 0 < num_jumps < x1.shape[0]:
        raise ValueError(
            f"`fraction` must leave examples for both parts; of {x1.shape[0]} examples it gives {num_jumps} to jumps."
        )
    if num_levels < 1:
        raise ValueError(f"`num_levels` must be at least 1, got {num_levels}.")
    return _loss(
        flow_map, x1, cond, key, source, coupling, times, num_jumps, num_levels, mask
    )


@eqx.filter_jit
def _loss(
    flow_map, x1, cond, key, source, coupling, times, num_jumps, num_levels, mask
):
    dkey, level_key, start_key = jr.split(key, 3)
    examples, t = draw(flow_map, x1, cond, dkey, source, coupling, times, mask)
    jumps = jax.tree.map(lambda leaf: leaf[:num_jumps], examples)
    others, t = jax.tree.map(lambda leaf: leaf[num_jumps:], (examples, t))
    level = jr.randint(level_key, (num_jumps,), 0, num_levels)
    start = jr.randint(start_key, (num_jumps,), 0, 2**level)
    size = (2.0 ** -level.astype(t.dtype)).astype(t.dtype)
    errors = jax.vmap(lambda *args: _self_consistency(flow_map, num_levels, *args))(
        jumps, level, start.astype(t.dtype) * size, size
    )
    velocity_errors = jax.vmap(lambda *args: _flow_matching(flow_map, *args))(others, t)
    parts = {
        "flow_matching": jnp.mean(velocity_errors),
        "self_consistency": jnp.mean(errors),
    }
    return (jnp.sum(velocity_errors) + jnp.sum(errors)) / x1.shape[0], parts


def _flow_matching(flow_map: FlowMap, example: Example, t: Array) -> Float[Array, ""]:
    c = flow_map.path.coefficients(t)
    x = c.alpha * example.x1 + c.sigma * example.x0
    velocity = flow_map(t, t, x, example.cond, example.mask, example.key)
    return weighted(
        mean_square(
            velocity, Velocity().evaluate(c, example.x0, example.x1), example.mask
        ),
        None,
        example,
    )


def _self_consistency(
    flow_map: FlowMap, num_levels: int, example: Example, level, t, size
) -> Float[Array, ""]:
    args = example.cond, example.mask, example.key
    x = flow_map.path.interpolate(t, example.x0, example.x1)
    half = size / 2
    span = jnp.where(
        level == num_levels - 1, 0, half
    )  # of the network's times, not of the step
    first = flow_map(t, t + span, x, *args)
    second = flow_map(t + half, t + half + span, x + half * first, *args)
    value = flow_map(t, t + size, x, *args)
    return weighted(
        mean_square(value, 0.5 * (first + second), example.mask), None, example
    )
