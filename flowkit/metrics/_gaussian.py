r"""The closed-form distance of two Gaussians.

With factors $A = F F^\top$ and $B = G G^\top$ of the covariances,

$$W_2^2 = |m_x - m_y|^2 + \min_{U \in O(d)} \|F - G U\|^2,$$

where the best $U$ is the orthogonal factor of $G^\top F$. The usual form,
$\mathrm{tr}(A + B - 2 (A^{1/2} B A^{1/2})^{1/2})$, is the same number, but cancellation
leaves only rounding errors if the covariances are close. Its gradient in $A$ is
$I - T$, where $T = G U F^{-1}$ is the matrix of the optimal map.
"""

import equinox as eqx
import jax
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
    cov_x = jnp.asarray(cov_x, dtype)
    cov_y = jnp.asarray(cov_y, dtype)
    return safe_sqrt(squared_w2(shift, cov_x, cov_y))


@jax.jit
def squared_w2(
    shift: Float[Array, " d"], cov_x: Float[Array, "d d"], cov_y: Float[Array, "d d"]
) -> Float[Array, ""]:
    """The square of `gaussian_w2`, given the difference of the means."""
    return jnp.sum(jnp.square(shift)) + _squared_bures(cov_x, cov_y)


@jax.custom_jvp
def _squared_bures(cov_x, cov_y):
    """The square of the distance for equal means."""
    factor_x, turned = _aligned(_roots(cov_x), _roots(cov_y))
    return jnp.sum(jnp.square(factor_x - turned))


@_squared_bures.defjvp
def _squared_bures_jvp(primals, tangents):
    # Eigenvectors have no derivative where two eigenvalues are equal; the distance has one.
    roots = tuple(map(_roots, primals))
    factor_x, turned_y = _aligned(*roots)
    factor_y, turned_x = _aligned(*reversed(roots))
    slope_x = _product(factor_x - turned_y, _pseudoinverse(roots[0]))
    slope_y = _product(factor_y - turned_x, _pseudoinverse(roots[1]))
    d_squared = jnp.sum(slope_x * tangents[0]) + jnp.sum(slope_y * tangents[1])
    return jnp.sum(jnp.square(factor_x - turned_y)), d_squared


def _roots(cov):
    """Roots of the eigenvalues, where negative ones count as zero, and the eigenvectors."""
    values, vectors = jnp.linalg.eigh(cov)
    return safe_sqrt(jnp.maximum(values, 0)), vectors


def _aligned(roots_x, roots_y):
    """Factors `F` and `G U` of both covariances that are as near as can be."""
    factor_x = roots_x[1] * roots_x[0][None]
    factor_y = roots_y[1] * roots_y[0][None]
    left, _, right = jnp.linalg.svd(_product(factor_y.T, factor_x))
    return factor_x, _product(factor_y, _product(left, right))


def _pseudoinverse(roots):
    """The inverse of the factor `F`, zero along directions without variance."""
    values, vectors = roots
    known = values > jnp.max(values) * jnp.sqrt(jnp.finfo(values.dtype).eps)
    inverse = jnp.where(known, 1 / jnp.where(known, values, 1), 0)
    return inverse[:, None] * vectors.T


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
