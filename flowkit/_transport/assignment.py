"""Optimal transport between two weighted sets, given their costs: exact on the host, entropic on the device."""

import contextlib
import functools as ft
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Bool, Float, Int

from flowkit._types import AnyArray, is_traced


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
