"""Exact optimal transport between two sets of equal weights, solved on the host."""

import functools as ft
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Bool, Float, Int

from flowkit._types import AnyArray, is_traced


# Below this many rows the host solves a problem faster than the device reduces it.
_REDUCED_FROM = 128

# The reduction lowers its regularization in this many stages, from the spread of the costs
# to a thousandth of it, with this many iterations at each.
_STAGES = 8
_ITERATIONS = 8

# Stands for zero where a quotient or a logarithm follows.
_TINY = 1e-30


def solve_assignment(
    cost: Float[Array, "*b n m"],
    mask_rows: Bool[Array, "*b n"] | None = None,
    mask_columns: Bool[Array, "*b m"] | None = None,
    *,
    failure: str | None = None,
) -> Int[Array, "*b n"]:
    """The column of each valid row in the exact assignment of least total cost.

    Solved on the host (scipy) in `O(n^3)`; no gradient flows through it. Several problems,
    including those of a `jax.vmap`, go to the host together and are distributed over
    threads. Large ones are first reduced on the device by approximate dual potentials,
    which changes no assignment and makes the host several times faster.

    **Arguments:**

    - `cost`: `(n, m)`, or several of them; infinity forbids a pair.
    - `mask_rows`, `mask_columns`: which rows and columns take part, all if `None`; as many
      rows as columns.
    - `failure`: the message of a `ValueError` where no assignment exists. If `None`, the
      columns are -1 there.

    **Returns:** columns, -1 for rows that take no part.
    """
    cost = jax.lax.stop_gradient(cost)
    *batch, n, m = cost.shape
    rows = np.ones((*batch, n), bool) if mask_rows is None else mask_rows
    columns = np.ones((*batch, m), bool) if mask_columns is None else mask_columns

    if min(n, m) >= _REDUCED_FROM:
        cost = _reduce(cost, rows, columns)

    solve = ft.partial(_solve_on_host, failure=failure)
    if not is_traced(cost, rows, columns):
        # No callback here: its thread of the host would wait for those of the device.
        return jnp.asarray(solve(cost, rows, columns))

    result = jax.ShapeDtypeStruct(rows.shape, jnp.int32)

    def solve_in_place(_, indices, *problem) -> None:
        arrays = [np.asarray(array) for array in problem]
        np.asarray(indices)[...] = solve(*arrays)

    def solve_by_copies(*problem) -> Int[Array, "*b n"]:
        return jax.pure_callback(solve, result, *problem, vmap_method="broadcast_all")

    # On a CPU the costs are read in the memory of the device. `pure_callback` copies large
    # arrays by another thread, and on a machine with one processor that thread waits for
    # the callback, which waits for the copy.
    return jax.lax.platform_dependent(
        cost,
        rows,
        columns,
        cpu=buffer_callback(solve_in_place, result, vmap_method="broadcast_all"),
        default=solve_by_copies,
    )


@jax.jit
@ft.partial(jnp.vectorize, signature="(n,m),(n),(m)->(n,m)")
def _reduce(
    cost: Float[Array, "n m"], rows: Bool[AnyArray, " n"], columns: Bool[AnyArray, " m"]
) -> Float[Array, "n m"]:
    """The cost minus potentials of its rows and columns that are nearly optimal.

    The host adds rows one by one along shortest paths, which are short where good pairs
    have reduced costs near zero. The potentials are entropic ones. Unlike in `sinkhorn`,
    the exponentials are taken once for several iterations: sums that vanish in between are
    replaced by tiny numbers, which is accurate enough here and several times faster.
    """
    valid = rows[:, None] & columns[None, :] & jnp.isfinite(cost)
    count = jnp.maximum(jnp.sum(valid, dtype=cost.dtype), 1)
    mean = jnp.sum(jnp.where(valid, cost, 0)) / count
    least = jnp.min(cost, where=valid, initial=jnp.inf)
    spread = jnp.maximum(mean - least, _TINY)

    def stage(
        k: Int[Array, ""], potentials: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        _, g = potentials
        epsilon = spread * 1e-3 ** ((k + 1).astype(cost.dtype) / _STAGES)
        scores = jnp.where(valid, (g[None, :] - cost) / epsilon, -jnp.inf)
        top = jnp.max(scores, axis=1, initial=jnp.finfo(cost.dtype).min)
        kernel = jnp.exp(scores - top[:, None])

        u = jnp.ones_like(top)
        v = jnp.ones_like(g)
        for _ in range(_ITERATIONS):
            u = 1 / jnp.maximum(kernel @ v, _TINY)
            v = 1 / jnp.maximum(u @ kernel, _TINY)

        return epsilon * (jnp.log(u) - top), g + epsilon * jnp.log(v)

    n, m = cost.shape
    start = (jnp.zeros(n, cost.dtype), jnp.zeros(m, cost.dtype))
    f, g = jax.lax.fori_loop(0, _STAGES, stage, start)
    f = jnp.where(rows, f, 0)
    g = jnp.where(columns, g, 0)
    return cost - f[:, None] - g[None, :]


class _Problem(NamedTuple):
    """One assignment problem, on the host."""

    cost: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def _solve_on_host(
    cost: AnyArray, rows: AnyArray, columns: AnyArray, *, failure: str | None
) -> np.ndarray:
    # A callback is handed jax arrays, and no jax function may be called in here.
    cost = np.asarray(cost)
    rows = np.asarray(rows)
    columns = np.asarray(columns)

    stacked = zip(
        cost.reshape(-1, *cost.shape[-2:]),
        rows.reshape(-1, rows.shape[-1]),
        columns.reshape(-1, columns.shape[-1]),
        strict=True,
    )
    problems = [_Problem(*parts) for parts in stacked]
    solve = ft.partial(_solve_one, failure=failure)

    if len(problems) == 1:
        return solve(problems[0]).reshape(rows.shape)
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(solve, problems))).reshape(rows.shape)


def _solve_one(problem: _Problem, *, failure: str | None) -> np.ndarray:
    # Imported here: scipy.optimize takes as long to import as jax.
    from scipy.optimize import linear_sum_assignment

    cost = problem.cost
    valid_rows = np.flatnonzero(problem.rows)
    valid_columns = np.flatnonzero(problem.columns)
    if len(valid_rows) < cost.shape[0] or len(valid_columns) < cost.shape[1]:
        cost = cost[np.ix_(valid_rows, valid_columns)]

    indices = np.full(problem.rows.shape, -1, np.int32)
    if len(valid_rows) == len(valid_columns):
        try:
            _, assigned = linear_sum_assignment(cost)
        except ValueError:
            # The cost holds NaN, or all pairs of some row or column are forbidden.
            pass
        else:
            indices[valid_rows] = valid_columns[assigned]
            return indices

    if failure is not None:
        raise ValueError(failure)
    return indices
