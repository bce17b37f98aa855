"""Exact optimal transport of a batch, plain and aware of conditions."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowkit._checks import check_rows
from flowkit._couplings.base import check_batches, NO_ASSIGNMENT, Pairing
from flowkit._transport import solve_assignment, squared_costs, squared_distances
from flowkit._types import Cond, FloatArray, Number, PRNGKey


def assignment(
    x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
) -> Pairing:
    r"""Exact optimal transport of the batch: the permutation $\pi$ minimising $\sum_i \|x_{0,\pi(i)} - x_{1,i}\|^2$.

    The source is permuted and the data keep their order, so nothing is dropped and every label stays with its
    example. Examples of one number are sorted, on the device; others are solved on the host (scipy), cubic in the
    batch. In a loop of training `fk.planned_pairs` solves ahead, beside the step.

    **Arguments:**

    - `x0`, `x1`: batches `(b, ...)` of equal shape, of at least two examples.

    **Reference:** Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal
    Transport (2024), arXiv 2302.00482; Pooladian et al., Multisample Flow Matching (2023), arXiv 2304.14772.
    """
    del cond, key
    check_batches(x0, x1)
    if x1[0].size == 1:
        return Pairing(source=_sorted_alike(jnp.ravel(x0), jnp.ravel(x1)))
    return Pairing(
        source=solve_assignment(squared_costs(x1, x0), failure=NO_ASSIGNMENT)
    )


def _sorted_alike(
    x0: Float[Array, " batch"], x1: Float[Array, " batch"]
) -> Int[Array, " batch"]:
    """The order of `x0` in which it has the ranks of `x1`."""
    x0, x1 = jax.lax.stop_gradient((x0, x1))
    return (
        jnp.zeros(x0.shape, jnp.int32)
        .at[jnp.argsort(x1)]
        .set(jnp.argsort(x0).astype(jnp.int32))
    )


class ConditionalAssignment(eqx.Module):
    r"""Exact optimal transport with the condition in the cost (C2OT), so that given a condition the noise stays the
    source.

    Plain assignments tie the noise to the condition by way of the data; in sampling it is not, and samples are worse
    than without a coupling. Here noise $j$ is drawn along with the condition $c_j$ of its batch, and goes to data of
    like conditions:

    $$C_{ij} = \|x_{1,i} - x_{0,j}\|^2 + w \|c_i - c_j\|^2,$$

    infinite where labels differ. Leaves of `cond` that are integers or booleans are labels, floating-point leaves are
    compared by distance. Unless it is given, $w$ is the one for which a part `candidates` of all $(i, j)$ has a cost of
    at most $C_{ii}$: for $w = 0$ this is `fk.assignment`, for large $w$ nothing moves.

    **Arguments:**

    - `candidates`: the part of all pairs that stay candidates, in (0, 1), and above `1 / batch`, which all have: the
      pairs as they were drawn.
    - `weight`: $w$, instead.

    **Reference:** Cheng and Schwing, The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional
    Flow-Based Generation (2025), arXiv 2503.10636.
    """

    candidates: float = 0.05
    weight: float | None = None

    def __init__(self, candidates: Number = 0.05, weight: Number | None = None):
        if not 0 < candidates < 1:
            raise ValueError(
                f"`candidates` must be in (0, 1), a part of all pairs such as 0.05; got {candidates}."
            )
        if weight is not None and not 0 <= weight < math.inf:
            raise ValueError(f"`weight` must be finite and not negative; got {weight}.")
        self.candidates, self.weight = (
            float(candidates),
            None if weight is None else float(weight),
        )

    def __call__(
        self, x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
    ) -> Pairing:
        del key
        check_batches(x0, x1)
        check_rows("cond", cond, x1.shape[0], "example of `x1`")
        if not jax.tree.leaves(cond):
            raise ValueError(
                "`cond` holds no condition to compare; use `fk.assignment` for pairs without one."
            )
        failure = "`x0`, `x1` or `cond` holds NaN or infinity, so there is no assignment; check the data."
        return Pairing(
            source=solve_assignment(self._cost(x0, x1, cond), failure=failure)
        )

    @eqx.filter_jit
    def _cost(self, x0, x1, cond) -> Float[Array, "batch batch"]:
        cost, num = squared_costs(x1, x0), x1.shape[0]
        same, values = jnp.ones((num, num), bool), []
        for leaf in jax.tree.leaves(cond):
            flat = jnp.reshape(leaf, (num, -1))
            if jnp.issubdtype(flat.dtype, jnp.inexact):
                values.append(flat.astype(cost.dtype))
            else:
                same &= jnp.all(flat[:, None] == flat, axis=2)
        if values:
            values = jnp.concatenate(values, axis=1)
            differences = squared_costs(values, values)
            cost += self._weight(x0, x1, differences, same) * differences
        return jnp.where(same, cost, jnp.inf)

    def _weight(self, x0, x1, differences, same) -> Float[Array, ""]:
        """The weight, or the one above which fewer pairs than asked for are at most as dear as those drawn."""
        if self.weight is not None:
            return jnp.asarray(self.weight, differences.dtype)
        num = len(x1)
        if self.candidates * num <= 1:
            raise ValueError(
                f"`candidates`={self.candidates} of all pairs are no more than the {num} pairs that were drawn, so "
                f"nothing could move; give more than 1/{num}, or a larger batch."
            )
        middle = jnp.mean(x1, axis=0)
        cost = squared_distances(x1 - middle, x0 - middle)
        # A pair is a candidate for weights up to this one.
        gain = jnp.diag(cost)[:, None] - cost
        always, own = (differences <= 0) & (gain >= 0), jnp.eye(num, dtype=bool)
        limits = jnp.where(
            always | own, jnp.inf, gain / jnp.where(differences > 0, differences, 1)
        )
        limits = jnp.sort(jnp.where(same & (limits >= 0), limits, -1), axis=None)
        chosen = limits[round((1 - self.candidates) * num**2)]
        largest = jnp.max(limits, where=jnp.isfinite(limits), initial=0)
        return jnp.clip(jnp.where(jnp.isfinite(chosen), chosen, largest), min=0)
