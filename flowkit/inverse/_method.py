"""What a method of reconstruction is."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._solve.ode import solve
from flowkit._solve.options import Solve
from flowkit._types import Cond, PRNGKey, Scalar, VelocityField
from flowkit.inverse._problem import Problem, Reconstruction


class AbstractMethod(eqx.Module):
    """A way to draw from the posterior of one problem, or to find good examples.

    To add one, write `sample_all`, and set `needs_noise`, whether the observation must have
    noise. Its floats are arrays there, so that another value compiles nothing.
    """

    needs_noise: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def sample_all(
        self, problem: Problem, num_samples: int, *, key: PRNGKey
    ) -> Reconstruction:
        """That many samples."""


def one_by_one(
    sample: Callable[[Problem, PRNGKey], Array],
    problem: Problem,
    num_samples: int,
    key: PRNGKey,
) -> Reconstruction:
    """Samples that do not depend on each other."""
    keys = jr.split(key, num_samples)
    values = jax.vmap(lambda key: sample(problem, key))(keys)
    return Reconstruction(values, None)


def end_of_ode(
    velocity: VelocityField,
    start: Float[Array, "..."],
    cond: Cond,
    t0: Scalar,
    options: Solve,
) -> Float[Array, "..."]:
    """The state at time 1 of the ODE that starts at `start` at time `t0`."""
    times = (jnp.asarray(t0, start.dtype), jnp.ones((), start.dtype))
    path: Any = solve(velocity, start, cond, times, options).ys
    return path[-1]


def check_positive(**options: float) -> None:
    """Raises for numbers of steps and the like that are not positive."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")
