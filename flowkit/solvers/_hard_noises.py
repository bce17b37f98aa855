"""Noises to fit a solver on: those whose paths are hard to follow come more often.

Most of the mean square of a solver's errors may come from a few noises, whose paths turn
sharply between two modes. Plain draws have hardly any of these, and a fit would suit them
and no others.
"""

from typing import NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowkit._solve.ode import end_of
from flowkit._solve.sample import Batch
from flowkit._types import Cond, PRNGKey, VelocityField
from flowkit.solvers._grids import shifted_grid
from flowkit.solvers._walk import walk


_NUM_DRAWS = 16
"""How many noises are drawn for each one that is kept."""


class Noises(NamedTuple):
    """Noises, their conditions, and what their squared errors weigh."""

    starts: Float[Array, "noises ..."]
    cond: Cond
    weights: Float[Array, " noises"]


@eqx.filter_jit
def hard_noises(
    velocity: VelocityField,
    batch: Batch,
    solver: dfx.AbstractSolver,
    num_steps: int,
    key: PRNGKey,
) -> Noises:
    """As many noises as the batch has, out of many times as many.

    A noise is hard if the solver takes it to different ends on two grids.
    """
    draw_key, choice_key = jr.split(key)
    grids = [
        shifted_grid(num_steps, shift, end=end_of(velocity)) for shift in (1.0, 2.0)
    ]

    def difference(start, cond):
        ends = [walk(solver, times, velocity, start, cond) for times in grids]
        return jnp.sum((ends[0] - ends[1]) ** 2)

    def drawn(key):
        starts = batch.starts(key)
        axes = (0, batch.cond_axes)
        return starts, eqx.filter_vmap(difference, in_axes=axes)(starts, batch.cond)

    # One draw of the whole batch after another, to save memory.
    starts, scores = jax.lax.map(drawn, jr.split(draw_key, _NUM_DRAWS))
    scores = jnp.where(jnp.isfinite(scores), scores, 0)
    chosen, weights = priority_sample(scores.ravel(), batch.num_samples, key=choice_key)

    cond = batch.cond
    if batch.cond_axes is not None:
        cond = jax.tree.map(lambda leaf: leaf[chosen % batch.num_samples], cond)
    return Noises(starts.reshape(-1, *batch.shape)[chosen], cond, weights)


def priority_sample(
    scores: Float[Array, " n"],
    number: int,
    *,
    key: PRNGKey,
) -> tuple[Int[Array, " number"], Float[Array, " number"]]:
    r"""Draws without replacement, by scores, and weights that make sums unbiased.

    With $p_i$ halfway from the shares of the scores to $1 / n$, and uniform $u_i$, it keeps
    the largest priorities $p_i / u_i$. With $\tau$ the largest one that is left out, the
    weights are $w_i = \max(1, \tau / p_i)$, so that $\mathbb E \sum_i w_i f_i$ over the kept
    ones is the sum of $f_i$ over all.

    **Reference:** Duffield, Lund and Thorup, Priority sampling for estimation of arbitrary
    subset sums, Journal of the ACM 54 (2007).
    """
    total = jnp.sum(scores)
    shares = scores / jnp.where(total > 0, total, 1) + 1 / len(scores)
    uniform = 1 - jr.uniform(key, shares.shape, shares.dtype)  # never 0
    priorities, order = jax.lax.top_k(shares / uniform, number + 1)
    chosen = order[:number]
    return chosen, jnp.maximum(1, priorities[number] / shares[chosen])
