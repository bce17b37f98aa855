r"""Exact optimal transport of a batch, plain and aware of conditions.

A plan between `B` data and `B` noise examples is a permutation $\pi$: datum $i$ gets the
noise $\pi(i)$, at the least total cost $\sum_i C_{i, \pi(i)}$.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowkit._checks import check_rows
from flowkit._couplings.base import check_batches, NO_ASSIGNMENT, Pairing
from flowkit._distances import squared_costs, squared_distances
from flowkit._transport import solve_assignment
from flowkit._types import Cond, FloatArray, Number, PRNGKey


def assignment(
    x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
) -> Pairing:
    r"""Exact optimal transport of the batch.

    The permutation $\pi$ that minimizes $\sum_i \|x_{0,\pi(i)} - x_{1,i}\|^2$.

    The source is permuted and the data keep their order, so nothing is dropped and every
    label stays with its example. Examples of one number are sorted, on the device; others
    are solved on the host (scipy), at a cost that is cubic in the batch.
    `fk.planned_pairs` solves ahead of the training steps.

    **Arguments:**

    - `x0`, `x1`: batches `(b, ...)` of equal shape, with at least two examples.

    **Reference:** Tong et al., Improving and Generalizing Flow-Based Generative Models with
    Minibatch Optimal Transport (2024), arXiv 2302.00482; Pooladian et al., Multisample Flow
    Matching (2023), arXiv 2304.14772.
    """
    del cond, key
    check_batches(x0, x1)

    # On a line, sorting is optimal: the k-th smallest noise goes to the k-th smallest
    # datum.
    if x1[0].size == 1:
        return Pairing(source=_sorted_alike(jnp.ravel(x0), jnp.ravel(x1)))
    columns = solve_assignment(squared_costs(x1, x0), failure=NO_ASSIGNMENT)
    return Pairing(source=columns)


def _sorted_alike(
    x0: Float[Array, " batch"], x1: Float[Array, " batch"]
) -> Int[Array, " batch"]:
    """The order of `x0` in which it has the ranks of `x1`."""
    x0, x1 = jax.lax.stop_gradient((x0, x1))
    # The scatter inverts the order of `x1` without a third sort.
    rows = jnp.zeros(x0.shape, jnp.int32)
    return rows.at[jnp.argsort(x1)].set(jnp.argsort(x0).astype(jnp.int32))


class ConditionalAssignment(eqx.Module):
    r"""Exact optimal transport with the condition in the cost (C2OT).

    A plain assignment makes the noise depend on the condition, through the data. In
    sampling, the noise is independent of the condition, and samples are worse than without
    a coupling. Here noise $j$ is drawn along with the condition $c_j$ of its batch and
    assigned to data with similar conditions, so that the noise given a condition still
    follows the source:

    $$C_{ij} = \|x_{1,i} - x_{0,j}\|^2 + w \|c_i - c_j\|^2,$$

    infinite where labels differ. Leaves of `cond` that are integers or booleans are labels;
    floating-point leaves are compared by distance. By default $w$ is the largest weight at
    which a fraction `candidates` of all $(i, j)$ has a cost of at most $C_{ii}$. With
    $w = 0$ this is `fk.assignment`; for large $w$ nothing moves.

    **Arguments:**

    - `candidates`: the fraction of all pairs that are kept as candidates, in (0, 1) and
      above `1 / batch`, the fraction of the pairs as they were drawn.
    - `weight`: $w$ itself, which replaces `candidates`.

    **Reference:** Cheng and Schwing, The Curse of Conditions: Analyzing and Improving
    Optimal Transport for Conditional Flow-Based Generation (2025), arXiv 2503.10636.
    """

    candidates: float = 0.05
    weight: float | None = None

    def __init__(self, candidates: Number = 0.05, weight: Number | None = None):
        if not 0 < candidates < 1:
            raise ValueError(
                "`candidates` must be in (0, 1), a fraction of all pairs such as 0.05; "
                f"got {candidates}."
            )
        if weight is not None and not 0 <= weight < math.inf:
            raise ValueError(f"`weight` must be finite and not negative; got {weight}.")
        self.candidates = float(candidates)
        self.weight = None if weight is None else float(weight)

    def __call__(
        self, x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
    ) -> Pairing:
        del key
        check_batches(x0, x1)
        check_rows("cond", cond, x1.shape[0], "example of `x1`")
        if not jax.tree.leaves(cond):
            raise ValueError(
                "`cond` holds no condition to compare; use `fk.assignment` for pairs "
                "without one."
            )

        cost = self._cost(x0, x1, cond)
        failure = (
            "`x0`, `x1` or `cond` holds NaN or infinity, so there is no assignment; check "
            "the data."
        )

        return Pairing(source=solve_assignment(cost, failure=failure))

    @eqx.filter_jit
    def _cost(
        self, x0: FloatArray, x1: FloatArray, cond: Cond
    ) -> Float[Array, "batch batch"]:
        num = x1.shape[0]
        cost = squared_costs(x1, x0)
        same = jnp.ones((num, num), bool)
        values = []
        for leaf in jax.tree.leaves(cond):
            flat = jnp.reshape(leaf, (num, -1))
            if jnp.issubdtype(flat.dtype, jnp.inexact):
                values.append(flat.astype(cost.dtype))
            else:
                same &= jnp.all(flat[:, None] == flat[None, :], axis=2)

        if values:
            values = jnp.concatenate(values, axis=1)
            # Exact, so that equal conditions differ by zero.
            differences = jax.lax.stop_gradient(squared_distances(values, values))
            weight = self._weight(x0, x1, differences, same)
            cost = cost + weight * differences
        # Some assignment has a finite cost: the pairs as they were drawn have equal
        # labels.
        return jnp.where(same, cost, jnp.inf)

    def _weight(
        self,
        x0: FloatArray,
        x1: FloatArray,
        differences: Float[Array, "batch batch"],
        same: Bool[Array, "batch batch"],
    ) -> Float[Array, ""]:
        r"""$w$, or the largest weight that leaves enough candidates.

        With transport costs $T_{ij}$ and differences $d_{ij}$ of conditions, pair $(i, j)$
        is a candidate while $T_{ij} + w d_{ij} \le T_{ii}$: for weights up to its limit

        $$w_{ij} = (T_{ii} - T_{ij}) / d_{ij}.$$

        As many pairs are candidates at $w$ as have limits of at least $w$, so the weight is
        a quantile of the limits.
        """
        if self.weight is not None:
            return jnp.asarray(self.weight, differences.dtype)

        num = len(x1)
        if self.candidates * num <= 1:
            raise ValueError(
                f"`candidates`={self.candidates} of all pairs are no more than the {num} "
                f"pairs that were drawn, so nothing could move; give more than 1/{num}, or "
                "a larger batch."
            )
        transport = jax.lax.stop_gradient(squared_distances(x1, x0))
        savings = jnp.diag(transport)[:, None] - transport

        # Pairs of equal conditions are candidates at every weight or at none, and the pairs
        # as they were drawn at every weight.
        alike = differences <= 0
        unlimited = (alike & (savings >= 0)) | jnp.eye(num, dtype=bool)
        limits = savings / jnp.where(alike, 1, differences)
        limits = jnp.where(unlimited, jnp.inf, limits)

        # -1, below every weight, marks pairs that are never candidates: they cost more than
        # the pair as it was drawn, or their labels differ.
        limits = jnp.where(same & (limits >= 0), limits, -1)
        ascending = jnp.sort(limits, axis=None)
        # A fraction `candidates` of all limits lies at or above this entry.
        quantile = ascending[round((1 - self.candidates) * num**2)]

        # Above the largest finite limit only unlimited pairs are left, and no weight
        # changes them.
        largest = jnp.max(limits, where=jnp.isfinite(limits), initial=0)
        weight = jnp.where(jnp.isfinite(quantile), quantile, largest)
        # The quantile is the mark -1 if too few pairs are candidates at any weight.
        return jnp.clip(weight, min=0)
