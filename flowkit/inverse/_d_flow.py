r"""Optimization of the noise through the ODE."""

import operator
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from flowkit._solve.options import resolve
from flowkit._types import PRNGKey
from flowkit.inverse._method import (
    AbstractMethod,
    check_positive,
    end_of_ode,
    one_by_one,
)
from flowkit.inverse._problem import Problem, Reconstruction


class DFlow(AbstractMethod):
    r"""The noise whose sample explains the observation, by gradients through the ODE.

    $$\min_{x_0} \frac{1}{2 s^2} |y - A\, \phi(x_0)|^2 + \frac12 |x_0|^2,$$

    where $\phi$ is the flow from noise to data, from a random start.
    **What it approximates:** a mode of the posterior of the noise, not its spread. Samples
    differ where there are several modes, or where the optimizer has not finished.

    **Arguments:**

    - `num_iterations`: the steps of the optimizer, each of which solves the ODE forward and
      backward.
    - `optimizer`: any optax optimizer.
    - `num_steps`: the steps of a uniform grid for the ODE.
    - `solver`: a Diffrax solver.
    - `prior_weight`: the weight of $|x_0|^2 / 2$; 0 leaves it out.

    **Reference:** Ben-Hamu, Puny, Gat, Karrer, Singer, Lipman, D-Flow: Differentiating
    through Flows for Controlled Generation, 2024 (arXiv 2402.14017).
    """

    needs_noise: ClassVar[bool] = True

    num_iterations: int = eqx.field(static=True, default=100, converter=operator.index)
    optimizer: optax.GradientTransformation = optax.adam(0.1)
    num_steps: int = eqx.field(static=True, default=10, converter=operator.index)
    solver: dfx.AbstractSolver = dfx.Midpoint()
    prior_weight: float = 1.0

    def __check_init__(self):
        check_positive(num_iterations=self.num_iterations, num_steps=self.num_steps)
        if self.prior_weight < 0:
            raise ValueError(
                f"`prior_weight` must not be negative, got {self.prior_weight}."
            )

    def sample_all(
        self, problem: Problem, num_samples: int, *, key: PRNGKey
    ) -> Reconstruction:
        return one_by_one(self._sample, problem, num_samples, key)

    def _sample(self, problem: Problem, key: PRNGKey) -> Float[Array, "..."]:
        # Every state of so short a solve is kept, so that no step is taken twice.
        adjoint = dfx.RecursiveCheckpointAdjoint(checkpoints=self.num_steps)
        options = resolve(self.solver, self.num_steps, None, 4096, adjoint, True)

        def flow(x0):
            return end_of_ode(problem.flow, x0, problem.cond, 0.0, options)

        def objective(x0):
            residual = problem.residual(flow(x0)) / problem.noise_std
            prior = self.prior_weight * jnp.vdot(x0, x0)
            return 0.5 * (jnp.vdot(residual, residual) + prior)

        def step(carry, _):
            x0, state = carry
            gradient = jax.grad(objective)(x0)
            # Optax takes powers of numbers by integers, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = self.optimizer.update(gradient, state, x0)
            return (optax.apply_updates(x0, updates), state), None

        x0 = problem.noise(key)
        start = (x0, self.optimizer.init(x0))
        (x0, _), _ = jax.lax.scan(step, start, None, length=self.num_iterations)
        return flow(x0)
