r"""Inpainting by replacement: what is observed is put into every step."""

import operator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import PRNGKey
from flowkit.inverse._method import AbstractMethod, check_positive, one_by_one
from flowkit.inverse._operators import PixelMask
from flowkit.inverse._problem import grid, Problem, Reconstruction, renoised, transition


class RePaint(AbstractMethod):
    r"""Inpainting: after every random step the observed entries are set to
    $\alpha_s y + \sigma_s \epsilon$.

    Each step is taken `num_resamples` times, with a step back to more noise in between, so
    that the two parts fit each other. **What it approximates:** the observed entries are
    taken as exact, whatever `noise_std`, and their noise as independent of the rest; with
    more resamples the parts agree better. For `PixelMask` only.

    **Arguments:**

    - `num_steps`: the steps of a uniform grid.
    - `num_resamples`: how often each step is taken.

    **Reference:** Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, RePaint: Inpainting
    using Denoising Diffusion Probabilistic Models, 2022 (arXiv 2201.09865), algorithm 1.
    """

    needs_noise: ClassVar[bool] = False

    num_steps: int = eqx.field(static=True, default=100, converter=operator.index)
    num_resamples: int = eqx.field(static=True, default=5, converter=operator.index)

    def __check_init__(self):
        check_positive(num_steps=self.num_steps, num_resamples=self.num_resamples)

    def sample_all(
        self, problem: Problem, num_samples: int, *, key: PRNGKey
    ) -> Reconstruction:
        if not isinstance(problem.operator, PixelMask):
            raise ValueError(
                "`RePaint` replaces entries, so `operator` must be a `PixelMask`, and the "
                "flow not a `fk.Standardized`; `PiGDM` and others take any."
            )
        return one_by_one(self._sample, problem, num_samples, key)

    def _sample(self, problem: Problem, key: PRNGKey) -> Float[Array, "..."]:
        hide = problem.operator
        start_key, key = jr.split(key)

        def attempt(x, times, key):
            """From the first time to the second, with the observed part replaced."""
            step_key, known_key = jr.split(key)
            denoised = problem.denoised(times[0], x)
            mean, variance = transition(problem, times, x, denoised)
            drawn = mean + jnp.sqrt(variance) * problem.noise(step_key)

            alpha, sigma, _, _ = problem.coefficients(times[1])
            known = alpha * problem.observed + sigma * problem.noise(known_key)
            return drawn + hide(known - drawn)

        def step(x, inputs):
            times, key = inputs

            def again(x, key):
                attempt_key, back_key = jr.split(key)
                later = attempt(x, times, attempt_key)
                return renoised(problem, times, later, back_key), None

            *again_keys, last_key = jr.split(key, self.num_resamples)
            if again_keys:
                x, _ = jax.lax.scan(again, x, jnp.stack(again_keys))
            return attempt(x, times, last_key), None

        steps = (
            grid(0.0, self.num_steps, problem.dtype),
            jr.split(key, self.num_steps),
        )
        x, _ = jax.lax.scan(step, problem.noise(start_key), steps)
        return x
