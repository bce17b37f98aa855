r"""Plug-and-play: gradient steps on the residual alternate with denoising by the flow."""

import operator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import PRNGKey
from flowkit.inverse._method import AbstractMethod, check_positive, one_by_one
from flowkit.inverse._operators import norm_squared
from flowkit.inverse._problem import Problem, Reconstruction


class PnPFlow(AbstractMethod):
    r"""Plug-and-play with a flow as the denoiser, for `t` from 0 to 1:

    $$z = x - \gamma_t A^\top (A x - y), \qquad
    x \leftarrow \frac1n \sum_i D_t(\alpha_t z + \sigma_t \epsilon_i), \qquad
    \gamma_t = (1 - t)^p / |A|^2.$$

    No gradient of the network is taken. **What it approximates:** one good example, not the
    posterior. Samples differ only by what is left of the noise $\epsilon$. `noise_std` is
    not used.

    **Arguments:**

    - `num_steps`: the number of times.
    - `num_averages`: $n$, the noises of a step.
    - `power`: $p$; a larger one trusts the observation less near the end.

    **Reference:** Martin, Gagneux, Hagemann, Steidl, PnP-Flow: Plug-and-Play Image
    Restoration with Flow Matching, 2024 (arXiv 2410.02423), algorithm 3.
    """

    needs_noise: ClassVar[bool] = False

    num_steps: int = eqx.field(static=True, default=100, converter=operator.index)
    num_averages: int = eqx.field(static=True, default=5, converter=operator.index)
    power: float = 0.5

    def __check_init__(self):
        check_positive(num_steps=self.num_steps, num_averages=self.num_averages)
        if self.power < 0:
            raise ValueError(f"`power` must not be negative, got {self.power}.")

    def sample_all(
        self, problem: Problem, num_samples: int, *, key: PRNGKey
    ) -> Reconstruction:
        return one_by_one(self._sample, problem, num_samples, key)

    def _sample(self, problem: Problem, key: PRNGKey) -> Float[Array, "..."]:
        steepest = norm_squared(problem.operator, problem.shape, problem.dtype)
        # Where nothing is observed there is no step to take.
        largest_step = jnp.where(steepest > 0, 1 / jnp.maximum(steepest, 1e-30), 0.0)

        def step(x, inputs):
            t, key = inputs
            alpha, sigma, _, _ = problem.coefficients(t)
            size = largest_step * (1 - t) ** self.power
            z = x + size * problem.operator.adjoint(problem.residual(x))

            denoise = lambda key: problem.denoised(
                t, alpha * z + sigma * problem.noise(key)
            )
            keys = jr.split(key, self.num_averages)
            return jnp.mean(jax.vmap(denoise)(keys), axis=0), None

        times = jnp.arange(self.num_steps, dtype=problem.dtype) / self.num_steps
        steps = (times, jr.split(key, self.num_steps))
        x, _ = jax.lax.scan(step, problem.least_norm(), steps)
        return x
