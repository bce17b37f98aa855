"""The times and coefficients of a solver with few evaluations, fitted to one flow."""

import functools as ft
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._types import Cond, PRNGKey, VelocityField
from flowkit.solvers._adams_bashforth import AdamsBashforth, lagrange_weights
from flowkit.solvers._fit_grid import grid_logits
from flowkit.solvers._fitting import budget_of, minimize, task_of, times_of
from flowkit.solvers._learned_steps import LearnedSteps


def fit_steps(
    flow: VelocityField,
    shape: Sequence[int],
    *,
    num_evaluations: int = 8,
    cond: Cond = None,
    cond_axes: int | None = 0,
    source: AbstractDistribution = Normal(),
    num_noises: int = 1024,
    num_iterations: int = 30,
    batch_size: int | None = None,
    key: PRNGKey,
) -> LearnedSteps:
    r"""A solver of a few evaluations whose times and coefficients suit one flow.

    ```python
    steps = fk.solvers.fit_steps(flow, (2,), num_evaluations=8, key=fit_key)
    samples = fk.sample(flow, (2,), num_samples=1000, solver=steps, key=key)
    ```

    The times are fitted with the two-step Adams-Bashforth method first. From there, the
    Levenberg-Marquardt method minimizes the squared distance between $x_n$ and the end $x(1)$
    of an accurate solve, as a function of the times and of all coefficients of

    $$x_{k+1} = a_k\, x_0 + \sum_{j \le k} b_{kj}\, v_j.$$

    The noises are chosen as in `fk.solvers.fit_grid`: paths that turn sharply come more often.

    Fit it again after training the flow further, and fit it with the guidance and the
    conditions that you will sample with: it knows only the trajectories that it was fitted on.

    **Arguments:**

    - `flow`, `shape`, `cond`, `cond_axes`, `source`: as in `fk.sample`; `cond` has a row for
      each of the `num_noises`.
    - `num_evaluations`: how often the velocity is evaluated for a sample.
    - `num_noises`: how many noises the solver is fitted on. It has $n (n + 5) / 2$
      parameters; to avoid overfitting, the noises should have many times as many entries in
      total.
    - `num_iterations`: the maximum number of iterations of the method.
    - `batch_size`: how many noises go through the flow at a time, by default fewer the more
      entries a sample has.
    - `key`: the key of the noises.

    **Returns:** a `LearnedSteps`, for `fk.sample(..., solver=)`.

    **Reference:** Shaul et al., Bespoke Solvers for Generative Flow Models, 2023 (arXiv
    2310.19075); Bespoke Non-Stationary Solvers, 2024 (arXiv 2403.01329).
    """
    number = as_size("num_evaluations", num_evaluations)
    budget = budget_of(num_iterations, batch_size)
    options: Any = {"cond": cond, "cond_axes": cond_axes, "source": source}
    first = AdamsBashforth()
    task = task_of(flow, shape, num_noises, first, number, **options, key=key)

    logits = grid_logits(task, first, number, budget)
    weights = _weights(np.asarray(times_of(logits, task.t_end), float))
    below = np.tril_indices(number)
    start = (logits, jnp.ones(number), jnp.asarray(weights[below]))

    def steps_of(params):
        logits, scales, values = params
        square = jnp.zeros_like(weights).at[below].set(values)
        return times_of(logits, task.t_end), scales, square

    walk_of = lambda params: ft.partial(_walk, *steps_of(params))
    starts = jax.tree.map(lambda leaf: leaf[None], start)
    times, scales, square = steps_of(minimize(task, walk_of, starts, budget))
    return LearnedSteps(times / task.t_end, scales, square)


def _walk(
    times: Float[Array, " n_and_1"],
    scales: Float[Array, " n"],
    weights: Float[Array, "n n"],
    velocity: VelocityField,
    start: Float[Array, "..."],
    cond: Cond,
) -> Float[Array, "..."]:
    """The end of all steps."""
    number = len(scales)

    # A loop, so that the velocity is compiled once.
    def step(carry, row):
        x, values = carry
        k, time, scale, weights_of_step = row
        values = values.at[k].set(velocity(time, x, cond))
        x = scale * start + jnp.tensordot(weights_of_step, values, axes=1)
        return (x, values), None

    values = jnp.zeros((number, *start.shape), start.dtype)
    rows = (jnp.arange(number), times[:-1], scales, weights)
    (x, _), _ = jax.lax.scan(step, (start, values), rows)
    return x


def _weights(times: np.ndarray) -> np.ndarray:
    """The coefficients of the two-step Adams-Bashforth method, which begins with Euler's."""
    number = len(times) - 1
    weights = np.zeros((number, number), np.float32)
    for k in range(number):
        if k == 0:
            weights[0, 0] = times[1] - times[0]
            continue
        # Each state is the one before and a step.
        weights[k] = weights[k - 1]
        weights[k, [k, k - 1]] += lagrange_weights(
            (times[k], times[k - 1]), times[k + 1]
        )
    return weights
