"""Posteriors that are known exactly, to judge methods by."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowkit._distributions import GaussianMixture
from flowkit._types import FloatArray, Scalar
from flowkit.inverse._operators import (
    AbstractOperator,
    check_operator,
    shape_behind,
    zero_unobserved,
)


def exact_posterior(
    mixture: GaussianMixture,
    operator: AbstractOperator,
    observed: FloatArray,
    *,
    noise_std: Scalar,
) -> GaussianMixture:
    r"""The posterior of $x$ from a mixture of Gaussians, given $y = A x + s\, \epsilon$.

    It is a mixture again. With $S_k = A C_k A^\top + s^2 I$ and
    $K_k = C_k A^\top S_k^{-1}$, its parts have

    $$m_k + K_k (y - A m_k), \qquad (I - K_k A)\, C_k, \qquad
    \pi_k\, \mathcal N(y;\, A m_k, S_k) \text{ up to a factor}.$$

    It is computed in float64, outside of compiled programs.

    **Arguments:** as in `reconstruct`; `noise_std` is positive.

    **Raises:** `ValueError` for an observation or an operator that `reconstruct` refuses,
    and for an operator on other examples than vectors of the mixture.
    """
    noise_std = float(noise_std)
    if not noise_std > 0:
        raise ValueError(f"`noise_std` must be positive, got {noise_std}.")
    observed = jnp.asarray(observed)
    _check(operator, observed, mixture)
    size = mixture.means.shape[1]
    matrix = np.asarray(jax.vmap(operator)(jnp.eye(size)), np.float64)
    matrix = matrix.reshape(size, -1).T
    y = np.asarray(zero_unobserved(operator, observed), np.float64).ravel()

    parts = [
        _condition(
            np.asarray(mean, np.float64),
            np.asarray(lower, np.float64),
            matrix,
            y,
            noise_std,
        )
        for mean, lower in zip(mixture.means, mixture.cholesky, strict=True)
    ]
    means, factors, log_evidence = map(np.stack, zip(*parts, strict=True))
    logits = np.asarray(mixture.logits, np.float64) + log_evidence
    # A weight must be positive; what float32 cannot tell from zero has no effect.
    logits = np.maximum(logits - np.logaddexp.reduce(logits), np.log(1e-30))
    # Factors, since the covariances of little noise are singular in float32.
    dtype = mixture.means.dtype
    return eqx.tree_at(
        lambda mixture: (mixture.means, mixture.factors, mixture.logits),
        mixture,
        [jnp.asarray(a, dtype) for a in (means, factors, logits)],
    )


def _check(
    operator: AbstractOperator, observed: Array, mixture: GaussianMixture
) -> None:
    shape = shape_behind(operator, observed)
    expected = mixture.means.shape[1:]
    if shape != expected:
        raise ValueError(
            f"`operator` observes examples of shape {shape}, but those of `mixture` have "
            f"shape {expected}."
        )
    check_operator(operator, shape, observed.dtype)


def _condition(
    mean: np.ndarray,
    lower: np.ndarray,
    matrix: np.ndarray,
    y: np.ndarray,
    noise_std: float,
) -> tuple[np.ndarray, np.ndarray, np.floating]:
    """Mean, factor and log-evidence of one part given the observation.

    The factor is as the mixture stores it, with its diagonal in logarithms.
    """
    covariance = lower @ lower.T
    total = matrix @ covariance @ matrix.T + noise_std**2 * np.eye(len(y))
    gain = np.linalg.solve(total, matrix @ covariance).T
    surprise = y - matrix @ mean

    # Joseph's form is not multiplied out, which would square the rounding of its root.
    left = np.eye(len(mean)) - gain @ matrix
    root = np.hstack([left @ lower, noise_std * gain])
    _, upper = np.linalg.qr(root.T)
    sizes = np.diag(upper)
    factor = upper.T * np.sign(sizes)
    np.fill_diagonal(factor, np.log(np.abs(sizes)))

    _, log_det = np.linalg.slogdet(total)
    log_evidence = -0.5 * (surprise @ np.linalg.solve(total, surprise) + log_det)
    return mean + gain @ surprise, factor, log_evidence
