r"""Pseudoinverse guidance: the likelihood as if the data given a point were Gaussian."""

import operator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import PRNGKey, Scalar
from flowkit.inverse._method import AbstractMethod, check_positive, one_by_one
from flowkit.inverse._problem import (
    grid,
    likelihood,
    Problem,
    Reconstruction,
    transition,
)


class PiGDM(AbstractMethod):
    r"""Pseudoinverse guidance in the stochastic sampler.

    $$D_t \leftarrow D_t + \frac{\sigma_t^2}{\alpha_t} \nabla_{x_t} \log p(y \mid x_t), \qquad
    p(y \mid x_t) \approx \mathcal N(A D_t, r_t^2 A A^\top + s^2 I), \quad
    r_t^2 = \frac{\sigma_t^2}{\alpha_t^2 + \sigma_t^2}.$$

    **What it approximates:** the distribution of the data given $x_t$ by a Gaussian whose
    variance is that of data from $\mathcal N(0, I)$, for which it is exact up to the steps.
    Data with a smaller variance are pulled too little early on.

    **Arguments:**

    - `num_steps`: the steps of a uniform grid.
    - `t_start`: where the grid begins, at the least-norm solution of $A x = y$ with noise.
      Before, the gradient is a small difference of large numbers, which a trained network
      does not have.

    **Reference:** Song, Vahdat, Mardani, Kautz, Pseudoinverse-Guided Diffusion Models for
    Inverse Problems, ICLR 2023.
    """

    needs_noise: ClassVar[bool] = False

    num_steps: int = eqx.field(static=True, default=100, converter=operator.index)
    t_start: float = 0.05

    def __check_init__(self):
        check_positive(num_steps=self.num_steps)
        check_start(self.t_start)

    def sample_all(
        self, problem: Problem, num_samples: int, *, key: PRNGKey
    ) -> Reconstruction:
        return one_by_one(self._sample, problem, num_samples, key)

    def _sample(self, problem: Problem, key: PRNGKey) -> Float[Array, "..."]:
        def step(x, inputs):
            times, key = inputs
            alpha, sigma, _, _ = problem.coefficients(times[0])
            denoised, _, gradient = likelihood(problem, times[0], x)
            denoised = denoised + sigma**2 / alpha * gradient

            mean, variance = transition(problem, times, x, denoised)
            return mean + jnp.sqrt(variance) * problem.noise(key), None

        start_key, *keys = jr.split(key, self.num_steps + 1)
        steps = (grid(self.t_start, self.num_steps, problem.dtype), jnp.stack(keys))
        x, _ = jax.lax.scan(step, warm_start(problem, self.t_start, start_key), steps)
        return x


def warm_start(problem: Problem, t: Scalar, key: PRNGKey) -> Float[Array, "..."]:
    """A point at time `t` on the path to the least-norm solution."""
    alpha, sigma, _, _ = problem.coefficients(jnp.asarray(t, problem.dtype))
    return alpha * problem.least_norm() + sigma * problem.noise(key)


def check_start(t_start: float) -> None:
    if not 0 < t_start < 1:
        raise ValueError(
            f"`t_start` must lie between 0 and 1, got {t_start}; at 0 the likelihood has "
            "no gradient."
        )
