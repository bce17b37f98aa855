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
    r"""$\mathrm{KL}(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(0, 1))$ in nats, the mean over all entries.

    $\tfrac12 (\mu^2 + \sigma^2 - 1 - \log \sigma^2)$ each.

    **Arguments:**

    - `mean`, `log_variance`: of the same shape.
    - `reduction`: over the entries: `jnp.sum` is the divergence of all of them together.

    **Reference:** Kingma and Welling, Auto-Encoding Variational Bayes (2014), arXiv 1312.6114.
    """
    return reduction(
        jnp.asarray(0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance))
    )


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
    r"""An estimate of $\mathrm{KL}(\mathcal N(\mu, \sigma^2) \,\|\, p)$ in nats for any prior with a density.

    The mean of $\log q(z) - \log p(z)$ over draws $z = \mu + \sigma \epsilon$: unbiased, so it may be negative. Its
    gradient reaches the prior too: it is that of the evidence lower bound.

    **Arguments:**

    - `mean`, `log_variance`: of the latents of one cloud.
    - `prior`, `cond`: the prior, and its condition if it takes one.
    - `num_samples`: how many draws.
    - `reduction`: `jnp.sum` for the divergence of the latents, `jnp.mean` for that divided by the number of entries.
    - `key`: for the draws.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
    mean, log_variance = jnp.asarray(mean), jnp.asarray(log_variance)
    noise = jr.normal(key, (num_samples, *mean.shape), mean.dtype)
    keywords = prior_keywords(prior, cond)

    def log_ratio(noise):
        log_q = Normal().log_prob(noise) - 0.5 * jnp.sum(log_variance)
        return log_q - prior.log_prob(
            mean + jnp.exp(0.5 * log_variance) * noise, **keywords
        )

    total = jnp.mean(jax.vmap(log_ratio)(noise))
    # The divergence belongs to all entries together; an equal share of each lets the reduction mean what it says.
    return reduction(jnp.full(mean.shape, 1 / mean.size, mean.dtype) * total)


def marginal_kl(latents: Float[AnyArray, "batch k c"]) -> Float[Array, ""]:
    r"""The KL divergence to a standard normal of the diagonal Gaussian with the moments of the batch.

    With mean $m_j$ and variance $s_j^2$ of each of the `c` dimensions over the batch and the `k` latents,
    $\mathrm{mean}_j\, \tfrac12 (s_j^2 + m_j^2 - 1 - \log(s_j^2 + 10^{-8}))$. It pulls the aggregate of all latents
    towards a normal, and says nothing about its shape beyond two moments.
    """
    mean = jnp.mean(latents, axis=(0, 1))
    variance = jnp.var(latents, axis=(0, 1))
    return jnp.mean(0.5 * (variance + mean**2 - 1 - jnp.log(variance + 1e-8)))
