r"""The exact average velocity of known distributions: what a perfect flow map would predict.

The flow of one Gaussian, $\mathcal N(m, s_1^2)$ from $\mathcal N(\mu_0, s_0^2)$, keeps the standardised place. With
$\mu_t = \alpha m + \sigma \mu_0$ and $c_t^2 = \alpha^2 s_1^2 + \sigma^2 s_0^2$,

$$\psi_{s \to t}(x) = \mu_t + \frac{c_t}{c_s} (x - \mu_s), \qquad
u = \frac{\mu_t - \mu_s}{t - s} + \frac{c_t^2 - c_s^2}{(t - s) (c_t + c_s)\, c_s} (x - \mu_s).$$

In one dimension the flow of any data keeps the order of points, so that with the distribution function $F_t$ of the
marginal $\psi_{s \to t}(x) = F_t^{-1}(F_s(x))$, which is also the optimal transport map.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
from jaxtyping import Array, Float

from flowkit._distributions import AbstractDistribution, GaussianMixture, Normal
from flowkit._flow import Flow
from flowkit._oracles import exact_flow
from flowkit._paths import AbstractPath, LinearPath
from flowkit._types import Cond
from flowkit.few_step._flow_map import FlowMap


def exact_flow_map(
    distribution: AbstractDistribution,
    path: AbstractPath = LinearPath(),
    *,
    source: Normal = Normal(),
) -> FlowMap:
    """The exact flow map from a Gaussian source to `distribution` along `path`, the pairs being independent.

    It has every pair of times, in both directions, and forward-mode derivatives.

    **Arguments:**

    - `distribution`: a `fk.Normal` of any shape, a `fk.GaussianMixture` with one component, or one of any number of
      components in one dimension, `(..., 1)`, whose rows are independent.
    - `path`, `source`: as in `fk.exact_flow`.

    **Raises:** `ValueError` for any other distribution: the flow of a mixture in several dimensions has no closed form.
    """
    if isinstance(distribution, Normal):
        network = _GaussianMap(distribution.mean, distribution.std, source, path)
    elif isinstance(distribution, GaussianMixture) and distribution.means.shape[0] == 1:
        network = _rotated(distribution, source, path)
    elif isinstance(distribution, GaussianMixture) and distribution.means.shape[1] == 1:
        network = _QuantileMap(distribution, source, path, exact_flow(distribution, path, source=source))
    else:
        raise ValueError(
            "`distribution` must be a Normal, a GaussianMixture with one component, or one in one dimension, got "
            f"{type(distribution).__name__}; other flows have no closed form: integrate `fk.exact_flow(...)`."
        )
    return FlowMap(network, path)


def _difference_quotient(fn: Callable[[Array], Array], s: Float[Array, ""], t: Float[Array, ""]) -> Float[Array, ""]:
    """`(fn(t) - fn(s)) / (t - s)`, in a short interval the derivative at its middle."""
    near = jnp.abs(t - s) < jnp.finfo(s.dtype).eps ** (1 / 3)
    middle = 0.5 * (s + t)
    _, derivative = jax.jvp(fn, (middle,), (jnp.ones_like(middle),))
    return jnp.where(near, derivative, (fn(t) - fn(s)) / jnp.where(near, 1, t - s))


class _GaussianMap(eqx.Module):
    """Independent Gaussian entries."""

    mean: float | Array
    std: float | Array
    source: Normal
    path: AbstractPath

    def __call__(self, times: Float[Array, " 2"], x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        del cond
        s, t = times
        alpha, sigma = self.path.alpha, self.path.sigma
        d_alpha, d_sigma = _difference_quotient(alpha, s, t), _difference_quotient(sigma, s, t)
        variance = lambda t: (alpha(t) * self.std) ** 2 + (sigma(t) * self.source.std) ** 2
        c_s, c_t = jnp.sqrt(variance(s)), jnp.sqrt(variance(t))
        # The difference of the squares, without their cancellation.
        growth = (
            d_alpha * (alpha(s) + alpha(t)) * self.std**2 + d_sigma * (sigma(s) + sigma(t)) * self.source.std**2
        ) / ((c_s + c_t) * c_s)
        deviation = x - alpha(s) * self.mean - sigma(s) * self.source.mean
        return d_alpha * self.mean + d_sigma * self.source.mean + growth * deviation


class _RotatedMap(eqx.Module):
    """A Gaussian with any covariance, in coordinates where its entries are independent and the source is standard."""

    inner: _GaussianMap
    basis: Float[Array, "d d"]
    std: Float[Array, " d"]

    def __call__(self, times: Float[Array, " 2"], x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        u = self.inner(times, (x / self.std) @ self.basis, cond)
        return self.std * (u @ self.basis.T)


def _rotated(distribution: GaussianMixture, source: Normal, path: AbstractPath) -> _RotatedMap:
    (mean,), (covariance,) = distribution.means, distribution.covariances
    std = jnp.broadcast_to(jnp.asarray(source.std, mean.dtype), mean.shape)
    variances, basis = jnp.linalg.eigh(covariance / (std[:, None] * std))
    rotated = lambda mean: (jnp.broadcast_to(jnp.asarray(mean, std.dtype), std.shape) / std) @ basis
    inner = _GaussianMap(rotated(mean), jnp.sqrt(variances), Normal(rotated(source.mean)), path)
    return _RotatedMap(inner, basis, std)


_ITERATIONS = 24


class _QuantileMap(eqx.Module):
    """A mixture in one dimension."""

    distribution: GaussianMixture
    source: Normal
    path: AbstractPath
    velocity: Flow

    def __call__(self, times: Float[Array, " 2"], x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        del cond
        s, t = times
        near = jnp.abs(t - s) < jnp.finfo(s.dtype).eps ** (1 / 3)
        # A far end stands in for a near one, so that nothing is divided by zero.
        end = jnp.where(near, jnp.where(s < 0.5, s + 0.5, s - 0.5), t)
        moved = jnp.vectorize(lambda x: _moved(s, end, x, map=jax.lax.stop_gradient(self)))
        half = 0.5 * (t - s)
        # In a short interval the quotient would lose its digits.
        middle = self.velocity(s + half, x + half * self.velocity(s, x))
        return jnp.where(near, middle, (moved(x) - x) / (end - s))

    def components(self, t: Float[Array, ""]) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """The means and the standard deviations of the marginal."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        mean, std = jnp.reshape(jnp.asarray(self.source.mean), ()), jnp.reshape(jnp.asarray(self.source.std), ())
        means, variances = self.distribution.means[:, 0], self.distribution.covariances[:, 0, 0]
        return alpha * means + sigma * mean, jnp.sqrt(alpha**2 * variances + (sigma * std) ** 2)

    def logit(self, t: Float[Array, ""], x: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The logit of the distribution function, which keeps its digits in both tails, and its slope in `x`."""
        means, stds = self.components(t)
        z = (x - means) / stds
        tails = jsp.stats.norm.logcdf(jnp.stack([z, -z]))
        below, above = jsp.special.logsumexp(jax.nn.log_softmax(self.distribution.logits) + tails, axis=1)
        return below - above, jnp.exp(self.log_density(t, x) - below - above)

    def log_density(self, t: Float[Array, ""], x: Float[Array, ""]) -> Float[Array, ""]:
        means, stds = self.components(t)
        terms = jsp.stats.norm.logpdf(x, means, stds)
        return jsp.special.logsumexp(jax.nn.log_softmax(self.distribution.logits) + terms)


@eqx.filter_custom_jvp
def _moved(s: Float[Array, ""], t: Float[Array, ""], x: Float[Array, ""], *, map: _QuantileMap) -> Float[Array, ""]:
    """The quantile of the marginal at `t` that `x` is of the marginal at `s`: Newton's method in a bracket."""
    target, _ = map.logit(s, x)
    (means_s, stds_s), (means_t, stds_t) = map.components(s), map.components(t)
    # No component moves the point below the lowest, or above the highest, of their quantiles.
    z = (x - means_s) / stds_s
    low, high = jnp.min(means_t + stds_t * jnp.min(z)), jnp.max(means_t + stds_t * jnp.max(z))

    def improve(_, state):
        low, high, y = state
        value, slope = map.logit(t, y)
        low, high = jnp.where(value < target, y, low), jnp.where(value < target, high, y)
        newton = y - (value - target) / slope
        return low, high, jnp.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))

    return jax.lax.fori_loop(0, _ITERATIONS, improve, (low, high, 0.5 * (low + high)))[2]


@_moved.def_jvp
def _moved_jvp(primals, tangents, *, map):
    """Along a trajectory the end moves with the flow, and across trajectories with the ratio of the densities."""
    s, t, x = primals
    d_s, d_t, d_x = (jnp.zeros_like(s) if tangent is None else tangent for tangent in tangents)
    y = _moved(s, t, x, map=map)
    velocity = lambda t, x: map.velocity(t, x[None])[0]
    ratio = jnp.exp(map.log_density(s, x) - map.log_density(t, y))
    return y, velocity(t, y) * d_t + ratio * (d_x - velocity(s, x) * d_s)
