"""Transport of large clouds: bounds of the earth mover's distance, and the Sinkhorn divergence, in bounded memory."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

from flowkit._transport import log_weights, Potentials, sinkhorn, SoftMinima
from flowkit._types import AnyArray, is_traced, Mask, Scalar
from flowkit.metrics._distances import (
    check_pair,
    prepare_pair,
    row_blocks,
    safe_sqrt,
    squared_distances,
)


class Bounds(NamedTuple):
    """What a quantity lies between."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]

    @property
    def gap(self) -> Float[Array, ""]:
        """`upper - lower`, the most by which either is wrong."""
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
    r"""A lower and an upper bound of the earth mover's distance of clouds of any size, from entropic transport.

    $$\mathrm{EMD} = \min_P \sum_{ij} P_{ij} |x_i - y_j|, \qquad P 1 = \tfrac1n, \; P^\top 1 = \tfrac1m,$$

    which is `emd` where sizes are equal. Sinkhorn's potentials are made feasible by
    $f_i = \min_j (|x_i - y_j| - g_j)$, so that the means of $f$ and $g$ add up to a lower bound; its plan is scaled and
    filled up to the exact marginals, and costs an upper bound. Both hold (up to rounding) however early the iteration
    stops; a smaller `epsilon` with enough iterations brings them together. No array is `n x m`: each iteration runs
    over blocks of rows, in `O(n m)`. Not for training: no gradient flows through it.

    **Arguments:**

    - `x`, `y`: clouds `(n, d)` and `(m, d)`, of any sizes.
    - `epsilon`: the regularisation, relative to the mean distance.
    - `max_iterations`: of Sinkhorn, which stops earlier at relative marginal errors of 1e-2.
    - `mask_x`, `mask_y`: `(n,)`, `(m,)`, the valid points.

    **Returns:** `Bounds(lower, upper)`, and their difference as `gap`.

    **Reference:** Cuturi (2013), arXiv 1306.0895; Altschuler, Weed & Rigollet (2017), arXiv 1705.09634, for the plan.
    """
    check_pair(x, y, mask_x, mask_y)
    _check_options(epsilon, max_iterations)
    return _emd_bounds(
        x,
        y,
        jnp.asarray(epsilon, jax.dtypes.canonicalize_dtype(x.dtype)),
        max_iterations,
        mask_x,
        mask_y,
    )


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
    r"""The Sinkhorn divergence $\mathrm{OT}_\epsilon(x, y) - \tfrac12 \mathrm{OT}_\epsilon(x, x) - \tfrac12
    \mathrm{OT}_\epsilon(y, y)$ of two clouds.

    $$\mathrm{OT}_\epsilon = \min_P \langle P, C \rangle + \epsilon\, \mathrm{KL}(P \,\|\, a b^\top), \qquad
    C_{ij} = |x_i - y_j|^2,$$

    with equal weights of the valid points. Never negative and zero for equal clouds, up to the tolerance; for small
    `epsilon` the squared `w2`, for large ones the squared distance of the means. Sizes may differ; memory is bounded.
    Differentiable (with the plan held fixed, which is exact, and `epsilon` too), so it can be trained on.

    **Arguments:**

    - `x`, `y`: clouds `(n, d)` and `(m, d)`.
    - `epsilon`: the regularisation, one for all three terms.
    - `relative`: whether `epsilon` is relative to the mean of $C$ between the clouds. To compare pairs with each other
      give one in the units of $C$, with `relative=False`.
    - `max_iterations`: of Sinkhorn, which stops earlier at relative marginal errors of 1e-3.
    - `mask_x`, `mask_y`: `(n,)`, `(m,)`, the valid points.

    **Reference:** Genevay, Peyre & Cuturi (2018), arXiv 1706.00292; Feydy et al. (2019), arXiv 1810.08278.
    """
    check_pair(x, y, mask_x, mask_y)
    _check_options(epsilon, max_iterations)
    epsilon = jnp.asarray(epsilon, jax.dtypes.canonicalize_dtype(x.dtype))
    return _sinkhorn_divergence(x, y, epsilon, relative, max_iterations, mask_x, mask_y)


