r"""A Gaussian mixture fitted by variational Bayes.

Weights have a Dirichlet prior, means and precisions a normal-Wishart prior. The posterior
is approximated by a product of distributions of the same families and responsibilities

$$r_{nk} \propto \exp \mathbb E \ln \pi_k \mathcal N(x_n; \mu_k, \Lambda_k^{-1}).$$

Every step moves the parameters toward the best ones given the responsibilities, which
never lowers the evidence bound. Bishop, Pattern Recognition and Machine Learning, 2006,
section 10.2.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array, Float

from flowkit._masks import zero_masked
from flowkit._types import Mask
from flowkit.nn._sets.geometry import farthest_points


HIGHEST = jax.lax.Precision.HIGHEST
JITTER = 1e-6
"""Added to the diagonal of inverse scale matrices before they are factorized."""


class Mixture(NamedTuple):
    """The parameters of the distributions of `k` components.

    The first are those of the Dirichlet distribution; `mean_precision` and `mean` those
    of the normal, `degrees` and `inverse_scale` those of the Wishart distributions.
    """

    concentration: Float[Array, " k"]
    mean_precision: Float[Array, " k"]
    degrees: Float[Array, " k"]
    mean: Float[Array, "k d"]
    inverse_scale: Float[Array, "k d d"]


def prior_mixture(num: int, size: int, scale: float, dtype: jnp.dtype) -> Mixture:
    """The prior for clouds around the origin.

    Its components have covariances of about `scale^2 num^(-2 / size)`.
    """
    degrees = size + 2.0
    variance = num ** (-2 / size) * scale**2
    inverse_scale = degrees * variance * jnp.eye(size, dtype=dtype)
    return Mixture(
        concentration=jnp.full(num, 1 / num, dtype),
        mean_precision=jnp.full(num, 1.0, dtype),
        degrees=jnp.full(num, degrees, dtype),
        mean=jnp.zeros((num, size), dtype),
        inverse_scale=jnp.broadcast_to(inverse_scale, (num, size, size)),
    )


@eqx.filter_jit(inline=True)  # pyright: ignore
def fit(
    points: Float[Array, "n d"],
    mask: Mask | None,
    prior: Mixture,
    *,
    num_steps: int,
    rate: float,
) -> tuple[Mixture, Float[Array, "n k"]]:
    """The mixture after damped steps, and the last responsibilities.

    It begins at means that are far from each other.
    """
    num = prior.mean.shape[0]
    start = prior._replace(mean=points[farthest_points(points, num, mask)])
    weight = point_weight(points, mask, num)

    def step(_, state):
        mixture, _ = state
        scores = expected_log_joint(mixture, points)
        responsibilities = zero_masked(jax.nn.softmax(scores, axis=1), mask)
        best = target(prior, points, responsibilities, weight)
        return damped(mixture, best, rate), responsibilities

    nothing = jnp.zeros((points.shape[0], num), points.dtype)
    return jax.lax.fori_loop(0, num_steps, step, (start, nothing))


def point_weight(
    points: Float[Array, "n d"], mask: Mask | None, num: int
) -> Float[Array, ""]:
    """How much each point counts: all together at most 40 for each component."""
    count = points.shape[0] if mask is None else jnp.sum(jnp.asarray(mask))
    total = jnp.asarray(count, points.dtype)
    return jnp.minimum(total, 40.0 * num) / jnp.maximum(total, 1.0)


def expected_log_joint(
    mixture: Mixture, points: Float[Array, "n d"]
) -> Float[Array, "n k"]:
    r"""$\mathbb E \ln \pi_k \mathcal N(x_n; \mu_k, \Lambda_k^{-1})$.

    The expectation is over weights, means and precisions.
    """
    size = points.shape[1]
    factor = cholesky_factor(mixture)
    difference = points.T[None] - mixture.mean[:, :, None]
    whitened = jax.lax.linalg.triangular_solve(
        factor, difference, left_side=True, lower=True
    )
    distances = mixture.degrees[:, None] * jnp.sum(whitened**2, axis=1)
    squares = (size / mixture.mean_precision)[:, None] + distances

    total = jnp.sum(mixture.concentration)
    log_weight = digamma(mixture.concentration) - digamma(total)
    log_det = expected_log_det(mixture, factor) - size * math.log(2 * math.pi)
    return (log_weight + 0.5 * log_det)[None] - 0.5 * squares.T


def target(
    prior: Mixture,
    points: Float[Array, "n d"],
    responsibilities: Float[Array, "n k"],
    weight: Float[Array, ""],
) -> Mixture:
    """The best distributions given the responsibilities."""
    sizes = jnp.sum(responsibilities, axis=0)
    totals = jnp.matmul(responsibilities.T, points, precision=HIGHEST)
    # An empty component has a total of zero, and so the mean zero.
    means = totals / jnp.maximum(sizes, jnp.finfo(points.dtype).tiny)[:, None]

    difference = points[None] - means[:, None]
    scatter = jnp.einsum(
        "nk,kni,knj->kij", responsibilities, difference, difference, precision=HIGHEST
    )
    sizes = weight * sizes
    mean_precision = prior.mean_precision + sizes
    share = (sizes / mean_precision)[:, None]

    shift = prior.mean_precision[:, None] * share
    between = shift[..., None] * _outer(means - prior.mean)
    return Mixture(
        concentration=prior.concentration + sizes,
        mean_precision=mean_precision,
        degrees=prior.degrees + sizes,
        mean=(1 - share) * prior.mean + share * means,
        inverse_scale=prior.inverse_scale + weight * scatter + between,
    )


def damped(old: Mixture, new: Mixture, rate: float) -> Mixture:
    """The natural parameters, moved by `rate` from the old ones to the new ones.

    They hold `inverse_scale + mean_precision mean mean^T`. The products of means are
    joined in a form that keeps the matrices positive definite after rounding.
    """

    def move(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
        return (1 - rate) * a + rate * b

    mean_precision = move(old.mean_precision, new.mean_precision)
    share = rate * new.mean_precision / mean_precision
    step = new.mean - old.mean
    apart = ((1 - rate) * old.mean_precision * share)[:, None, None] * _outer(step)
    return Mixture(
        concentration=move(old.concentration, new.concentration),
        mean_precision=mean_precision,
        degrees=move(old.degrees, new.degrees),
        mean=old.mean + share[:, None] * step,
        inverse_scale=move(old.inverse_scale, new.inverse_scale) + apart,
    )


def cholesky_factor(mixture: Mixture) -> Float[Array, "k d d"]:
    """The lower Cholesky factors of the inverse scale matrices."""
    size = mixture.mean.shape[1]
    jitter = JITTER * jnp.eye(size, dtype=mixture.mean.dtype)
    return jnp.linalg.cholesky(mixture.inverse_scale + jitter[None])


def expected_log_det(
    mixture: Mixture, factor: Float[Array, "k d d"]
) -> Float[Array, " k"]:
    """The expected log-determinants of the precisions."""
    size = mixture.mean.shape[1]
    axes = jnp.arange(size, dtype=mixture.mean.dtype)
    half_degrees = (mixture.degrees[:, None] - axes[None]) / 2

    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
    return jnp.sum(digamma(half_degrees) + math.log(2), axis=1) - log_det


def _outer(vectors: Float[Array, "k d"]) -> Float[Array, "k d d"]:
    return vectors[:, :, None] * vectors[:, None, :]
