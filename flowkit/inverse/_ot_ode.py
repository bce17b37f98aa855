r"""The ODE of the flow with the gradient of a Gaussian likelihood."""

import operator
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._solve.options import resolve
from flowkit._types import Cond, FloatArray, PRNGKey, Scalar
from flowkit.inverse._method import (
    AbstractMethod,
    check_positive,
    end_of_ode,
    one_by_one,
)
from flowkit.inverse._pigdm import check_start, warm_start
from flowkit.inverse._problem import likelihood, Problem, Reconstruction


class OTODE(AbstractMethod):
    r"""The flow's own ODE with guidance towards the observation.

    $$\frac{dx}{dt} = v_t(x) + \Bigl(\frac{\sigma_t^2 \dot\alpha_t}{\alpha_t} - \sigma_t
    \dot\sigma_t\Bigr) \nabla_x \log p(y \mid x_t = x)$$

    with the likelihood of `PiGDM`. The only randomness is that of the start.
    **What it approximates:** the same as `PiGDM`, and the distribution of the start at
    `t_start` by the least-norm solution with noise. Between separate modes, points may stay
    where the mean of the data fits the observation.

    **Arguments:**

    - `num_steps`: the steps of a uniform grid.
    - `t_start`: where the ODE begins.
    - `solver`: a Diffrax solver, such as `diffrax.Heun()`.

    **Reference:** Pokle, Muckley, Chen, Karrer, Training-Free Linear Image Inverses via
    Flows, 2023 (arXiv 2310.04432).
    """

    needs_noise: ClassVar[bool] = False

    num_steps: int = eqx.field(static=True, default=50, converter=operator.index)
    t_start: float = 0.2
    solver: dfx.AbstractSolver = dfx.Euler()

    def __check_init__(self):
        check_positive(num_steps=self.num_steps)
        check_start(self.t_start)

    def sample_all(
        self, problem: Problem, num_samples: int, *, key: PRNGKey
    ) -> Reconstruction:
        return one_by_one(self._sample, problem, num_samples, key)

    def _sample(self, problem: Problem, key: PRNGKey) -> Float[Array, "..."]:
        start = warm_start(problem, self.t_start, key)
        options = resolve(
            self.solver, self.num_steps, None, 4096, dfx.ForwardMode(), True
        )
        return end_of_ode(_Guided(problem), start, None, self.t_start, options)


class _Guided(eqx.Module):
    problem: Problem

    def __call__(
        self, t: Scalar, x: FloatArray, cond: Cond = None
    ) -> Float[Array, "..."]:
        alpha, sigma, d_alpha, d_sigma = self.problem.coefficients(t)
        gradient = likelihood(self.problem, t, x).gradient
        velocity = self.problem.flow(t, x, self.problem.cond)
        guidance = (sigma**2 * d_alpha / alpha - sigma * d_sigma) * gradient
        # At t = 1 the likelihood of an exact observation is 0 but for a point.
        return velocity + jnp.where(sigma > 0, guidance, 0)
