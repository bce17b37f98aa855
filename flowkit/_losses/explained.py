"""How much of the velocity a flow explains."""

import operator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import (
    bare,
    Flow,
    same_units,
    standardize,
    Standardized,
    Velocity,
)
from flowkit._losses.draw import Batch, check_batch, Draw, draw_examples, Example
from flowkit._losses.times import stratified
from flowkit._types import (
    AnyArray,
    Cond,
    PRNGKey,
    sum_dtype,
    VelocityField,
)


class ExplainedVelocity(NamedTuple):
    r"""$R^2$ of the velocity: per time bin, and over all of them."""

    times: Float[Array, " bins"]
    """The middle of each bin."""
    r2: Float[Array, " bins"]
    """NaN for a bin without examples, or whose examples have no variance."""
    total: Float[Array, ""]


def explained_velocity(
    flow: Flow | Standardized,
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
    r"""How much of the velocity the flow explains, per time bin: has it converged?

    With $v_c$ the conditional velocities of a bin, $\bar v_c$ their mean for each
    coordinate (the last axis), and all sums running over its examples and valid
    entries, with the weights of the coupling,

    $$R^2 = 1 - \frac{\sum \|v_\theta - v_c\|^2 - F}{\sum \|v_c - \bar v_c\|^2 - F}.$$

    Without a `floor` $F = 0$, and even a perfect flow stays below 1 because the target
    varies given $x_t$. With the exact flow as the `floor`, $F = \sum \|v_* - v_c\|^2$,
    and a perfect flow has $R^2 = 1$ in every bin. These are ratios of sums, not means
    of ratios. Times are stratified.

    **Arguments:**

    - `flow`, `x1`, `cond`, `source`, `coupling`, `mask`: as in `fk.flow_matching_loss`.
    - `bins`: the number of equal time bins.
    - `floor`: the exact velocity field, for instance `fk.exact_flow(...)`; called
      `(t, x, cond)`, without the mask. For a `fk.Standardized` flow it is a
      `fk.Standardized` one, too: the exact flow of the standardized data, with the same
      `mean` and `std`.

    **Raises:** `ValueError` for batches that do not fit together, and for a `floor` in
    other units than `flow`.
    """
    check_batch(x1, cond, mask)
    if floor is not None:
        _check_units(floor, flow)
    x1 = standardize(flow, x1)
    inner: Flow = bare(flow)
    bins = operator.index(bins)
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}.")
    batch = Batch(x1, cond, mask)
    draw = Draw(source, coupling, stratified)
    floor = None if floor is None else bare(floor)
    return _explained_velocity(inner, batch, draw, key, bins, floor)


def _check_units(floor: VelocityField, flow: Flow | Standardized) -> None:
    """Raises for a floor whose coordinates are not those in which the flow runs."""
    if not isinstance(flow, Standardized):
        if isinstance(floor, Standardized):
            raise ValueError(
                "`floor` is a `fk.Standardized`, but `flow` is not; give the exact velocity "
                "field of the data as they are."
            )
        return

    advice = (
        "; give `fk.Standardized(exact, mean, std)` with the exact flow of the standardized "
        "data and the `mean` and `std` of `flow`."
    )
    if not isinstance(floor, Standardized):
        # The noise of the flow has unit scale in its own coordinates, so its exact velocity
        # is not that of `fk.exact_flow` of the data in other units.
        raise ValueError(f"`floor` must be a `fk.Standardized`, as `flow` is{advice}")

    if not same_units(flow, floor, rtol=1e-5):
        raise ValueError(f"`floor` has another `mean` or `std` than `flow`{advice}")


@eqx.filter_jit
def _explained_velocity(
    flow: Flow,
    batch: Batch,
    draw: Draw,
    key: PRNGKey,
    bins: int,
    floor: VelocityField | None,
) -> ExplainedVelocity:
    flow = eqx.nn.inference_mode(flow)
    examples = draw_examples(flow, batch, draw, key)
    index = jnp.clip((examples.t * bins).astype(int), 0, bins - 1)

    # The means first, then the squares around them: a difference of squares would lose all
    # digits far from the origin.
    sums, counts = jax.vmap(lambda example: _sums(flow, example))(examples)
    per_bin = lambda values: _per_bin(values, examples.weight, index, bins)
    counts = per_bin(counts)
    means = per_bin(sums) / jnp.where(counts > 0, counts, 1)

    squares = lambda example, mean: _squares(flow, floor, example, mean)
    errors, variances = jax.vmap(squares)(examples, means[index])
    errors = per_bin(errors)
    variances = per_bin(variances)

    times = (jnp.arange(bins, dtype=errors.dtype) + 0.5) / bins
    total = _explained(jnp.sum(errors), jnp.sum(variances))
    return ExplainedVelocity(times, _explained(errors, variances), total)


def _per_bin(values: Array, weights: Array | None, index: Array, bins: int) -> Array:
    if weights is not None:
        values = jax.vmap(jnp.multiply)(_wide(weights), values)
    return jax.ops.segment_sum(values, index, num_segments=bins)


def _wide(x: Array) -> Array:
    """In at least float32, since half precision cannot sum over a bin."""
    return x.astype(sum_dtype(x.dtype))


def _target(flow: Flow, example: Example) -> tuple[Array, Array]:
    """The conditional velocity of an example, and which of its entries are valid."""
    c = flow.path.coefficients(_wide(example.t))
    target = Velocity().evaluate(c, _wide(example.x0), _wide(example.x1))
    if example.mask is None:
        return target, jnp.ones(target.shape, bool)

    rows = jnp.reshape(example.mask, (-1,) + (1,) * (target.ndim - 1))
    return target, jnp.broadcast_to(rows, target.shape)


def _sums(flow: Flow, example: Example) -> tuple[Array, Array]:
    """First pass: the sum of the target over all but the last axis, and the entries in it."""
    target, valid = _target(flow, example)
    axes = range(target.ndim - 1)
    total = jnp.sum(jnp.where(valid, target, 0), axis=axes)
    return total, jnp.sum(valid.astype(target.dtype), axis=axes)


def _squares(
    flow: Flow, floor: VelocityField | None, example: Example, mean: Array
) -> tuple[Array, Array]:
    """Second pass: numerator and denominator of what is not explained."""
    target, valid = _target(flow, example)
    x_t = flow.path.interpolate(example.t, example.x0, example.x1)
    velocity = flow(example.t, x_t, example.cond, example.mask)

    error = _square_sum(_wide(velocity) - target, valid)
    variance = _square_sum(target - jnp.broadcast_to(mean, target.shape), valid)
    if floor is None:
        return error, variance

    exact = _square_sum(_wide(floor(example.t, x_t, example.cond)) - target, valid)
    return error - exact, variance - exact


def _square_sum(value: Array, valid: Array) -> Float[Array, ""]:
    return jnp.sum(jnp.where(valid, value**2, 0))


def _explained(error: Any, variance: Any) -> Array:
    """One minus a ratio, NaN where there is nothing to explain."""
    has_variance = variance > 0
    ratio = error / jnp.where(has_variance, variance, 1)
    return jnp.where(has_variance, 1 - ratio, jnp.nan)
