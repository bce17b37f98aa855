"""Optimal transport between two weighted sets, given their costs: exact on the host, entropic on the device."""

import functools as ft
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowkit._types import AnyArray


def solve_assignment(
    cost: Float[Array, "n m"],
    mask_rows: Bool[Array, " n"] | None = None,
    mask_columns: Bool[Array, " m"] | None = None,
    *,
    failure: str | None = None,
) -> Int[Array, " n"]:
    """For each valid row the column assigned to it at the least total cost, exactly; no gradient flows through it.

    Solved on the host (scipy) in `O(n^3)`; the problems of a `jax.vmap` go to the host at once, and there to threads.

    **Arguments:**

    - `cost`: `(n, m)`.
    - `mask_rows`, `mask_columns`: which rows and columns take part, all if `None`; as many of one as of the other.
    - `failure`: the message of a `ValueError` where there is no assignment. If `None`, the columns are -1 there.

    **Returns:** columns, -1 for rows that take no part.
    """
    rows, columns = (
        jnp.ones(size, bool) if mask is None else mask
        for size, mask in zip(cost.shape, (mask_rows, mask_columns), strict=True)
    )
    result = jax.ShapeDtypeStruct(rows.shape, jnp.int32)
    solve = ft.partial(_solve_on_host, failure=failure)
    return jax.pure_callback(solve, result, jax.lax.stop_gradient(cost), rows, columns, vmap_method="broadcast_all")


def _solve_on_host(cost: AnyArray, rows: AnyArray, columns: AnyArray, *, failure: str | None) -> np.ndarray:
    # A callback is handed jax arrays, which must not be computed with in here.
    cost, rows, columns = np.asarray(cost), np.asarray(rows), np.asarray(columns)
    problems = [cost.reshape(-1, *cost.shape[-2:]), *(mask.reshape(-1, mask.shape[-1]) for mask in (rows, columns))]
    solve = ft.partial(_solve_one, failure=failure)
    if len(problems[0]) == 1:
        return solve(*(array[0] for array in problems)).reshape(rows.shape)
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(solve, *problems))).reshape(rows.shape)


def _solve_one(cost: np.ndarray, rows: np.ndarray, columns: np.ndarray, *, failure: str | None) -> np.ndarray:
    # Imported here: scipy.optimize takes as long to import as jax.
    from scipy.optimize import linear_sum_assignment

    indices = np.full(rows.shape, -1, np.int32)
    valid_rows, valid_columns = np.flatnonzero(rows), np.flatnonzero(columns)
    if len(valid_rows) < len(rows) or len(valid_columns) < len(columns):
        cost = cost[np.ix_(valid_rows, valid_columns)]
    if len(valid_rows) == len(valid_columns) and np.isfinite(cost).all():
        indices[valid_rows] = valid_columns[linear_sum_assignment(cost)[1]]
    elif failure is not None:
        raise ValueError(failure)
    return indices
