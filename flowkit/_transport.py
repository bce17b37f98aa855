"""Optimal transport between two weighted sets, given their costs: exact on the host, entropic on the device."""

import contextlib
import functools as ft
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int

from flowkit._types import AnyArray, FloatArray, is_traced


# Assignments of fewer rows are solved faster as they are.
_REDUCED_FROM = 128

# Of their reduction: how often the regularisation is lowered, and the iterations at each.
_STAGES, _ITERATIONS = 8, 8


def solve_assignment(
    cost: Float[Array, "n m"],
    mask_rows: Bool[Array, " n"] | None = None,
    mask_columns: Bool[Array, " m"] | None = None,
    *,
    failure: str | None = None,
) -> Int[Array, " n"]:
    """For each valid row the column assigned to it at the least total cost, exactly; no gradient flows through it.

    Solved on the host (scipy) in `O(n^3)`; the problems of a `jax.vmap` go to the host at once, and there to threads.
    Large problems are first reduced on the device by approximate dual potentials, which changes no assignment and makes
    the host several times faster.

    **Arguments:**

    - `cost`: `(n, m)`; infinity forbids a pair.
    - `mask_rows`, `mask_columns`: which rows and columns take part, all if `None`; as many of one as of the other.
    - `failure`: the message of a `ValueError` where there is no assignment. If `None`, the columns are -1 there.

    **Returns:** columns, -1 for rows that take no part.
    """
    rows, columns = (
        np.ones(size, bool) if mask is None else mask
        for size, mask in zip(cost.shape, (mask_rows, mask_columns), strict=True)
    )
    cost = jax.lax.stop_gradient(cost)
    if min(cost.shape) >= _REDUCED_FROM:
        cost = _reduce(cost, rows, columns)
    solve = ft.partial(_solve_on_host, failure=failure)
    if not is_traced(cost, rows, columns):
        # Without a callback, in which threads of the host would wait for those of the device.
        return jnp.asarray(solve(cost, rows, columns))
    result = jax.ShapeDtypeStruct(rows.shape, jnp.int32)

    def solve_in_place(_, indices, *problem) -> None:
        np.asarray(indices)[...] = solve(*map(np.asarray, problem))

    # On a CPU from the memory of the device: `pure_callback` copies large arrays by a thread that, where there is one
    # processor only, waits for the callback.
    return jax.lax.platform_dependent(
        cost,
        rows,
        columns,
        cpu=buffer_callback(solve_in_place, result, vmap_method="broadcast_all"),
        default=lambda *problem: jax.pure_callback(
            solve, result, *problem, vmap_method="broadcast_all"
        ),
    )


@jax.jit
def _reduce(
    cost: Float[Array, "n m"], rows: Bool[AnyArray, " n"], columns: Bool[AnyArray, " m"]
) -> Float[Array, "n m"]:
    """The cost less potentials of its rows and columns that are nearly optimal ones.

    The solver adds rows one by one along shortest paths, which are short where good pairs have reduced costs near zero.
    The potentials are entropic ones. Unlike in `sinkhorn` the exponentials are taken once for several iterations, which
    is as good as exact here, and several times faster: products that vanish in between are replaced by small numbers.
    """
    valid = rows[:, None] & columns & jnp.isfinite(cost)
    mean = jnp.sum(jnp.where(valid, cost, 0)) / jnp.maximum(
        jnp.sum(valid, dtype=cost.dtype), 1
    )
    spread = jnp.maximum(mean - jnp.min(cost, where=valid, initial=jnp.inf), 1e-30)
    inverse = lambda sums: 1 / jnp.maximum(sums, 1e-30)

    def stage(
        k: Int[Array, ""], potentials: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        _, g = potentials
        epsilon = spread * 1e-3 ** ((k + 1).astype(cost.dtype) / _STAGES)
        scores = jnp.where(valid, (g - cost) / epsilon, -jnp.inf)
        top = jnp.max(scores, axis=1, initial=jnp.finfo(cost.dtype).min)
        kernel = jnp.exp(scores - top[:, None])
        u, v = jnp.ones_like(top), jnp.ones_like(g)
        for _ in range(_ITERATIONS):
            u = inverse(kernel @ v)
            v = inverse(u @ kernel)
        return epsilon * (jnp.log(u) - top), g + epsilon * jnp.log(v)

    zeros = [jnp.zeros(size, cost.dtype) for size in cost.shape]
    f, g = jax.lax.fori_loop(0, _STAGES, stage, (zeros[0], zeros[1]))
    return cost - jnp.where(rows, f, 0)[:, None] - jnp.where(columns, g, 0)


def _solve_on_host(
    cost: AnyArray, rows: AnyArray, columns: AnyArray, *, failure: str | None
) -> np.ndarray:
    # A callback is handed jax arrays, which must not be computed with in here.
    cost, rows, columns = np.asarray(cost), np.asarray(rows), np.asarray(columns)
    problems = [
        cost.reshape(-1, *cost.shape[-2:]),
        *(mask.reshape(-1, mask.shape[-1]) for mask in (rows, columns)),
    ]
    solve = ft.partial(_solve_one, failure=failure)
    if len(problems[0]) == 1:
        return solve(*(array[0] for array in problems)).reshape(rows.shape)
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(solve, *problems))).reshape(rows.shape)


