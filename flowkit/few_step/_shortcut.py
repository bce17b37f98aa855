r"""Shortcut models: a long jump equals two jumps of half its length."""

import functools as ft
import operator
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._losses import Batch, check_batch, Draw, Example, uniform
from flowkit._types import AnyArray, Cond, PRNGKey
from flowkit.few_step._adaptive_weight import mean_square, weighted
from flowkit.few_step._draw import check_all_pairs, draw_with_times, path_point
from flowkit.few_step._flow_map import FlowMap


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

    One part of the batch trains the velocity, $u_\theta(x_t, t, t)$, by flow matching. The
    rest trains jumps of the sizes $\delta = 1, \tfrac12, \dots, 2^{1 - n}$, starting at
    multiples of their size, toward two jumps of half the size:

    $$\left\| u_\theta(x_t, t, t + \delta) - \mathrm{sg}\, \tfrac12 \left(
    u_\theta(x_t, t, t + \tfrac\delta2) + u_\theta(x', t + \tfrac\delta2, t + \delta)
    \right) \right\|^2,
    \qquad x' = x_t + \tfrac\delta2\, u_\theta(x_t, t, t + \tfrac\delta2).$$

    Below the smallest size the velocity stands for the average. No derivative of the network
    is needed.

    **Arguments:**

    - `flow_map`: the map, of two times.
    - `x1`, `cond`, `source`, `coupling`, `mask`: as in `fk.flow_matching_loss`.
    - `times`: the distribution of the times at which the velocity is trained.
    - `fraction`: the fraction of the batch that trains jumps.
    - `num_levels`: $n$, the number of sizes.

    **Returns:** the loss, and `{"flow_matching": ..., "self_consistency": ...}`, the means
    over their examples.

    **Raises:** `ValueError` for batches that do not fit together, and if either part would
    be empty.

    **Reference:** Frans et al., One Step Diffusion via Shortcut Models, 2024 (arXiv
    2410.12557).
    """
    check_batch(x1, cond, mask)
    check_all_pairs(flow_map)
    num = x1.shape[0]
    num_jumps = round(fraction * num)
    if not 0 < num_jumps < num:
        raise ValueError(
            f"`fraction` must leave examples for both parts; of {num} examples it gives "
            f"{num_jumps} to jumps."
        )
    if num_levels < 1:
        raise ValueError(f"`num_levels` must be at least 1, got {num_levels}.")

    sizes = _Sizes(num_jumps, operator.index(num_levels))
    draw = Draw(source, coupling, times)
    return _loss(flow_map, Batch(x1, cond, mask), draw, sizes, key)


class _Sizes(NamedTuple):
    """How many examples train jumps, and how many sizes of jumps there are."""

    num_jumps: int
    num_levels: int


@eqx.filter_jit
def _loss(
    flow_map: FlowMap, batch: Batch, draw: Draw, sizes: _Sizes, key: PRNGKey
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    dkey, level_key, start_key = jr.split(key, 3)
    examples = draw_with_times(flow_map, batch, draw, dkey)
    num_jumps = sizes.num_jumps
    jumps = jax.tree.map(lambda leaf: leaf[:num_jumps], examples)
    others = jax.tree.map(lambda leaf: leaf[num_jumps:], examples)

    level = jr.randint(level_key, (num_jumps,), 0, sizes.num_levels)
    start = jr.randint(start_key, (num_jumps,), 0, 2**level)
    dtype = examples.t.dtype
    # Powers of two, whose multiples are exact: no jump passes 1 by rounding.
    size = (2.0 ** -level.astype(dtype)).astype(dtype)
    # The velocity stands for the average over half of the smallest size.
    half_span = jnp.where(level == sizes.num_levels - 1, 0, size / 2)
    jumps = jumps._replace(t=start.astype(dtype) * size)

    self_consistency = ft.partial(_self_consistency, flow_map)
    jump_errors = jax.vmap(self_consistency)(jumps, size, half_span)
    velocity_errors = jax.vmap(ft.partial(_flow_matching, flow_map))(others)
    parts = {
        "flow_matching": jnp.mean(velocity_errors),
        "self_consistency": jnp.mean(jump_errors),
    }

    # Every example counts once. The parts are means over their own examples, so they do
    # not add up to the loss.
    total = jnp.sum(velocity_errors) + jnp.sum(jump_errors)
    return total / batch.x1.shape[0], parts


def _flow_matching(flow_map: FlowMap, example: Example) -> Float[Array, ""]:
    t = example.t
    x, v = path_point(flow_map, example, t)
    velocity = flow_map(t, t, x, example.cond, example.mask, example.key)
    return weighted(mean_square(velocity, v, example.mask), None, example)


def _self_consistency(
    flow_map: FlowMap, example: Example, size: Array, half_span: Array
) -> Float[Array, ""]:
    """The error of one jump against two of half its size.

    `half_span` is what the network sees of half the size.
    """
    args = (example.cond, example.mask, example.key)
    t = example.t
    half = size / 2
    x, _ = path_point(flow_map, example, t)

    first = flow_map(t, t + half_span, x, *args)
    halfway = x + half * first
    second = flow_map(t + half, t + half + half_span, halfway, *args)
    value = flow_map(t, t + size, x, *args)
    # No gradient flows into the two half jumps: `mean_square` stops that of its target.
    error = mean_square(value, 0.5 * (first + second), example.mask)
    return weighted(error, None, example)
