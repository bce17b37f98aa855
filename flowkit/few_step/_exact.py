r"""Exact average velocities: what a perfect flow map would be.

A Gaussian along a path stays Gaussian, $\mathcal N(\mu_t, C_t)$, and its flow map is
$\mu_t + (C_t / C_s)^{1/2} (x - \mu_s)$. In one dimension flows preserve order, so every map is
$F_t^{-1}(F_s(x))$ with the distribution functions of the marginals, and that from noise to data is the optimal
transport map. **Reference:** Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023 (arXiv 2303.08797).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
from jaxtyping import Array, Float

from flowkit._distributions import AbstractDistribution, GaussianMixture, Normal
from flowkit._flow import AbstractPath, exact_flow, Flow, LinearPath
from flowkit._types import Cond, Scalar
from flowkit.few_step._flow_map import FlowMap


def exact_flow_map(
    distribution: AbstractDistribution, path: AbstractPath = LinearPath()
) -> FlowMap:
    """The exact flow map from standard normal noise, the pairs being independent.

    **Arguments:**

    - `distribution`: `fk.Normal(mean, std)` of any shape, or a `fk.GaussianMixture` in one dimension.
    - `path`: any path.

    **Raises:** `ValueError` for any other distribution: in more dimensions mixtures have no closed form.
    """
    if isinstance(distribution, Normal):
        ends = _NormalEnds(distribution, path)
    elif (
        isinstance(distribution, GaussianMixture) and distribution.means.shape[-1] == 1
    ):
        ends = _QuantileEnds(distribution, path)
    else:
        raise ValueError(
            "`distribution` must be a `fk.Normal`, or a `fk.GaussianMixture` in one dimension."
        )
    return FlowMap(_ExactNetwork(ends, exact_flow(distribution, path)), path)


class _ExactNetwork(eqx.Module):
    """The average velocity; in a short interval, whose quotient has lost its digits, the velocity in its middle."""

    ends: Callable
    velocity: Flow

    def __call__(
        self, times: Float[Array, " 2"], x: Array, cond: Cond = None
    ) -> Float[Array, "..."]:
        del cond
        s, t = times
        short = jnp.abs(t - s) < jnp.finfo(x.dtype).eps ** (1 / 3)
        elsewhere = jnp.where(
            short, jnp.where(s > 0.5, 0.0, 1.0), t
        )  # a value that is not used, without 0/0
        average = (self.ends(s, elsewhere, x) - x) / (elsewhere - s)
        half = 0.5 * (t - s)
        middle = self.velocity(s + half, x + half * self.velocity(s, x))
        return jnp.where(short, middle, average)


class _NormalEnds(eqx.Module):
    normal: Normal
    path: AbstractPath

    def __call__(self, s: Array, t: Array, x: Array) -> Float[Array, "..."]:
        std = lambda c: jnp.sqrt((c.alpha * self.normal.std) ** 2 + c.sigma**2)
        start, end = self.path.coefficients(s), self.path.coefficients(t)
        return end.alpha * self.normal.mean + std(end) / std(start) * (
            x - start.alpha * self.normal.mean
        )


class _QuantileEnds(eqx.Module):
    """In the tail that a point is in, so that small probabilities keep their digits."""

    mixture: GaussianMixture
    path: AbstractPath

    def __call__(self, s: Array, t: Array, x: Array) -> Float[Array, "..."]:
        return jnp.reshape(
            jax.vmap(lambda x: self._one(s, t, x))(jnp.ravel(x)), x.shape
        )

    def _one(self, s: Array, t: Array, x: Array) -> Float[Array, ""]:
        start, end = self._marginal(s), self._marginal(t)
        sign = jnp.where(
            _log_tail(start, x, 1.0) < _log_tail(start, x, -1.0), 1.0, -1.0
        ).astype(x.dtype)
        level = _log_tail(start, x, sign)
        root = _bisect(*jax.lax.stop_gradient((end, level, sign)))
        # One step of Newton's method, which carries the derivative of the root.
        slope = jax.lax.stop_gradient(jax.grad(_log_tail, argnums=1)(end, root, sign))
        return root - (_log_tail(end, root, sign) - level) / slope

    def _marginal(self, t: Array) -> tuple[Array, Array, Array]:
        """Means, standard deviations and weights at a time."""
        c = self.path.coefficients(t)
        variances = jnp.reshape(self.mixture.covariances, (-1,))
        return (
            c.alpha * self.mixture.means[:, 0],
            jnp.sqrt(c.alpha**2 * variances + c.sigma**2),
            self.mixture.weights,
        )


def _log_tail(
    law: tuple[Array, Array, Array], y: Array, sign: Scalar
) -> Float[Array, ""]:
    """The log-probability of values below `y`, for the sign 1, or above it, for -1."""
    means, stds, weights = law
    return jsp.special.logsumexp(
        jsp.stats.norm.logcdf(sign * (y - means) / stds), b=weights
    )


def _bisect(
    law: tuple[Array, Array, Array], level: Array, sign: Array
) -> Float[Array, ""]:
    """Where the log-probability of a tail has a level: as many halvings as a double has digits."""
    means, stds, _ = law

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        below = sign * (_log_tail(law, middle, sign) - level) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(
        0, 60, halve, (jnp.min(means - 40 * stds), jnp.max(means + 40 * stds))
    )
    return 0.5 * (low + high)
