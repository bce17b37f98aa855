"""Divergences of latents from a prior."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._distributions import AbstractDistribution, Normal
from flowkit._types import AnyArray, Cond, FloatArray, PRNGKey
from flowkit.latent._priors import prior_keywords


def standard_normal_kl(
    mean: FloatArray,
    log_variance: FloatArray,
    reduction: Callable[[Array], Array] = jnp.mean,
) -> Float[Array, ""]:
    r"""$\mathrm{KL}(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(0, 1))$ in nats.

    $\tfrac12 (\mu^2 + \sigma^2 - 1 - \log \sigma^2)$ for each entry; by default the mean over
    all entries.

    **Arguments:**

    - `mean`, `log_variance`: arrays of the same shape.
    - `reduction`: how the entries are combined; `jnp.sum` gives the divergence of all of
      them together.

    **Reference:** Kingma and Welling, Auto-Encoding Variational Bayes (2014), arXiv
    1312.6114.
    """
    return reduction(normal_kl(mean, log_variance))


def normal_kl(mean: FloatArray, log_variance: FloatArray) -> Float[Array, "..."]:
    """The divergence of each entry from a standard normal, in nats."""
    mean = jnp.asarray(mean)
    return 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance)


def sampled_kl(
    mean: Float[AnyArray, "k c"],
    log_variance: Float[AnyArray, "k c"],
    prior: AbstractDistribution,
    cond: Cond = None,
    *,
    num_samples: int = 1,
    reduction: Callable[[Array], Array] = jnp.mean,
    key: PRNGKey,
) -> Float[Array, ""]:
    r"""An estimate of $\mathrm{KL}(\mathcal N(\mu, \sigma^2) \,\|\, p)$ in nats.

    It serves any prior with a density: the mean of $\log q(z) - \log p(z)$ over draws
    $z = \mu + \sigma \epsilon$. The estimate is unbiased, so it may be negative. Its gradient
    reaches the prior too, and is that of the evidence lower bound.

    **Arguments:**

    - `mean`, `log_variance`: the posterior of the latents of one cloud.
    - `prior`, `cond`: the prior, and its condition if it takes one.
    - `num_samples`: the number of draws.
    - `reduction`: `jnp.sum` for the divergence of the latents, `jnp.mean` for that divided
      by the number of entries.
    - `key`: the key of the draws.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")

    mean = jnp.asarray(mean)
    log_variance = jnp.asarray(log_variance)
    std = jnp.exp(0.5 * log_variance)
    keywords = prior_keywords(prior, cond)

    def log_ratio(noise: Array) -> Array:
        log_q = Normal().log_prob(noise) - 0.5 * jnp.sum(log_variance)
        return log_q - prior.log_prob(mean + std * noise, **keywords)

    noise = jr.normal(key, (num_samples, *mean.shape), mean.dtype)
    total = jnp.mean(jax.vmap(log_ratio)(noise))

    # The divergence belongs to all entries together. Each gets an equal share, so that
    # `reduction` works as documented.
    shares = jnp.full(mean.shape, 1 / mean.size, mean.dtype)
    return reduction(shares * total)


def marginal_kl(latents: Float[AnyArray, "batch k c"]) -> Float[Array, ""]:
    r"""The divergence to a standard normal of the diagonal Gaussian with the batch's moments.

    With mean $m_j$ and variance $s_j^2$ of each of the `c` dimensions over the batch and the
    `k` latents,

    $$\mathrm{mean}_j\, \tfrac12 (s_j^2 + m_j^2 - 1 - \log(s_j^2 + 10^{-8})).$$

    It pulls the aggregate of all latents toward a normal, and constrains nothing beyond two
    moments.
    """
    mean = jnp.mean(latents, axis=(0, 1))
    variance = jnp.var(latents, axis=(0, 1))
    # Latents that are the same for all clouds have variance zero, whose logarithm is
    # infinite.
    return jnp.mean(0.5 * (variance + mean**2 - 1 - jnp.log(variance + 1e-8)))
