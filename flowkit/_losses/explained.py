"""How much of the velocity a flow explains."""

import functools as ft
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import (
    Flow,
    Velocity,
)
from flowkit._losses.draw import Batch, check_batch, Draw, draw_examples, Example
from flowkit._losses.times import stratified
from flowkit._types import AnyArray, Cond, PRNGKey, VelocityField


class ExplainedVelocity(NamedTuple):
    r"""$R^2$ of the velocity: per time bin, and over all."""

    times: Float[Array, " bins"]
    """The middle of each bin."""
    r2: Float[Array, " bins"]
    """NaN for a bin whose examples have no variance, or none at all."""
    total: Float[Array, ""]


def explained_velocity(
    flow: Flow,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    bins: int = 10,
    floor: VelocityField | None = None,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    mask: Bool[AnyArray, "batch n"] | None = None,
) -> ExplainedVelocity:
    r"""How much of the velocity the flow explains, per time bin: is it converged?

    With $v_c$ the conditional velocities of a bin, $\bar v_c$ their mean for each coordinate (the last axis), and all
    sums running over its examples and valid entries,

    $$R^2 = 1 - \frac{\sum \|v_\theta - v_c\|^2 - F}{\sum \|v_c - \bar v_c\|^2 - F}.$$

    Without a `floor` $F = 0$, and even a perfect flow stays below 1 by the variance of the target given $x_t$. With
    the exact flow as the `floor`, $F = \sum \|v_* - v_c\|^2$, and a perfect flow has $R^2 = 1$ in every bin. Ratios
    of sums, not means of ratios. Times are stratified.

    **Arguments:**

    - `flow`, `x1`, `cond`, `source`, `coupling`, `mask`: as in `fk.flow_matching_loss`.
    - `bins`: the number of equal time bins.
    - `floor`: the exact velocity field, for instance `fk.exact_flow(...)`; called `(t, x, cond)`, without the mask.
    """
    check_batch(x1, cond, mask)
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}.")
    batch = Batch(x1, cond, mask)
    draw = Draw(source, coupling, stratified)
    return _explained_velocity(flow, batch, draw, key, bins, floor)


@eqx.filter_jit
def _explained_velocity(flow, batch, draw, key, bins, floor):
    flow = eqx.nn.inference_mode(flow)
    examples = draw_examples(flow, batch, draw, key)
    index = jnp.clip((examples.t * bins).astype(int), 0, bins - 1)
    in_bins = ft.partial(jax.ops.segment_sum, segment_ids=index, num_segments=bins)

    def target_and_validity(example: Example):
        target = Velocity().evaluate(
            flow.path.coefficients(example.t), example.x0, example.x1
        )
        valid = (
            jnp.ones(target.shape[:1], bool) if example.mask is None else example.mask
        )
        return target, jnp.broadcast_to(
            jnp.reshape(valid, valid.shape + (1,) * (target.ndim - 1)), target.shape
        )

    def features(example: Example):
        target, valid = target_and_validity(example)
        per_feature = lambda value: jnp.sum(
            jnp.reshape(value, (-1, value.shape[-1])), axis=0
        )
        return per_feature(jnp.where(valid, target, 0)), per_feature(
            valid.astype(target.dtype)
        )

    # The means first, then the squares around them: their difference would lose all digits far from the origin.
    first, count = map(in_bins, jax.vmap(features)(examples))
    means = first / jnp.maximum(count, 1)

    def squares(example: Example, mean: Array):
        target, valid = target_and_validity(example)
        x_t = flow.path.interpolate(example.t, example.x0, example.x1)
        total = lambda value: jnp.sum(jnp.where(valid, value**2, 0))
        error = total(flow(example.t, x_t, example.cond, example.mask) - target)
        exact = (
            jnp.zeros_like(error)
            if floor is None
            else total(floor(example.t, x_t, example.cond) - target)
        )
        return error - exact, total(target - mean) - exact

    error, variance = map(in_bins, jax.vmap(squares)(examples, means[index]))
    ratio = lambda error, variance: jnp.where(
        variance > 0, 1 - error / jnp.where(variance > 0, variance, 1), jnp.nan
    )
    times = (jnp.arange(bins, dtype=error.dtype) + 0.5) / bins
    return ExplainedVelocity(
        times, ratio(error, variance), ratio(jnp.sum(error), jnp.sum(variance))
    )
