r"""One inverse problem, and the likelihood of a point on the path.

$x_t = \alpha_t x_1 + \sigma_t x_0$ with $x_0 \sim \mathcal N(0, I)$, and
$y = A x_1 + s\,\epsilon$. All that methods know of the flow is the mean of the data given a
point on the path, $D_t(x) = \mathbb E[x_1 \mid x_t = x]$.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._flow import Coefficients, Flow, Target
from flowkit._types import Cond, FloatArray, PRNGKey, Scalar, sum_dtype
from flowkit.inverse._operators import AbstractOperator


class Problem(eqx.Module):
    """A flow, what is observed of one of its samples, and how."""

    flow: Flow
    operator: AbstractOperator
    observed: Float[Array, "..."]
    noise_std: Float[Array, ""]
    cond: Cond
    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def dtype(self) -> jnp.dtype:
        return self.observed.dtype

    def noise(self, key: PRNGKey) -> Float[Array, "..."]:
        """A draw of the source."""
        return jr.normal(key, self.shape, self.dtype)

    def coefficients(self, t: Scalar) -> Coefficients:
        return self.flow.path.coefficients(t)

    def denoised(self, t: Scalar, x: FloatArray) -> Float[Array, "..."]:
        """The mean of the data given a point on the path."""
        # Networks are evaluated no earlier than they were trained: with `fk.Noise()`, any
        # error at t = 0 would become infinite here.
        seen = jnp.maximum(t, self.flow.t_start)
        predicted = self.flow.predict(Target(), seen, x, self.cond)
        # Without noise the point is the data, whatever a network says there.
        return jnp.where(self.coefficients(t).sigma > 0, predicted, x)

    def residual(self, x1: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.observed - self.operator(x1)

    def least_norm(self) -> Float[Array, "..."]:
        r"""$A^\top (A A^\top)^{-1} y$, the smallest example that explains the observation."""
        return self.operator.adjoint(self.whiten(self.observed, 1.0, 0.0))

    def whiten(self, y, variance, noise_variance):
        r"""$(\mathrm{variance}\, A A^\top + \mathrm{noise}\, I)^{-1} y$, by conjugate gradients.

        For masks and block means a step or two are enough. The squares of residuals would
        be too small for half precision.
        """
        dtype = sum_dtype(y.dtype)
        variance = jnp.asarray(variance, dtype)
        noise_variance = jnp.asarray(noise_variance, dtype)

        def product(y):
            return (
                variance * self.operator(self.operator.adjoint(y)) + noise_variance * y
            )

        solution, _ = jax.scipy.sparse.linalg.cg(
            product, y.astype(dtype), tol=1e-5, maxiter=50
        )
        return solution.astype(y.dtype)


class Reconstruction(NamedTuple):
    """Samples that explain an observation.

    - `values`: `(num_samples, *shape)`.
    - `effective_sample_size`: how many independent samples they are worth, `None` for
      methods that do not tell.
    """

    values: Float[Array, "num_samples ..."]
    effective_sample_size: Float[Array, ""] | None

    @property
    def mean(self) -> Float[Array, "..."]:
        """The mean of the samples, the estimate of least squared error."""
        return jnp.mean(self.values, axis=0)

    @property
    def std(self) -> Float[Array, "..."]:
        """The spread of the samples in each entry; it needs at least two samples."""
        if len(self.values) < 2:
            raise ValueError(
                "`std` needs two samples: give a larger `num_samples` to `reconstruct`."
            )
        return jnp.std(self.values, axis=0, ddof=1)


class Likelihood(NamedTuple):
    r"""What a point $x_t$ says about the observation.

    - `denoised`: $D_t(x_t)$.
    - `log_value`: $\log p(y \mid x_t)$, up to a constant that depends on `t` alone; in at
      least float32.
    - `gradient`: its gradient in $x_t$.
    """

    denoised: Float[Array, "..."]
    log_value: Float[Array, ""]
    gradient: Float[Array, "..."]


def likelihood(problem: Problem, t: Scalar, x: FloatArray) -> Likelihood:
    r"""The likelihood if the data given $x_t$ were $\mathcal N(D_t(x_t), r_t^2 I)$.

    $$p(y \mid x_t) \approx \mathcal N\bigl(A D_t(x_t),\; r_t^2 A A^\top + s^2 I\bigr),
    \qquad r_t^2 = \frac{\sigma_t^2}{\alpha_t^2 + \sigma_t^2},$$

    which is exact for data of $\mathcal N(0, I)$.

    **Reference:** Song, Vahdat, Mardani, Kautz, Pseudoinverse-Guided Diffusion Models for
    Inverse Problems, ICLR 2023.
    """
    alpha, sigma, _, _ = problem.coefficients(t)
    variance = sigma**2 / (alpha**2 + sigma**2)
    denoise = lambda x: problem.denoised(t, x)
    denoised, pull_back = jax.vjp(denoise, x)

    residual = problem.residual(denoised)
    whitened = problem.whiten(residual, variance, problem.noise_std**2)
    # The covariance does not depend on the point, so the gradient is that of the mean.
    (gradient,) = pull_back(problem.operator.adjoint(whitened))
    return Likelihood(denoised, -0.5 * wide_dot(residual, whitened), gradient)


def wide_dot(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, ""]:
    """The sum of the products, in at least float32."""
    dtype = sum_dtype(x.dtype)
    return jnp.vdot(x.astype(dtype), y.astype(dtype))


def grid(t0: Scalar, num_steps: int, dtype: jnp.dtype) -> Float[Array, "steps 2"]:
    """Pairs of times, the steps of a uniform grid from `t0` to 1."""
    times = jnp.linspace(t0, 1.0, num_steps + 1, dtype=dtype)
    return jnp.stack([times[:-1], times[1:]], axis=1)


def transition(
    problem: Problem,
    times: Float[Array, " 2"],
    x: Float[Array, "..."],
    denoised: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    r"""Mean and variance of $x_s$ given $x_t$ and $x_1 = D_t(x_t)$, for $s > t$.

    The noise is that of a diffusion with the marginals of the path: with
    $\rho = \alpha_t / \alpha_s$ and $\sigma_{t|s}^2 = \sigma_t^2 - \rho^2 \sigma_s^2$,

    $$\mathcal N\Bigl(\frac{\rho\, \sigma_s^2 x_t + \alpha_s \sigma_{t|s}^2 x_1}{\sigma_t^2},\;
    \frac{\sigma_s^2 \sigma_{t|s}^2}{\sigma_t^2}\Bigr).$$

    **Reference:** Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020
    (arXiv 2006.11239), equation 7.
    """
    alpha_t, sigma_t, _, _ = problem.coefficients(times[0])
    alpha_s, sigma_s, _, _ = problem.coefficients(times[1])
    ratio = alpha_t / alpha_s
    between = jnp.maximum(sigma_t**2 - (ratio * sigma_s) ** 2, 0.0)
    mean = (ratio * sigma_s**2 * x + alpha_s * between * denoised) / sigma_t**2
    return mean, sigma_s**2 * between / sigma_t**2


def renoised(
    problem: Problem,
    times: Float[Array, " 2"],
    x: Float[Array, "..."],
    key: PRNGKey,
) -> Float[Array, "..."]:
    """A draw of $x_t$ given $x_s$, for $s > t$: the way back to more noise."""
    alpha_t, sigma_t, _, _ = problem.coefficients(times[0])
    alpha_s, sigma_s, _, _ = problem.coefficients(times[1])
    ratio = alpha_t / alpha_s
    between = jnp.maximum(sigma_t**2 - (ratio * sigma_s) ** 2, 0.0)
    return ratio * x + jnp.sqrt(between) * problem.noise(key)
