r"""A Gaussian mixture fitted by variational Bayes.

Weights have a Dirichlet prior, means and precisions a normal-Wishart prior, and the posterior is sought among products
of the same laws and of responsibilities. Bishop, Pattern Recognition and Machine Learning, 2006, section 10.2.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float

from flowkit._types import Mask
from flowkit.nn._geometry import farthest_points
from flowkit.nn._shapes import zero_masked


HIGHEST = jax.lax.Precision.HIGHEST
JITTER = 1e-6


class Mixture(NamedTuple):
    """The parameters of the laws of `k` components: Dirichlet; normal; Wishart (degrees, inverse scale matrix)."""

    concentration: Float[Array, " k"]
    mean_precision: Float[Array, " k"]
    degrees: Float[Array, " k"]
    mean: Float[Array, "k d"]
    inverse_scale: Float[Array, "k d d"]


def prior_mixture(num: int, size: int, scale: float, dtype: jnp.dtype) -> Mixture:
    """The prior for clouds around the origin, whose components have covariances of about `scale^2 num^(-2 / d)`."""
    degrees = size + 2.0
    full = lambda value: jnp.full(num, value, dtype)
    inverse_scale = degrees * num ** (-2 / size) * scale**2 * jnp.eye(size, dtype=dtype)
    matrices = jnp.broadcast_to(inverse_scale, (num, size, size))
    return Mixture(
        full(1 / num), full(1.0), full(degrees), jnp.zeros((num, size), dtype), matrices
    )


def fit(
    points: Float[Array, "n d"],
    mask: Mask | None,
    prior: Mixture,
    *,
    num_steps: int,
    rate: float,
) -> tuple[Mixture, Float[Array, "n k"]]:
    """The mixture after damped steps from means that are far from each other, and the last responsibilities."""
    num = prior.mean.shape[0]
    start = prior._replace(mean=points[farthest_points(points, num, mask)])
    weight = point_weight(points, mask, num)

    def step(_, state):
        mixture, _ = state
        responsibilities = zero_masked(
            jax.nn.softmax(expected_log_joint(mixture, points), axis=1), mask
        )
        return damped(
            mixture, target(prior, points, responsibilities, weight), rate
        ), responsibilities

    nothing = jnp.zeros((points.shape[0], num), points.dtype)
    return jax.lax.fori_loop(0, num_steps, step, (start, nothing))


def point_weight(
    points: Float[Array, "n d"], mask: Mask | None, num: int
) -> Float[Array, ""]:
    """What each point counts, so that all together count at most 40 for each component."""
    total = jnp.asarray(
        points.shape[0] if mask is None else jnp.sum(jnp.asarray(mask)), points.dtype
    )
    return jnp.minimum(total, 40.0 * num) / jnp.maximum(total, 1.0)


def expected_log_joint(
    mixture: Mixture, points: Float[Array, "n d"]
) -> Float[Array, "n k"]:
    r"""$\mathbb E \ln \pi_k \mathcal N(x_n; \mu_k, \Lambda_k^{-1})$ over the laws of weights, means and precisions."""
    size = points.shape[1]
    factor = _factor(mixture)
    difference = points.T - mixture.mean[:, :, None]
    whitened = jax.lax.linalg.triangular_solve(
        factor, difference, left_side=True, lower=True
    )
    squares = (
        size / mixture.mean_precision + mixture.degrees * jnp.sum(whitened**2, axis=1).T
    )
    log_weight = digamma(mixture.concentration) - digamma(
        jnp.sum(mixture.concentration)
    )
    return log_weight + 0.5 * (
        _expected_log_det(mixture, factor) - size * math.log(2 * math.pi) - squares
    )


def target(
    prior: Mixture,
    points: Float[Array, "n d"],
    responsibilities: Float[Array, "n k"],
    weight: Float[Array, ""],
) -> Mixture:
    """The best laws given the responsibilities."""
    sizes = jnp.sum(responsibilities, axis=0)
    totals = jnp.matmul(responsibilities.T, points, precision=HIGHEST)
    means = totals / jnp.maximum(sizes, jnp.finfo(points.dtype).tiny)[:, None]
    difference = points - means[:, None]
    scatter = weight * jnp.einsum(
        "nk,kni,knj->kij", responsibilities, difference, difference, precision=HIGHEST
    )
    sizes = weight * sizes
    mean_precision = prior.mean_precision + sizes
    share = (sizes / mean_precision)[:, None]
    return Mixture(
        prior.concentration + sizes,
        mean_precision,
        prior.degrees + sizes,
        (1 - share) * prior.mean + share * means,
        prior.inverse_scale
        + scatter
        + prior.mean_precision[0] * share[..., None] * _outer(means - prior.mean),
    )


def damped(old: Mixture, new: Mixture, rate: float) -> Mixture:
    """The natural parameters of the laws moved by `rate` from the old ones to the new ones.

    They hold `inverse_scale + mean_precision mean mean^T`; the products of means are joined in a form that keeps the
    matrices positive definite after rounding.
    """
    move = lambda a, b: (1 - rate) * a + rate * b
    mean_precision = move(old.mean_precision, new.mean_precision)
    share = rate * new.mean_precision / mean_precision
    apart = ((1 - rate) * old.mean_precision * share)[:, None, None] * _outer(
        new.mean - old.mean
    )
    return Mixture(
        move(old.concentration, new.concentration),
        mean_precision,
        move(old.degrees, new.degrees),
        old.mean + share[:, None] * (new.mean - old.mean),
        move(old.inverse_scale, new.inverse_scale) + apart,
    )


def elbo(
    mixture: Mixture,
    prior: Mixture,
    points: Float[Array, "n d"],
    weight: Float[Array, ""],
) -> Float[Array, ""]:
    """The evidence lower bound with the best responsibilities, which no step lowers: `weight` as of `point_weight`."""
    evidence = jax.nn.logsumexp(expected_log_joint(mixture, points), axis=1)
    return (
        jnp.sum(weight * evidence)
        - _weights_kl(mixture, prior)
        - jnp.sum(_components_kl(mixture, prior))
    )


def _weights_kl(mixture: Mixture, prior: Mixture) -> Float[Array, ""]:
    a, b = mixture.concentration, prior.concentration
    constants = (
        gammaln(jnp.sum(a))
        - jnp.sum(gammaln(a))
        - gammaln(jnp.sum(b))
        + jnp.sum(gammaln(b))
    )
    return constants + jnp.sum((a - b) * (digamma(a) - digamma(jnp.sum(a))))


def _components_kl(mixture: Mixture, prior: Mixture) -> Float[Array, " k"]:
    size = mixture.mean.shape[1]
    factor, prior_factor = _factor(mixture), _factor(prior)
    solve = lambda right: jax.lax.linalg.triangular_solve(
        factor, right, left_side=True, lower=True
    )
    ratio = prior.mean_precision / mixture.mean_precision
    distance = jnp.sum(solve((mixture.mean - prior.mean)[..., None]) ** 2, axis=(1, 2))
    means = (
        size * (ratio - 1 - jnp.log(ratio))
        + prior.mean_precision * mixture.degrees * distance
    )
    trace = jnp.sum(solve(prior_factor) ** 2, axis=(1, 2))
    precisions = (mixture.degrees - prior.degrees) * _expected_log_det(mixture, factor)
    precisions = precisions + mixture.degrees * (trace - size)
    constants = _log_wishart_constant(mixture, factor) - _log_wishart_constant(
        prior, prior_factor
    )
    return 0.5 * (means + precisions) + constants


def _log_wishart_constant(
    mixture: Mixture, factor: Float[Array, "k d d"]
) -> Float[Array, " k"]:
    size = mixture.mean.shape[1]
    log_gammas = jnp.sum(gammaln(_half_degrees(mixture)), axis=1) + size * (
        size - 1
    ) / 4 * math.log(math.pi)
    return 0.5 * mixture.degrees * (_log_det(factor) - size * math.log(2)) - log_gammas


def _expected_log_det(
    mixture: Mixture, factor: Float[Array, "k d d"]
) -> Float[Array, " k"]:
    """Of the precisions."""
    return jnp.sum(digamma(_half_degrees(mixture)) + math.log(2), axis=1) - _log_det(
        factor
    )


def _half_degrees(mixture: Mixture) -> Float[Array, "k d"]:
    return (
        mixture.degrees[:, None]
        - jnp.arange(mixture.mean.shape[1], dtype=mixture.mean.dtype)
    ) / 2


def _factor(mixture: Mixture) -> Float[Array, "k d d"]:
    size = mixture.mean.shape[1]
    return jnp.linalg.cholesky(
        mixture.inverse_scale + JITTER * jnp.eye(size, dtype=mixture.mean.dtype)
    )


def _log_det(factor: Float[Array, "k d d"]) -> Float[Array, " k"]:
    return 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)


def _outer(vectors: Float[Array, "k d"]) -> Float[Array, "k d d"]:
    return vectors[:, :, None] * vectors[:, None, :]
