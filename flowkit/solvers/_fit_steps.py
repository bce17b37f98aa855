"""The times and coefficients of a solver with few evaluations, fitted to one flow."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import jax.random as jr
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
    num_noises: int = 512,
    num_iterations: int = 3000,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    key: PRNGKey,
) -> LearnedSteps:
    r"""A solver of a few evaluations whose times and coefficients suit one flow.

    ```python
    steps = fk.solvers.fit_steps(flow, (2,), num_evaluations=8, key=fit_key)
    samples = fk.sample(flow, (2,), num_samples=1000, solver=steps, key=key)
    ```

    The times are fitted with the two-step Adams-Bashforth method first. From there
    $\log \mathrm{rms}(x_n - x(1))$ is minimized over the times and over all coefficients of

    $$x_{k+1} = a_k\, x_0 + \sum_{j \le k} b_{kj}\, v_j.$$

    Fit it again after the flow was trained further, and under the guidance and the conditions
    of use: it knows only the trajectories that it was fitted on.

    **Arguments:**

    - `flow`, `shape`, `cond`, `cond_axes`, `source`: as in `fk.sample`; `cond` has a row for
      each of the `num_noises`.
    - `num_evaluations`: how often the velocity is evaluated for a sample.
    - `num_noises`: how many noises the solver is fitted on.
    - `num_iterations`, `batch_size`, `learning_rate`: of Adam. `batch_size` noises are taken
      at a time, by default all of them; take fewer for images.
    - `key`: the key of the noises.

    **Returns:** a `LearnedSteps`, for `fk.sample(..., solver=)`.

    **Reference:** Shaul et al., Bespoke Solvers for Generative Flow Models, 2023 (arXiv
    2310.19075); Bespoke Non-Stationary Solvers, 2024 (arXiv 2403.01329).
    """
    number = as_size("num_evaluations", num_evaluations)
    budget = budget_of(num_iterations, batch_size, learning_rate, num_noises)
    noise_key, grid_key, fit_key = jr.split(key, 3)
    options: Any = {"cond": cond, "cond_axes": cond_axes, "source": source}
    task = task_of(flow, shape, num_noises, **options, key=noise_key)

    short = budget.part(1 / 6, rate=10)
    logits = grid_logits(task, AdamsBashforth(), number, short, key=grid_key)
    weights = _weights(np.asarray(times_of(logits, task.t_end), float))
    start = (logits, jnp.ones(number), jnp.asarray(weights))

    def walk_of(params):
        logits, scales, weights = params
        times = times_of(logits, task.t_end)
        return lambda *start: _walk(times, scales, weights, *start)

    logits, scales, weights = minimize(task, walk_of, start, budget, key=fit_key)
    return LearnedSteps(times_of(logits), scales, jnp.tril(weights))


def _walk(
    times: Float[Array, " n_and_1"],
    scales: Float[Array, " n"],
    weights: Float[Array, "n n"],
    velocity: VelocityField,
    start: Float[Array, "..."],
    cond: Cond,
) -> Float[Array, "..."]:
    """The end of all steps."""
    x = start
    values = []
    for k in range(len(scales)):
        values.append(velocity(times[k], x, cond))
        x = scales[k] * start
        for j, value in enumerate(values):
            x = x + weights[k, j] * value
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
