"""The closed-form distance of two Gaussians."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced
from flowkit.metrics._distances import check_values, safe_sqrt


def gaussian_w2(
    mean_x: Float[AnyArray, " d"],
    cov_x: Float[AnyArray, "d d"],
    mean_y: Float[AnyArray, " d"],
    cov_y: Float[AnyArray, "d d"],
) -> Float[Array, ""]:
    """The 2-Wasserstein distance of two Gaussians, `sqrt(|m_x - m_y|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2))`.

    A distance like `w2`, not its square; the square, on the features of a network, is what is called the
    Frechet distance. Covariances may be singular; one that is not symmetric or has a negative eigenvalue is a
    `ValueError`.

    **Reference:** Dowson & Landau, *The Frechet distance between multivariate normal distributions* (1982).
    """
    named = {"mean_x": mean_x, "cov_x": cov_x, "mean_y": mean_y, "cov_y": cov_y}
    for name, value in named.items():
        check_values(name, value)
    for name in ("cov_x", "cov_y"):
        _check_covariance(name, named[name])
    return _gaussian_w2(mean_x, cov_x, mean_y, cov_y)


def _check_covariance(name: str, cov) -> None:
    if is_traced(cov):
        return
    cov = np.asarray(cov, np.float64)
    tolerance = 1e-4 * np.abs(cov).max()
    if np.abs(cov - cov.T).max() > tolerance:
        raise ValueError(
            f"`{name}` is not symmetric; pass a covariance matrix, not one of its factors."
        )
    if np.linalg.eigvalsh(cov).min() < -tolerance:
        raise ValueError(
            f"`{name}` has a negative eigenvalue, so it is not a covariance matrix."
        )


@eqx.filter_jit
def _gaussian_w2(mean_x, cov_x, mean_y, cov_y):
    mean_x = jnp.asarray(mean_x)
    cov_x, mean_y, cov_y = (
        jnp.asarray(a, mean_x.dtype) for a in (cov_x, mean_y, cov_y)
    )
    values, vectors = jnp.linalg.eigh(cov_x)
    scaled = vectors * safe_sqrt(jnp.maximum(values, 0))
    # A^1/2 B A^1/2 and F' B F with A = F F' have the same eigenvalues: the second root is never formed.
    half = jnp.matmul(scaled.T, cov_y, precision=lax.Precision.HIGHEST)
    product = jnp.matmul(half, scaled, precision=lax.Precision.HIGHEST)
    overlap = jnp.sum(safe_sqrt(jnp.maximum(jnp.linalg.eigvalsh(product), 0)))
    spread = jnp.trace(cov_x) + jnp.trace(cov_y) - 2 * overlap
    return safe_sqrt(jnp.sum(jnp.square(mean_x - mean_y)) + jnp.maximum(spread, 0))
