r"""Sequential Monte Carlo: guided particles, weighted so that the limit is correct."""

import operator
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowkit._types import PRNGKey
from flowkit.inverse._method import AbstractMethod, check_positive
from flowkit.inverse._problem import (
    grid,
    Likelihood,
    likelihood,
    Problem,
    Reconstruction,
    transition,
    wide_dot,
)


class _Particles(NamedTuple):
    x: Float[Array, "n ..."]
    guess: Likelihood
    log_weights: Float[Array, " n"]


class TwistedSMC(AbstractMethod):
    r"""The twisted diffusion sampler: the reference for all other methods.

    All samples are particles of one filter. They move with the stochastic sampler, guided by the
    gradient of `PiGDM`. Their weights correct the errors of that gradient, so the distribution of
    the particles tends to the posterior as `num_samples` and `num_steps` grow. When the effective
    sample size falls below `resample_below` times their number, particles are resampled according
    to their weights; this also happens once at the end.

    **What it approximates:** nothing in the limit. A finite grid makes the spread too small,
    by some `6 / num_steps` of the variance for normal data. With few particles, samples are
    copies of each other: `effective_sample_size` is $1 / \sum w^2$ of the final weights, and
    at most the number of different ancestors. A small one means that `num_samples` is too
    small.

    **Arguments:**

    - `num_steps`: the steps of a uniform grid.
    - `resample_below`: between 0 (only at the end) and 1 (after every step).

    **Reference:** Wu, Trippe, Naesseth, Blei, Cunningham, Practical and Asymptotically Exact
    Conditional Sampling in Diffusion Models, 2023 (arXiv 2306.17775), algorithm 1.
    """

    needs_noise: ClassVar[bool] = True

    num_steps: int = eqx.field(static=True, default=200, converter=operator.index)
    resample_below: float = 0.5

    def __check_init__(self):
        check_positive(num_steps=self.num_steps)
        if not 0 <= self.resample_below <= 1:
            raise ValueError(
                f"`resample_below` must lie in [0, 1], got {self.resample_below}."
            )

    def sample_all(
        self, problem: Problem, num_samples: int, *, key: PRNGKey
    ) -> Reconstruction:
        start_key, key, last_key = jr.split(key, 3)
        x = jax.vmap(problem.noise)(jr.split(start_key, num_samples))
        steps = grid(0.0, self.num_steps, problem.dtype)
        guess = _likelihoods(problem, steps[0, 0], x)
        # The first point has been drawn without the observation, and is weighted by it.
        carry = (_Particles(x, guess, guess.log_value), jnp.arange(num_samples))

        def step(carry, inputs):
            times, key = inputs
            particles, ancestors = carry
            move_key, resample_key = jr.split(key)
            particles = _moved(problem, times, particles, move_key)

            size = effective_sample_size(particles.log_weights)
            chosen = systematic_resample(resample_key, particles.log_weights)
            needed = size < self.resample_below * num_samples
            chosen = jnp.where(needed, chosen, jnp.arange(num_samples))
            particles = jax.tree.map(lambda leaf: leaf[chosen], particles)
            log_weights = jnp.where(needed, 0.0, particles.log_weights)
            return (
                particles._replace(log_weights=log_weights),
                ancestors[chosen],
            ), None

        keys = jr.split(key, self.num_steps)
        (particles, ancestors), _ = jax.lax.scan(step, carry, (steps, keys))
        chosen = systematic_resample(last_key, particles.log_weights)
        size = effective_sample_size(particles.log_weights)
        num_ancestors = _count_different(ancestors[chosen])
        size = jnp.minimum(size, num_ancestors.astype(size.dtype))
        return Reconstruction(particles.x[chosen], size)


def effective_sample_size(log_weights: Float[Array, " n"]) -> Float[Array, ""]:
    r"""$1 / \sum_i w_i^2$ of the normalized weights."""
    weights = jax.nn.softmax(log_weights)
    return 1 / jnp.sum(weights**2)


def systematic_resample(
    key: PRNGKey, log_weights: Float[Array, " n"]
) -> Int[Array, " n"]:
    """Which particles are kept: each about `n` times its weight."""
    num = log_weights.shape[0]
    dtype = log_weights.dtype
    places = (jnp.arange(num, dtype=dtype) + jr.uniform(key, (), dtype)) / num
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    chosen = jnp.searchsorted(cumulative, places).astype(int)
    # The sum is 1 up to rounding, and the last place may lie beyond it.
    return jnp.minimum(chosen, num - 1)


def _likelihoods(problem: Problem, t: Float[Array, ""], x: Float[Array, "n ..."]):
    return jax.vmap(lambda x: likelihood(problem, t, x))(x)


def _moved(
    problem: Problem, times: Float[Array, " 2"], particles: _Particles, key: PRNGKey
) -> _Particles:
    """One guided step, and the weights that undo its guidance."""

    def move(x, guess, key):
        mean, variance = transition(problem, times, x, guess.denoised)
        wide = variance.astype(guess.log_value.dtype)
        noise = problem.noise(key)
        moved = mean + variance * guess.gradient + jnp.sqrt(variance) * noise

        # log N(moved; mean, variance) - log N(moved; mean + shift, variance).
        squared = wide * wide_dot(guess.gradient, guess.gradient)
        crossed = jnp.sqrt(wide) * wide_dot(guess.gradient, noise)
        return moved, -0.5 * squared - crossed

    keys = jr.split(key, particles.x.shape[0])
    x, log_ratios = jax.vmap(move)(particles.x, particles.guess, keys)
    guess = _likelihoods(problem, times[1], x)
    gained = guess.log_value - particles.guess.log_value
    return _Particles(x, guess, particles.log_weights + log_ratios + gained)


def _count_different(ancestors: Int[Array, " n"]) -> Float[Array, ""]:
    different = jnp.diff(jnp.sort(ancestors)) != 0
    return 1.0 + jnp.sum(different, dtype=float)
