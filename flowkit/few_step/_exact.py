r"""Exact average velocities: what a perfect flow map would be.

A Gaussian along a path stays Gaussian, $\mathcal N(\mu_t, C_t)$, and its flow map is
$\mu_t + (C_t / C_s)^{1/2} (x - \mu_s)$. In one dimension flows preserve order, so every map
is $F_t^{-1}(F_s(x))$ with the distribution functions of the marginals, and the map from
noise to data is the optimal transport map.

**Reference:** Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023 (arXiv
2303.08797).
"""

from collections.abc import Callable
from typing import NamedTuple

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
    """The exact flow map from standard normal noise, for independent pairs.

    **Arguments:**

    - `distribution`: `fk.Normal(mean, std)` of any shape, or a `fk.GaussianMixture` in one
      dimension.
    - `path`: any path.

    **Raises:** `ValueError` for any other distribution: in more dimensions the maps of
    mixtures have no closed form.
    """
    is_mixture = isinstance(distribution, GaussianMixture)
    if isinstance(distribution, Normal):
        ends = _NormalEnds(distribution, path)
    elif is_mixture and distribution.means.shape[-1] == 1:
        ends = _QuantileEnds(distribution, path)
    else:
        raise ValueError(
            "`distribution` must be a `fk.Normal`, or a `fk.GaussianMixture` in one "
            "dimension."
        )

    return FlowMap(_ExactNetwork(ends, exact_flow(distribution, path)), path)


class _ExactNetwork(eqx.Module):
    """The average velocity from the exact ends of jumps.

    In a short interval the quotient has lost its digits, and the velocity in the middle of
    the interval takes its place.
    """

    ends: Callable
    velocity: Flow

    def __call__(
        self, times: Float[Array, " 2"], x: Array, cond: Cond = None
    ) -> Float[Array, "..."]:
        del cond
        s, t = times
        # Where both errors meet: the quotient is wrong by about `eps / h`, the midpoint
        # by `h**2`.
        short = jnp.abs(t - s) < jnp.finfo(x.dtype).eps ** (1 / 3)

        # Where the interval is short, the far end of time stands in for `t`: the quotient
        # is not used there, but 0/0 would reach the gradient.
        far_end = jnp.where(s > 0.5, 0.0, 1.0)
        end = jnp.where(short, far_end, t)
        average = (self.ends(s, end, x) - x) / (end - s)

        half = 0.5 * (t - s)
        middle = self.velocity(s + half, x + half * self.velocity(s, x))
        return jnp.where(short, middle, average)


class _NormalEnds(eqx.Module):
    """Where a jump of a Gaussian ends."""

    normal: Normal
    path: AbstractPath

    def __call__(self, s: Array, t: Array, x: Array) -> Float[Array, "..."]:
        start_mean, start_std = self._marginal(s)
        end_mean, end_std = self._marginal(t)
        return end_mean + end_std / start_std * (x - start_mean)

    def _marginal(self, t: Array) -> tuple[Array, Array]:
        """The mean and the standard deviation at a time."""
        c = self.path.coefficients(t)
        variance = (c.alpha * self.normal.std) ** 2 + c.sigma**2
        return c.alpha * self.normal.mean, jnp.sqrt(variance)


class _Marginal(NamedTuple):
    """A mixture on the line."""

    means: Array
    stds: Array
    weights: Array


class _QuantileEnds(eqx.Module):
    """Where a jump ends that keeps the quantile of its start.

    Probabilities are those of the tail that the point is in, so that small ones keep their
    digits.
    """

    mixture: GaussianMixture
    path: AbstractPath

    def __call__(self, s: Array, t: Array, x: Array) -> Float[Array, "..."]:
        ends = jax.vmap(lambda x: self._one(s, t, x))(jnp.ravel(x))
        return jnp.reshape(ends, x.shape)

    def _one(self, s: Array, t: Array, x: Array) -> Float[Array, ""]:
        start = self._marginal(s)
        end = self._marginal(t)
        is_low = _log_tail(start, x, 1.0) < _log_tail(start, x, -1.0)
        sign = jnp.where(is_low, 1.0, -1.0).astype(x.dtype)
        level = _log_tail(start, x, sign)

        # The bisection has no derivative; one step of Newton's method carries that of the
        # root.
        root = _bisect(*jax.lax.stop_gradient((end, level, sign)))
        slope = jax.lax.stop_gradient(jax.grad(_log_tail, argnums=1)(end, root, sign))
        return root - (_log_tail(end, root, sign) - level) / slope

    def _marginal(self, t: Array) -> _Marginal:
        c = self.path.coefficients(t)
        variances = jnp.reshape(self.mixture.covariances, (-1,))
        return _Marginal(
            means=c.alpha * self.mixture.means[:, 0],
            stds=jnp.sqrt(c.alpha**2 * variances + c.sigma**2),
            weights=self.mixture.weights,
        )


def _log_tail(marginal: _Marginal, y: Array, sign: Scalar) -> Float[Array, ""]:
    """The log-probability of values below `y`, for the sign 1, or above it, for -1."""
    means, stds, weights = marginal
    tails = jsp.stats.norm.logcdf(sign * (y - means) / stds)
    return jsp.special.logsumexp(tails, b=weights)


@eqx.filter_jit(inline=True)  # pyright: ignore
def _bisect(marginal: _Marginal, level: Array, sign: Array) -> Float[Array, ""]:
    """Where the log-probability of a tail has a level."""

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        below = sign * (_log_tail(marginal, middle, sign) - level) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    # Wide enough for the tails of any start that is itself within 40 standard
    # deviations.
    low = jnp.min(marginal.means - 40 * marginal.stds)
    high = jnp.max(marginal.means + 40 * marginal.stds)
    # As many halvings as a double has digits.
    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    return 0.5 * (low + high)
