"""Transport of large clouds in bounded memory, from entropic potentials.

This module computes bounds on the earth mover's distance, and the Sinkhorn divergence.
Costs are computed for one block of rows at a time, in every iteration.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from flowkit._transport import check_epsilon, log_weights
from flowkit._types import AnyArray, is_traced, Mask, Scalar
from flowkit.metrics._entropic import EntropicProblem, mean_over, ratios
from flowkit.metrics._inputs import check_pair, prepare_pair, working_dtype
from flowkit.metrics._reductions import safe_sqrt


class Bounds(NamedTuple):
    """A lower and an upper bound of a quantity."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]

    @property
    def gap(self) -> Float[Array, ""]:
        """`upper - lower`, the largest error of either bound."""
        return self.upper - self.lower


def emd_bounds(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    epsilon: Scalar = 0.01,
    max_iterations: int = 200,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Bounds:
    r"""Bounds of the earth mover's distance of clouds of any size.

    $$\mathrm{EMD} = \min_P \sum_{ij} P_{ij} |x_i - y_j|, \qquad
    P 1 = \tfrac1n, \; P^\top 1 = \tfrac1m,$$

    which is `emd` where sizes are equal. Both bounds come from entropic transport.
    Sinkhorn's potentials are made feasible by $f_i = \min_j (|x_i - y_j| - g_j)$, so that
    the means of $f$ and $g$ add up to a lower bound. Sinkhorn's plan is scaled and filled
    up to the exact marginals, and its cost is an upper bound. Both hold, up to rounding,
    however early the iteration stops; a smaller `epsilon` with enough iterations brings
    them together.

    No array is `n x m`: each iteration runs over blocks of rows, in `O(n m)`. Do not
    train on the bounds: no gradient flows through them.

    **Arguments:**

    - `x (n, d)`, `y (m, d)`: clouds of any sizes.
    - `epsilon`: the regularization, relative to the mean distance.
    - `max_iterations`: the maximum number of Sinkhorn iterations, which stop earlier at
      a relative marginal error of 1e-2.
    - `mask_x (n,)`, `mask_y (m,)`: the valid points.

    **Returns:** `Bounds(lower, upper)`, with their difference as `gap`.

    **Reference:** Cuturi (2013), arXiv 1306.0895; Altschuler, Weed & Rigollet (2017),
    arXiv 1705.09634, for the plan.
    """
    check_pair(x, y, mask_x, mask_y)
    _check_iterations(max_iterations)
    if not is_traced(epsilon):
        check_epsilon(float(epsilon), "emd")

    epsilon = jnp.asarray(epsilon, working_dtype(x))
    return _emd_bounds(x, y, epsilon, int(max_iterations), mask_x, mask_y)


def sinkhorn_divergence(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    epsilon: Scalar = 0.05,
    relative: bool = True,
    max_iterations: int = 1000,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    r"""The Sinkhorn divergence of two clouds.

    $$\mathrm{OT}_\epsilon(x, y) - \tfrac12 \mathrm{OT}_\epsilon(x, x)
    - \tfrac12 \mathrm{OT}_\epsilon(y, y),$$

    $$\mathrm{OT}_\epsilon = \min_P \langle P, C \rangle
    + \epsilon\, \mathrm{KL}(P \,\|\, a b^\top), \qquad C_{ij} = |x_i - y_j|^2,$$

    with equal weights of the valid points. It is never negative, and zero for equal
    clouds, up to the tolerance. For small `epsilon` it is the squared `w2`, for large
    ones the squared distance of the means. Sizes may differ, and the memory is bounded.
    You can train on it: the gradient holds the plan and `epsilon` fixed, which is exact
    for the plan.

    **Arguments:**

    - `x (n, d)`, `y (m, d)`: clouds of any sizes.
    - `epsilon`: the regularization, the same for all three terms. Small ones need many
        iterations: for 200 points and 1e-4, the first 1000 leave an error of 3e-4 of
        the value. To estimate the remaining error, compare with the value after more
        iterations.
    - `relative`: whether `epsilon` is relative to the mean of $C$ between the clouds. To
        compare pairs with each other, give one in the units of $C$ and `relative=False`.
    - `max_iterations`: the maximum number of Sinkhorn iterations, which stop earlier at
      a relative marginal error of 1e-3.
    - `mask_x (n,)`, `mask_y (m,)`: the valid points.

    **Reference:** Genevay, Peyre & Cuturi (2018), arXiv 1706.00292; Feydy et al. (2019),
    arXiv 1810.08278.
    """
    check_pair(x, y, mask_x, mask_y)
    _check_iterations(max_iterations)
    if not is_traced(x, y, mask_x, mask_y, epsilon):
        unit = 1.0 if relative else _mean_cost_on_host(x, y, mask_x, mask_y)
        check_epsilon(float(epsilon) / unit, "w2")

    epsilon = jnp.asarray(epsilon, working_dtype(x))
    return _sinkhorn_divergence(
        x, y, epsilon, relative, int(max_iterations), mask_x, mask_y
    )


def _check_iterations(max_iterations: int) -> None:
    if max_iterations < 1:
        raise ValueError(
            f"`max_iterations` is {max_iterations}; at least one is needed."
        )


def _mean_cost_on_host(x, y, mask_x, mask_y) -> float:
    """The mean of `|x_i - y_j|^2`, by means and variances; 1 for points in one place."""
    total = 0.0
    means = []
    for points, mask in ((x, mask_x), (y, mask_y)):
        points = np.asarray(points, float)
        if mask is not None:
            points = points[np.asarray(mask)]
        means.append(points.mean(0))
        total += points.var(0).sum()

    total += np.square(means[0] - means[1]).sum()
    return float(total) if total > 0 else 1.0


@eqx.filter_jit
def _emd_bounds(x, y, epsilon, max_iterations, mask_x, mask_y):
    x, y, mask_x, mask_y = lax.stop_gradient(prepare_pair(x, y, mask_x, mask_y))
    problem = EntropicProblem(x, y, mask_x, mask_y, safe_sqrt)
    scale = _positive(problem.mean_cost())
    potentials = problem.solve(
        epsilon * scale, scale, tolerance=1e-2, max_iterations=max_iterations
    )

    upper = _cost_of_rounded_plan(
        problem,
        potentials.f,
        potentials.g,
        epsilon * scale,
    )
    lower = jnp.maximum(_dual_value(problem, potentials.g), 0)
    # A plan of an empty cloud costs nothing, but there is no distance.
    upper = jnp.where(jnp.isnan(lower), jnp.nan, upper)
    # Rounding must not let them cross where they meet.
    return Bounds(jnp.minimum(lower, upper), upper)


def _positive(scale):
    # Far above the smallest number, so that `epsilon` times it does not underflow.
    return jnp.maximum(scale, jnp.finfo(scale.dtype).tiny ** 0.5)


def _dual_value(problem, g):
    """A lower bound from any potential: two hard minima make the best feasible pair."""
    f = problem.hard_minimum(g)
    g = problem.transposed().hard_minimum(f)
    return mean_over(f, problem.mask_x) + mean_over(g, problem.mask_y)


def _cost_of_rounded_plan(problem, f, g, epsilon):
    r"""The cost of a plan with exact marginals $a, b$ near that of the potentials.

    With ratios $R$ the plan is $r_i R_{ij} s_j$ where $r$ scales down rows that hold too
    much and $s$ then columns. The mass that rows and columns still lack is filled up with
    a product.
    """
    transposed = problem.transposed()
    a = jnp.exp(log_weights(problem.mask_x, f.dtype))
    b = jnp.exp(log_weights(problem.mask_y, f.dtype))

    def over_columns(costs, valid, f):
        return jnp.sum(b[None] * ratios(costs, valid, f, g, epsilon), axis=1)

    r = a * jnp.minimum(1, 1 / _not_zero(problem.over_rows(over_columns, f)))

    def over_rows(costs, valid, g):
        return jnp.sum(r[None] * ratios(costs, valid, g, f, epsilon), axis=1)

    held = transposed.over_rows(over_rows, g)
    s = b * jnp.minimum(1, 1 / _not_zero(held))
    # Negative by rounding alone.
    missing_b = jnp.maximum(b - s * held, 0)

    def of_plan(costs, valid, f, r):
        plan = r[:, None] * s[None] * ratios(costs, valid, f, g, epsilon)
        to_missing = jnp.sum(missing_b[None] * costs, axis=1)
        return jnp.sum(plan, axis=1), jnp.sum(plan * costs, axis=1), to_missing

    held, costs, costs_to_missing = problem.over_rows(of_plan, f, r)
    missing_a = jnp.maximum(a - held, 0)
    filled = jnp.sum(missing_a * costs_to_missing) / _not_zero(jnp.sum(missing_b))
    return jnp.sum(costs) + filled


def _not_zero(sums):
    # A masked row or column holds nothing: its quotient must stay finite, and is cut to
    # 1.
    return jnp.maximum(sums, 1e-30)


@eqx.filter_jit
def _sinkhorn_divergence(x, y, epsilon, relative, max_iterations, mask_x, mask_y):
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    between = EntropicProblem(x, y, mask_x, mask_y, lambda squared: squared)
    within_x = between._replace(y=x, mask_y=mask_x)
    within_y = between._replace(x=y, mask_x=mask_y)

    scale = _positive(lax.stop_gradient(between.mean_cost()))
    if relative:
        epsilon = epsilon * scale
    cross = _entropic_cost(between, epsilon, scale, max_iterations)
    own_x = _entropic_cost(within_x, epsilon, scale, max_iterations)
    own_y = _entropic_cost(within_y, epsilon, scale, max_iterations)
    return cross - own_x / 2 - own_y / 2


def _entropic_cost(problem, epsilon, scale, max_iterations):
    """The dual value at the potentials.

    At the optimum it does not depend on them to first order, so its derivative with the
    potentials held fixed is correct.
    """
    f, g, _, _ = problem.solve(
        epsilon,
        jnp.maximum(scale, epsilon),
        tolerance=1e-3,
        max_iterations=max_iterations,
    )
    b = jnp.exp(log_weights(problem.mask_y, f.dtype))

    def row_mass(costs, valid, f):
        return jnp.sum(b[None] * ratios(costs, valid, f, g, epsilon), axis=1)

    # The excess is zero at the optimum, but the gradient comes from it alone: the
    # potentials are held fixed.
    mass = jnp.where(problem.mask_x, problem.over_rows(row_mass, f), 1)
    excess = mean_over(mass, problem.mask_x) - 1
    values = mean_over(f, problem.mask_x) + mean_over(g, problem.mask_y)
    return values - epsilon * excess
