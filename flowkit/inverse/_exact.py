"""Posteriors that are known exactly, to judge methods by."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from flowkit._distributions import GaussianMixture
from flowkit._types import FloatArray
from flowkit.inverse._operators import AbstractOperator, zero_unobserved


def exact_posterior(
    mixture: GaussianMixture,
    operator: AbstractOperator,
    observed: FloatArray,
    *,
    noise_std: float,
) -> GaussianMixture:
    r"""The posterior of $x$ from a mixture of Gaussians, given $y = A x + s\, \epsilon$.

    It is a mixture again. With $S_k = A C_k A^\top + s^2 I$ and
    $K_k = C_k A^\top S_k^{-1}$, its parts have

    $$m_k + K_k (y - A m_k), \qquad (I - K_k A)\, C_k, \qquad
    \pi_k\, \mathcal N(y;\, A m_k, S_k) \text{ up to a factor}.$$

    It is computed in float64, outside of compiled programs.

    **Arguments:** as in `reconstruct`; `noise_std` is positive.
    """
    if not noise_std > 0:
        raise ValueError(f"`noise_std` must be positive, got {noise_std}.")
    size = mixture.means.shape[1]
    matrix = np.asarray(jax.vmap(operator)(jnp.eye(size)), np.float64)
    matrix = matrix.reshape(size, -1).T
    y = np.asarray(zero_unobserved(operator, observed), np.float64).ravel()

    parts = [
        _condition(
            np.asarray(mean, np.float64),
            np.asarray(cov, np.float64),
            matrix,
            y,
            noise_std,
        )
        for mean, cov in zip(mixture.means, mixture.covariances, strict=True)
    ]
    means, covariances, log_evidence = map(np.stack, zip(*parts, strict=True))
    logits = np.asarray(mixture.logits, np.float64) + log_evidence
    weights = np.exp(logits - logsumexp(logits))
    # A weight must be positive; what float32 cannot tell from zero has no effect.
    weights = np.maximum(weights, 1e-30)
    dtype = mixture.means.dtype
    return GaussianMixture(
        *(jnp.asarray(a, dtype) for a in (means, covariances, weights))
    )


def _condition(
    mean: np.ndarray,
    covariance: np.ndarray,
    matrix: np.ndarray,
    y: np.ndarray,
    noise_std: float,
) -> tuple[np.ndarray, np.ndarray, np.floating]:
    """Mean and covariance of one part given the observation, and its log-evidence."""
    total = matrix @ covariance @ matrix.T + noise_std**2 * np.eye(len(y))
    gain = np.linalg.solve(total, matrix @ covariance).T
    surprise = y - matrix @ mean

    left = np.eye(len(mean)) - gain @ matrix
    # Joseph's form stays positive definite in spite of rounding.
    posterior = left @ covariance @ left.T + noise_std**2 * gain @ gain.T
    _, log_det = np.linalg.slogdet(total)
    log_evidence = -0.5 * (surprise @ np.linalg.solve(total, surprise) + log_det)
    return mean + gain @ surprise, posterior, log_evidence