def _check_options(epsilon, max_iterations) -> None:
    if not is_traced(epsilon) and not epsilon > 0:
        raise ValueError(
            f"`epsilon` is {epsilon}; the regularisation must be positive. `emd` and `w2` have none."
        )
    if max_iterations < 1:
        raise ValueError(
            f"`max_iterations` is {max_iterations}; at least one is needed."
        )


class _Problem(NamedTuple):
    """Two clouds with full masks, and the cost of two of their points as a function of the squared distance."""

    x: Array
    y: Array
    mask_x: Array
    mask_y: Array
    cost: Callable

    def transposed(self) -> "_Problem":
        return _Problem(self.y, self.x, self.mask_y, self.mask_x, self.cost)

    def over_rows(self, fn: Callable, *per_row: Array) -> tuple[Array, ...]:
        """`fn(costs, valid, *values)` of each block of rows, put together; one block's costs exist at a time."""
        num = self.x.shape[0]
        columns = (
            jnp.stack(per_row, 1) if per_row else jnp.zeros((num, 0), self.x.dtype)
        )
        blocks, masks = row_blocks(
            jnp.concatenate([self.x, columns], 1), self.mask_x, self.y.shape[0]
        )
        size = self.x.shape[1]

        @jax.checkpoint
        def one(block):
            rows, mask = block
            values = (rows[:, size + k] for k in range(len(per_row)))
            return fn(
                self.cost(squared_distances(rows[:, :size], self.y)),
                mask[:, None] & self.mask_y,
                *values,
            )

        return jax.tree.map(
            lambda leaf: leaf.reshape(-1)[:num], lax.map(one, (blocks, masks))
        )

    def soft_minimum(self, g: Array, epsilon: Array) -> Array:
        log_b = log_weights(self.mask_y, self.x.dtype)
        (minimum,) = self.over_rows(
            lambda cost, _: (
                -epsilon * logsumexp((g - cost) / epsilon + log_b, axis=1),
            )
        )
        return jnp.where(self.mask_x, minimum, 0)

    def hard_minimum(self, g: Array) -> Array:
        (minimum,) = self.over_rows(
            lambda cost, valid: (jnp.min(jnp.where(valid, cost - g, jnp.inf), axis=1),)
        )
        return jnp.where(self.mask_x, minimum, 0)

    def mean_cost(self) -> Array:
        weights = jnp.exp(log_weights(self.mask_y, self.x.dtype))
        (means,) = self.over_rows(lambda cost, _: (jnp.sum(cost * weights, axis=1),))
        return jnp.sum(jnp.exp(log_weights(self.mask_x, self.x.dtype)) * means)

    def solve(
        self, epsilon: Array, start: Array, tolerance: float, max_iterations: int
    ) -> Potentials:
        fixed = self._replace(x=lax.stop_gradient(self.x), y=lax.stop_gradient(self.y))
        minima = SoftMinima(fixed.soft_minimum, fixed.transposed().soft_minimum)
        sizes = self.x.shape[0], self.y.shape[0]
        return sinkhorn(
            minima,
            sizes,
            epsilon,
            start,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )


@eqx.filter_jit
def _emd_bounds(x, y, epsilon, max_iterations, mask_x, mask_y):
    x, y, mask_x, mask_y = lax.stop_gradient(prepare_pair(x, y, mask_x, mask_y))
    problem = _Problem(x, y, mask_x, mask_y, safe_sqrt)
    scale = _positive(problem.mean_cost())
    f, g, _, _ = problem.solve(epsilon * scale, scale, 1e-2, max_iterations)
    upper = _cost_of_rounded_plan(problem, f, g, epsilon * scale)
    lower = jnp.maximum(_dual(problem, g), 0)
    # Rounding must not let them cross where they meet.
    return Bounds(jnp.minimum(lower, upper), upper)


