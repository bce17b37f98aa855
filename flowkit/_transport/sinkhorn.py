"""Entropic optimal transport between two weighted sets, on the device."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int


class Potentials(NamedTuple):
    """Where a Sinkhorn iteration ended; the plan is `a_i b_j exp((f_i + g_j - c_ij) / epsilon)`."""

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    error: Float[Array, ""]
    """The largest relative error of a row's marginal before the last iteration; columns are exact."""
    iterations: Int[Array, ""]


class SoftMinima(NamedTuple):
    r"""The two halves of a Sinkhorn iteration, for costs that need not be in memory.

    - `rows`: `(g, epsilon) -> (n,)`, $-\epsilon \log \sum_j b_j \exp((g_j - c_{ij}) / \epsilon)$.
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
    tolerance: float,
    max_iterations: int,
    rho: tuple[float, float] = (math.inf, math.inf),
) -> Potentials:
    r"""The potentials of $\min_P \langle P, C \rangle + \epsilon\, \mathrm{KL}(P \,\|\, a b^\top)$, in logarithms.

    With finite `rho` the marginals of $P$ are free, at the price $\rho_a \mathrm{KL}(P 1 \,\|\, a) + \rho_b
    \mathrm{KL}(P^\top 1 \,\|\, b)$: each half of an iteration is multiplied by $\rho / (\rho + \epsilon)$, and what
    one potential has too much the other one gets, which saves most iterations.

    The regularisation falls from `start` to `epsilon` by 0.7 each iteration, or faster, to be there after half of
    `max_iterations`; that takes the potentials across in few iterations. Runs under `jax.jit` and `jax.vmap`; no
    gradient flows through it.

    **Arguments:**

    - `minima`: the costs, with their masks and weights.
    - `sizes`: `(n, m)`.
    - `epsilon`, `start`: of the unit of the cost, positive.
    - `tolerance`: stops at this relative error of the rows' marginals, $\max_i |(P 1)_i - a_i| / a_i$.
    - `max_iterations`: stops then in any case.
    - `rho`: of rows and columns, of the unit of the cost; finite only for equal weights of all rows and columns.

    **Reference:** Cuturi, Sinkhorn Distances (2013), arXiv 1306.0895; Peyre and Cuturi, Computational Optimal
    Transport (2019), arXiv 1803.00567. Free marginals: Chizat et al., Scaling Algorithms for Unbalanced Transport
    Problems (2016), arXiv 1607.05816; Sejourne et al., Faster Unbalanced Optimal Transport (2022), arXiv 2201.00730.
    """
    epsilon, start = jax.lax.stop_gradient((epsilon, start))
    decay = jnp.minimum(0.7, (epsilon / start) ** (2 / max_iterations))

    def step(state: Potentials) -> Potentials:
        falling = start * decay ** (state.iterations + 1).astype(start.dtype)
        now = jnp.maximum(epsilon, falling)
        f = minima.rows(state.g, now) / (1 + now / rho[0])
        # The row sums of the plan before this step are a_i exp((f_old - f_new) / epsilon).
        error = jnp.max(jnp.abs(jnp.expm1((state.f - f) / now)))
        error = jnp.where(
            falling > decay * epsilon, jnp.inf, error
        )  # the step before was not at this epsilon yet
        g = minima.columns(f, now) / (1 + now / rho[1])
        shift = _best_shift(f, g, rho)
        return Potentials(f + shift, g - shift, error, state.iterations + 1)

    n, m = sizes
    first = Potentials(
        jnp.zeros(n, epsilon.dtype),
        jnp.zeros(m, epsilon.dtype),
        jnp.asarray(jnp.inf, epsilon.dtype),
        jnp.zeros((), int),
    )
    unfinished = lambda state: (
        (state.error > tolerance) & (state.iterations < max_iterations)
    )
    return jax.lax.stop_gradient(jax.lax.while_loop(unfinished, step, first))


def _best_shift(f: Array, g: Array, rho: tuple[float, float]) -> Float[Array, ""]:
    """The number that, added to `f` and taken from `g`, is best for the dual problem; plans do not see it."""
    if math.isinf(rho[0]) and math.isinf(rho[1]):
        return jnp.zeros((), f.dtype)
    log_mass = lambda p, r: (
        jnp.zeros((), p.dtype)
        if math.isinf(r)
        else logsumexp(-p / r) - math.log(len(p))
    )
    return (log_mass(f, rho[0]) - log_mass(g, rho[1])) / (1 / rho[0] + 1 / rho[1])


def soft_minima(
    cost: Float[Array, "n m"],
    mask_rows: Bool[Array, " n"],
    mask_columns: Bool[Array, " m"],
) -> SoftMinima:
    """The soft minima of a cost matrix in memory, with equal weights of the valid rows and of the valid columns."""
    cost = jax.lax.stop_gradient(cost)
    log_a, log_b = (
        log_weights(mask_rows, cost.dtype),
        log_weights(mask_columns, cost.dtype),
    )

    def rows(g: Array, epsilon: Array) -> Array:
        minimum = -epsilon * logsumexp((g - cost) / epsilon + log_b, axis=1)
        return jnp.where(mask_rows, minimum, 0)

    def columns(f: Array, epsilon: Array) -> Array:
        minimum = -epsilon * logsumexp(
            (f[:, None] - cost) / epsilon + log_a[:, None], axis=0
        )
        return jnp.where(mask_columns, minimum, 0)

    return SoftMinima(rows, columns)


def log_weights(mask: Bool[Array, " n"], dtype: Any) -> Float[Array, " n"]:
    """Logarithms of equal weights of the valid entries that sum to one."""
    count = jnp.maximum(jnp.sum(mask, dtype=dtype), 1)
    return jnp.where(mask, -jnp.log(count), -jnp.inf)
