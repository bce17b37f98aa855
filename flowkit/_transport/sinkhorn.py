"""Entropic optimal transport between two weighted sets, on the device."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int

from flowkit._types import Number


LEAST_EPSILON = 1e-6
"""The least regularization that float32 resolves, relative to the mean cost.

Potentials are of the size of the cost, so they are rounded by some 1e-7 of it. Divided by
a smaller epsilon, this rounding becomes an error of order one in the logarithm of the
plan, and the iteration stalls at wrong marginals.
"""


# The regularization falls in this many iterations, divided by `sqrt(epsilon / start)`. More take
# longer where the tolerance is loose, and fewer leave larger errors where it is tight.
_FALLS = 1.3


class Potentials(NamedTuple):
    """Where a Sinkhorn iteration ended.

    The plan is `a_i b_j exp((f_i + g_j - c_ij) / epsilon)`.
    """

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    error: Float[Array, ""]
    """The largest relative error of a row's marginal before the last iteration; columns
    are exact."""
    iterations: Int[Array, ""]


class SoftMinima(NamedTuple):
    r"""The two halves of a Sinkhorn iteration, for costs that need not be in memory.

    - `rows`: `(g, epsilon) -> (n,)`,
      $-\epsilon \log \sum_j b_j \exp((g_j - c_{ij}) / \epsilon)$.
    - `columns`: `(f, epsilon) -> (m,)`, likewise over rows.
    """

    rows: Callable[[Array, Array], Array]
    columns: Callable[[Array, Array], Array]


def sinkhorn(
    minima: SoftMinima,
    sizes: tuple[int, int],
    epsilon: Float[Array, ""],
    start: Float[Array, ""],
    *,
    tolerance: float | Array,
    max_iterations: int,
    rho: tuple[float | Array, float | Array] = (math.inf, math.inf),
) -> Potentials:
    r"""The potentials of $\min_P \langle P, C \rangle + \epsilon\, \mathrm{KL}(P \,\|\, a b^\top)$.

    Finite `rho` frees the marginals of $P$ at the price $\rho_a \mathrm{KL}(P 1 \,\|\, a) +
    \rho_b \mathrm{KL}(P^\top 1 \,\|\, b)$. Each half of an iteration is then multiplied by
    $\rho / (\rho + \epsilon)$, and mass is moved from one potential to the other in the
    best way, which saves most iterations.

    The regularization falls from `start` to `epsilon` by the same factor in each of about
    `1.3 * sqrt(start / epsilon)` iterations, at most half of `max_iterations`. A small
    `epsilon` converges slowly, in about `start / epsilon` iterations, but in far fewer from a
    close start. Everything is computed in logarithms, and runs under `jax.jit` and
    `jax.vmap`; no gradient flows through it.

    **Arguments:**

    - `minima`: the costs, with their masks and weights.
    - `sizes`: `(n, m)`.
    - `epsilon`, `start`: the regularization at the end and at the start, in the unit of
      the cost, positive.
    - `tolerance`: the iteration stops at this relative error of the rows' marginals,
      $\max_i |(P 1)_i - a_i| / a_i$.
    - `max_iterations`: the most iterations.
    - `rho`: the prices of rows and columns, in the unit of the cost; `math.inf` prescribes
      a marginal. Finite prices require equal weights for all rows, and for all columns.

    **Reference:** Cuturi, Sinkhorn Distances (2013), arXiv 1306.0895; Peyre and Cuturi,
    Computational Optimal Transport (2019), arXiv 1803.00567. Falling regularization:
    Schmitzer, Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport
    Problems (2019), arXiv 1610.06519. Free marginals: Chizat et
    al., Scaling Algorithms for Unbalanced Transport Problems (2016), arXiv 1607.05816;
    Sejourne et al., Faster Unbalanced Optimal Transport (2022), arXiv 2201.00730.
    """
    epsilon, start = jax.lax.stop_gradient((epsilon, start))
    ratio = epsilon / start
    falls = jnp.minimum(_FALLS / jnp.sqrt(ratio), max_iterations / 2)
    decay = ratio ** (1 / falls)

    def step(state: Potentials) -> Potentials:
        falling = start * decay ** (state.iterations + 1).astype(start.dtype)
        now = jnp.maximum(epsilon, falling)

        f = minima.rows(state.g, now) / (1 + now / rho[0])
        # The row sums of the plan before this step are a_i exp((f_old - f_new) / epsilon).
        error = jnp.max(jnp.abs(jnp.expm1((state.f - f) / now)))
        # They mean nothing while the step before had a larger epsilon.
        error = jnp.where(falling > decay * epsilon, jnp.inf, error)

        g = minima.columns(f, now) / (1 + now / rho[1])
        shift = _best_shift(f, g, rho)
        return Potentials(f + shift, g - shift, error, state.iterations + 1)

    def unfinished(state: Potentials) -> Bool[Array, ""]:
        return (state.error > tolerance) & (state.iterations < max_iterations)

    n, m = sizes
    first = Potentials(
        f=jnp.zeros(n, epsilon.dtype),
        g=jnp.zeros(m, epsilon.dtype),
        error=jnp.asarray(jnp.inf, epsilon.dtype),
        iterations=jnp.zeros((), int),
    )
    return jax.lax.stop_gradient(jax.lax.while_loop(unfinished, step, first))


def is_prescribed(rho: float | Array) -> bool:
    """Whether a price is `math.inf`; an array, of any value, leaves the marginal free."""
    return isinstance(rho, float) and math.isinf(rho)


def _best_shift(
    f: Array, g: Array, rho: tuple[float | Array, float | Array]
) -> Float[Array, ""]:
    """What to add to `f` and take from `g` for the best dual value; no plan depends on it."""
    if all(map(is_prescribed, rho)):
        return jnp.zeros((), f.dtype)

    difference = _log_mass(f, rho[0]) - _log_mass(g, rho[1])
    return difference / (1 / rho[0] + 1 / rho[1])


def _log_mass(potential: Array, rho: float | Array) -> Float[Array, ""]:
    if is_prescribed(rho):
        return jnp.zeros((), potential.dtype)
    return logsumexp(-potential / rho) - math.log(len(potential))


def soft_minima(
    cost: Float[Array, "n m"],
    mask_rows: Bool[Array, " n"],
    mask_columns: Bool[Array, " m"],
) -> SoftMinima:
    """The soft minima of a cost matrix in memory.

    All valid rows have equal weights, and all valid columns.
    """
    cost = jax.lax.stop_gradient(cost)
    log_a = log_weights(mask_rows, cost.dtype)
    log_b = log_weights(mask_columns, cost.dtype)

    def rows(g: Array, epsilon: Array) -> Array:
        scores = (g[None, :] - cost) / epsilon + log_b[None, :]
        return jnp.where(mask_rows, -epsilon * logsumexp(scores, axis=1), 0)

    def columns(f: Array, epsilon: Array) -> Array:
        scores = (f[:, None] - cost) / epsilon + log_a[:, None]
        return jnp.where(mask_columns, -epsilon * logsumexp(scores, axis=0), 0)

    return SoftMinima(rows, columns)


def log_weights(mask: Bool[Array, " n"], dtype: Any) -> Float[Array, " n"]:
    """Logarithms of equal weights of the valid entries that sum to one."""
    count = jnp.maximum(jnp.sum(mask, dtype=dtype), 1)
    return jnp.where(mask, -jnp.log(count), -jnp.inf)


def check_epsilon(epsilon: Number, instead: str) -> None:
    """Raises for a relative regularization that is not one, or that float32 cannot resolve."""
    if not 0 < epsilon < math.inf:
        raise ValueError(
            "`epsilon` must be positive and finite, a fraction of the mean cost such as "
            f"0.05; got {epsilon}."
        )
    if epsilon < LEAST_EPSILON:
        raise ValueError(
            f"`epsilon` is {epsilon} of the mean cost, less than float32 can resolve "
            f"({LEAST_EPSILON}); raise it, or use `{instead}`."
        )
