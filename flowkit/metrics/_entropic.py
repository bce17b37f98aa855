r"""Entropic transport between two clouds whose costs are never in memory as a whole.

With weights $a_i = 1/n$, $b_j = 1/m$ of the valid points and potentials $f, g$ the plan is

$$P_{ij} = a_i b_j \exp((f_i + g_j - c_{ij}) / \epsilon).$$

Everything here is a reduction of the rows of the costs, or of the transposed problem.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

from flowkit._distances import squared_distances
from flowkit._transport import (
    log_weights,
    Potentials,
    sinkhorn,
    SoftMinima,
)
from flowkit.metrics._reductions import map_blocks


class EntropicProblem(NamedTuple):
    """Two clouds with full masks, and the cost as a function of the squared distance."""

    x: Array
    y: Array
    mask_x: Array
    mask_y: Array
    cost: Callable[[Array], Array]

    def transposed(self) -> "EntropicProblem":
        return EntropicProblem(self.y, self.x, self.mask_y, self.mask_x, self.cost)

    def over_rows(self, fn: Callable[..., Any], *per_row: Array) -> Any:
        """`fn(costs, valid, *values)` of each block of rows, its results joined.

        **Arguments:**

        - `fn`: it gets the costs `(rows, m)` of a block, which pairs of it are valid, and
            the values of its rows; it returns arrays with one entry per row.
        - `per_row`: values `(n,)` of the rows.
        """

        # Recomputed in the backward pass, which would keep all costs otherwise.
        @jax.checkpoint
        def one(block):
            points, mask, values = block
            costs = self.cost(squared_distances(points, self.y))
            return fn(costs, mask[:, None] & self.mask_y[None], *values)

        return map_blocks(one, (self.x, self.mask_x, per_row), len(self.y))

    def soft_minimum(self, g: Array, epsilon: Array) -> Array:
        r"""$-\epsilon \log \sum_j b_j \exp((g_j - c_{ij}) / \epsilon)$ of each row."""
        log_b = log_weights(self.mask_y, self.x.dtype)

        def minimum(costs: Array, valid: Array) -> Array:
            del valid  # the weights say which columns are
            scores = (g[None] - costs) / epsilon + log_b[None]
            return -epsilon * logsumexp(scores, axis=1)

        return jnp.where(self.mask_x, self.over_rows(minimum), 0)

    def hard_minimum(self, g: Array) -> Array:
        r"""$\min_j (c_{ij} - g_j)$ of each row."""

        def minimum(costs: Array, valid: Array) -> Array:
            return jnp.min(jnp.where(valid, costs - g[None], jnp.inf), axis=1)

        return jnp.where(self.mask_x, self.over_rows(minimum), 0)

    def mean_cost(self) -> Array:
        """The mean over all valid pairs."""
        weights = jnp.exp(log_weights(self.mask_y, self.x.dtype))

        def means(costs: Array, valid: Array) -> Array:
            del valid  # the weights say which columns are
            return jnp.sum(costs * weights[None], axis=1)

        return mean_over(self.over_rows(means), self.mask_x)

    def solve(
        self, epsilon: Array, start: Array, *, tolerance: float, max_iterations: int
    ) -> Potentials:
        fixed = self._replace(x=lax.stop_gradient(self.x), y=lax.stop_gradient(self.y))
        minima = SoftMinima(fixed.soft_minimum, fixed.transposed().soft_minimum)
        return sinkhorn(
            minima,
            (len(self.x), len(self.y)),
            epsilon,
            start,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )


def ratios(
    costs: Float[Array, "n m"],
    valid: Bool[Array, "n m"],
    f: Float[Array, " n"],
    g: Float[Array, " m"],
    epsilon: Array,
) -> Float[Array, "n m"]:
    """The plan over the product of its marginals, zero for pairs that are not valid."""
    # Selected before the exponential, which could overflow there.
    exponents = (f[:, None] + g[None] - costs) / epsilon
    return jnp.exp(jnp.where(valid, exponents, -jnp.inf))


def mean_over(values: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """The mean by the weights of the problem, NaN without a valid value.

    Masked values must be finite.
    """
    mean = jnp.sum(jnp.exp(log_weights(mask, values.dtype)) * values)
    return jnp.where(jnp.any(mask), mean, jnp.nan)
