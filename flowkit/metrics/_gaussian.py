r"""The closed-form distance of two Gaussians.

With factors $A = F F^\top$ and $B = G G^\top$ of the covariances,

$$W_2^2 = |m_x - m_y|^2 + \min_{U \in O(d)} \|F - G U\|^2,$$

where the best $U$ is the orthogonal factor of $G^\top F$. The usual form,
$\mathrm{tr}(A + B - 2 (A^{1/2} B A^{1/2})^{1/2})$, is the same number, but cancels to
rounding errors for near covariances.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced
from flowkit.metrics._inputs import check_values, working_dtype
from flowkit.metrics._reductions import safe_sqrt


def gaussian_w2(
    mean_x: Float[AnyArray, " d"],
    cov_x: Float[AnyArray, "d d"],
    mean_y: Float[AnyArray, " d"],
    cov_y: Float[AnyArray, "d d"],
) -> Float[Array, ""]:
    r"""The 2-Wasserstein distance of two Gaussians.

    $$\sqrt{|m_x - m_y|^2 + \mathrm{tr}\bigl(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}\bigr)}.$$

    This is a distance like `w2`, not its square. The square, for the features of a
    network, is called the Frechet distance. Covariances may be singular; one that is not
    symmetric or has a negative eigenvalue raises `ValueError`.

    **Arguments:** means `(d,)` and covariances `(d, d)`.

    **Reference:** Dowson & Landau, *The Frechet distance between multivariate normal
    distributions* (1982).
    """
    named = {"mean_x": mean_x, "cov_x": cov_x, "mean_y": mean_y, "cov_y": cov_y}
    for name, value in named.items():
        check_values(name, value)
    _check_covariance("cov_x", cov_x)
    _check_covariance("cov_y", cov_y)
    return _gaussian_w2(mean_x, cov_x, mean_y, cov_y)


def _check_covariance(name: str, cov: AnyArray) -> None:
    if is_traced(cov):
        return

    cov = np.asarray(cov, np.float64)
    # Room for the rounding of covariances that were estimated in float32.
    tolerance = 1e-4 * np.abs(cov).max()
    if np.abs(cov - cov.T).max() > tolerance:
        raise ValueError(
            f"`{name}` is not symmetric; give a covariance matrix, not one of its factors."
        )
    if np.linalg.eigvalsh(cov).min() < -tolerance:
        raise ValueError(
            f"`{name}` has a negative eigenvalue, so it is not a covariance matrix."
        )


@eqx.filter_jit
def _gaussian_w2(mean_x, cov_x, mean_y, cov_y):
    dtype = working_dtype(mean_x)
    shift = jnp.asarray(mean_x, dtype) - jnp.asarray(mean_y, dtype)
    factor_x = _factor(jnp.asarray(cov_x, dtype))
    factor_y = _factor(jnp.asarray(cov_y, dtype))

    overlap = _product(factor_y.T, factor_x)
    left, _, right = jnp.linalg.svd(overlap)
    # Held fixed: at the minimum the distance does not depend on the rotation to first order.
    rotation = lax.stop_gradient(_product(left, right))
    turned = _product(factor_y, rotation)
    squared = jnp.sum(jnp.square(shift)) + jnp.sum(jnp.square(factor_x - turned))
    return safe_sqrt(squared)


def _factor(cov):
    """A matrix `F` with `F F^T` the covariance; eigenvalues below zero are rounding."""
    values, vectors = jnp.linalg.eigh(cov)
    return vectors * safe_sqrt(jnp.maximum(values, 0))[None]


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