def _positive(scale: Array) -> Array:
    return jnp.maximum(scale, jnp.finfo(scale.dtype).tiny ** 0.5)


def _mean(values: Array, mask: Array) -> Array:
    return jnp.sum(jnp.exp(log_weights(mask, values.dtype)) * values)


def _dual(problem: _Problem, g: Array) -> Array:
    """A lower bound for any potential: two hard minima make the best feasible pair that begins with it."""
    f = problem.hard_minimum(g)
    g = problem.transposed().hard_minimum(f)
    return _mean(f, problem.mask_x) + _mean(g, problem.mask_y)


def _ratios(cost: Array, valid: Array, f: Array, g: Array, epsilon: Array) -> Array:
    """The plan over the product of its marginals, zero where not valid: there the exponential could overflow."""
    return jnp.exp(jnp.where(valid, (f[:, None] + g - cost) / epsilon, -jnp.inf))


def _cost_of_rounded_plan(
    problem: _Problem, f: Array, g: Array, epsilon: Array
) -> Array:
    """The cost of a plan with exact marginals: rows and columns that hold too much are scaled down, and what is then
    missing is filled up by a product."""
    a, b = (
        jnp.exp(log_weights(mask, f.dtype)) for mask in (problem.mask_x, problem.mask_y)
    )
    (sums,) = problem.over_rows(
        lambda cost, valid, f: (jnp.sum(b * _ratios(cost, valid, f, g, epsilon), 1),), f
    )
    rows = a * jnp.minimum(1, 1 / jnp.maximum(sums, 1e-30))
    transposed = problem.transposed()
    (sums,) = transposed.over_rows(
        lambda cost, valid, g: (
            jnp.sum(rows * _ratios(cost, valid, g, f, epsilon), 1),
        ),
        g,
    )
    columns = b * jnp.minimum(1, 1 / jnp.maximum(sums, 1e-30))
    missing_columns = jnp.maximum(b - columns * sums, 0)

    def one(cost, valid, f, rows):
        plan = rows[:, None] * columns * _ratios(cost, valid, f, g, epsilon)
        return (
            jnp.sum(plan, 1),
            jnp.sum(plan * cost, 1),
            jnp.sum(missing_columns * cost, 1),
        )

    sums, costs, costs_of_missing = problem.over_rows(one, f, rows)
    missing_rows = jnp.maximum(a - sums, 0)
    total = jnp.maximum(jnp.sum(missing_columns), 1e-30)
    return jnp.sum(costs) + jnp.sum(missing_rows * costs_of_missing) / total


@eqx.filter_jit
def _sinkhorn_divergence(x, y, epsilon, relative, max_iterations, mask_x, mask_y):
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    between = _Problem(x, y, mask_x, mask_y, lambda squared: squared)
    scale = _positive(lax.stop_gradient(between.mean_cost()))
    epsilon = epsilon * scale if relative else epsilon
    problems = (
        between,
        between._replace(y=x, mask_y=mask_x),
        between._replace(x=y, mask_x=mask_y),
    )
    cross, within_x, within_y = (
        _entropic_cost(problem, epsilon, scale, max_iterations) for problem in problems
    )
    return cross - within_x / 2 - within_y / 2


def _entropic_cost(
    problem: _Problem, epsilon: Array, scale: Array, max_iterations: int
) -> Array:
    """The dual objective at the potentials. Its derivative with these held fixed is that of the optimum."""
    f, g, _, _ = problem.solve(
        epsilon, jnp.maximum(scale, epsilon), 1e-3, max_iterations
    )
    b = jnp.exp(log_weights(problem.mask_y, f.dtype))
    (sums,) = problem.over_rows(
        lambda cost, valid, f: (jnp.sum(b * _ratios(cost, valid, f, g, epsilon), 1),), f
    )
    excess = _mean(jnp.where(problem.mask_x, sums, 1), problem.mask_x) - 1
    return _mean(f, problem.mask_x) + _mean(g, problem.mask_y) - epsilon * excess
