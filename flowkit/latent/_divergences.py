"""Divergences that keep latents near a standard normal."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, FloatArray


def standard_normal_kl(mean: FloatArray, log_variance: FloatArray) -> Float[Array, ""]:
    r"""$\mathrm{KL}(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(0, 1))$ in nats, the mean over all entries.

    $\tfrac12 (\mu^2 + \sigma^2 - 1 - \log \sigma^2)$ each.

    **Reference:** Kingma and Welling, Auto-Encoding Variational Bayes (2014), arXiv 1312.6114.
    """
    return jnp.mean(0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance))


def marginal_kl(latents: Float[AnyArray, "batch k c"]) -> Float[Array, ""]:
    r"""The KL divergence to a standard normal of the diagonal Gaussian with the moments of the batch.

    With mean $m_j$ and variance $s_j^2$ of each of the `c` dimensions over the batch and the `k` latents,
    $\mathrm{mean}_j\, \tfrac12 (s_j^2 + m_j^2 - 1 - \log(s_j^2 + 10^{-8}))$. It pulls the aggregate of all latents
    towards a normal, and says nothing about its shape beyond two moments.
    """
    mean = jnp.mean(latents, axis=(0, 1))
    variance = jnp.var(latents, axis=(0, 1))
    return jnp.mean(0.5 * (variance + mean**2 - 1 - jnp.log(variance + 1e-8)))