def _solve_one(
    cost: np.ndarray, rows: np.ndarray, columns: np.ndarray, *, failure: str | None
) -> np.ndarray:
    # Imported here: scipy.optimize takes as long to import as jax.
    from scipy.optimize import linear_sum_assignment

    indices = np.full(rows.shape, -1, np.int32)
    valid_rows, valid_columns = np.flatnonzero(rows), np.flatnonzero(columns)
    if len(valid_rows) < len(rows) or len(valid_columns) < len(columns):
        cost = cost[np.ix_(valid_rows, valid_columns)]
    if len(valid_rows) == len(valid_columns):
        with contextlib.suppress(
            ValueError
        ):  # of NaN, and of rows or columns whose pairs are all forbidden
            indices[valid_rows] = valid_columns[linear_sum_assignment(cost)[1]]
            return indices
    if failure is not None:
        raise ValueError(failure)
    return indices


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


def round_to_permutation(
    scores: Float[Array, "n n"], mask: Bool[Array, " n"]
) -> Int[Array, " n"]:
    """A permutation of high scores: of all free pairs the best is taken, again and again.

    All pairs that are the best of both their row and their column are taken at once, which comes to the same.

    **Returns:** a column for each row; rows that are masked keep their own.
    """
    own = jnp.arange(mask.shape[0], dtype=jnp.int32)
    scores = jnp.nan_to_num(
        scores
    )  # of non-finite data, of which no pair would ever be taken

    def step(state):
        columns, taken = state
        free = jnp.where((columns < 0)[:, None] & ~taken, scores, -jnp.inf)
        best = jnp.argmax(free, axis=1).astype(jnp.int32)
        mutual = (columns < 0) & (jnp.argmax(free, axis=0)[best] == own)
        return jnp.where(mutual, best, columns), taken.at[
            jnp.where(mutual, best, len(own))
        ].set(True, mode="drop")

    start = jnp.where(mask, -1, own), ~mask
    return jax.lax.while_loop(lambda state: jnp.any(state[0] < 0), step, start)[0]


def improve_by_swaps(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    columns: Int[Array, " n"],
    mask: Bool[Array, " n"],
    num_rounds: int,
) -> Int[Array, " n"]:
    r"""Lowers $\sum_i \|x_i - y_{\pi(i)}\|^2$ by exchanging two partners, all pairs at once that suit each other best.

    An exchange of $i$ and $k$ lowers the cost by $-2 (x_i - x_k) \cdot (y_{\pi(i)} - y_{\pi(k)})$: optimal transport is
    monotone.
    """
    own = jnp.arange(mask.shape[0], dtype=jnp.int32)

    def step(state):
        columns, num, _ = state
        z = y[columns]
        crossed = jnp.matmul(
            jnp.concatenate([x, z], 1),
            jnp.concatenate([z, x], 1).T,
            precision=jax.lax.Precision.HIGHEST,
        )
        inner = jnp.sum(x * z, axis=1)
        gain = jnp.where(
            mask[:, None] & mask, crossed - inner[:, None] - inner, -jnp.inf
        )
        best = jnp.where(
            (jnp.max(gain, axis=1) > 0) & mask,
            jnp.argmax(gain, axis=1).astype(jnp.int32),
            own,
        )
        partner = jnp.where(best[best] == own, best, own)
        return columns[partner], num + 1, jnp.any(partner != own)

    unfinished = lambda state: state[2] & (state[1] < num_rounds)
    return jax.lax.while_loop(unfinished, step, (columns, 0, jnp.asarray(True)))[0]


@jax.jit
def squared_costs(x: FloatArray, y: FloatArray) -> Float[Array, "a b"]:
    """$|x_i - y_j|^2$ between the flattened rows of two batches, each moved to mean zero, without gradient.

    Moving a batch changes no optimal permutation, and keeps the products of far-away batches exact.
    """
    x, y = (jnp.reshape(z, (z.shape[0], -1)) for z in (x, y))
    return squared_distances(x - jnp.mean(x, axis=0), y - jnp.mean(y, axis=0))


def squared_distances(x: FloatArray, y: FloatArray) -> Float[Array, "a b"]:
    """$|x_i - y_j|^2$ between the flattened rows of two batches, without gradient."""
    x, y = (jax.lax.stop_gradient(jnp.reshape(z, (z.shape[0], -1))) for z in (x, y))
    inner = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(x**2, axis=-1)[:, None] + jnp.sum(y**2, axis=-1) - 2 * inner
