r"""Diffusion posterior sampling: a gradient step on the residual after every random step."""

import operator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import PRNGKey
from flowkit.inverse._method import AbstractMethod, check_positive, one_by_one
from flowkit.inverse._problem import grid, Problem, Reconstruction, transition


class DPS(AbstractMethod):
    r"""Diffusion posterior sampling: $x_s \leftarrow x_s - \zeta\, \nabla_{x_t} |y - A D_t(x_t)|$.

    $x_s$ is the next point of the stochastic sampler. **What it approximates:** the
    likelihood $p(y \mid x_t)$ by $p(y \mid D_t(x_t))$, as if the data were known given
    $x_t$, and then its gradient by one of fixed length. `noise_std` is not used. More steps
    make the pull stronger, so tune `scale` for a given `num_steps`. The spread is not that
    of the posterior.

    **Arguments:**

    - `num_steps`: the steps of a uniform grid.
    - `scale`: $\zeta$.

    **Reference:** Chung, Kim, McCann, Klasky, Ye, Diffusion Posterior Sampling for General
    Noisy Inverse Problems, 2022 (arXiv 2209.14687), algorithm 1 and appendix C.
    """

    needs_noise: ClassVar[bool] = False

    num_steps: int = eqx.field(static=True, default=100, converter=operator.index)
    scale: float = 1.0

    def __check_init__(self):
        check_positive(num_steps=self.num_steps, scale=self.scale)

    def sample_all(
        self, problem: Problem, num_samples: int, *, key: PRNGKey
    ) -> Reconstruction:
        return one_by_one(self._sample, problem, num_samples, key)

    def _sample(self, problem: Problem, key: PRNGKey) -> Float[Array, "..."]:
        def step(x, inputs):
            times, key = inputs

            def misfit(x):
                denoised = problem.denoised(times[0], x)
                residual = problem.residual(denoised)
                # The gradient of a norm is not defined at zero.
                return jnp.sqrt(jnp.vdot(residual, residual) + 1e-12), denoised

            pull, denoised = jax.grad(misfit, has_aux=True)(x)
            mean, variance = transition(problem, times, x, denoised)
            x = mean + jnp.sqrt(variance) * problem.noise(key)
            return x - self.scale * pull, None

        start_key, *keys = jr.split(key, self.num_steps + 1)
        steps = (grid(0.0, self.num_steps, problem.dtype), jnp.stack(keys))
        x, _ = jax.lax.scan(step, problem.noise(start_key), steps)
        return x
