"""Pairs of Gaussians in the plane.

Their density is known, and with it everything about a flow between them.
"""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import PRNGKey
from flowkit.data._toys import blur, check_draw, Mixture, sampler


class FullMixture(NamedTuple):
    """The parameters of a Gaussian mixture with correlations.

    `fk.GaussianMixture(*mixture)` is its exact density.

    - `means`: `(k, d)`.
    - `covariances`: `(k, d, d)`.
    - `weights`: `(k,)`, their sum is one.
    """

    means: Float[np.ndarray, "k d"]
    covariances: Float[np.ndarray, "k d d"]
    weights: Float[np.ndarray, " k"]


def _frozen(*arrays: list) -> list[np.ndarray]:
    frozen = [np.array(array, float) for array in arrays]
    for array in frozen:
        # Shared by everyone who imports it.
        array.flags.writeable = False
    return frozen


_COVARIANCES = [[[0.5, 0.0], [0.0, 0.5]], [[0.3, 0.15], [0.15, 0.3]]]

TWO_GAUSSIANS = FullMixture(
    *_frozen([[-2.0, -2.0], [2.0, 2.0]], _COVARIANCES, [0.6, 0.4])
)
"""0.6 N((-2, -2), 0.5 I) + 0.4 N((2, 2), [[0.3, 0.15], [0.15, 0.3]]): mean (-0.4, -0.4)."""

SHIFTED_GAUSSIANS = FullMixture(
    *_frozen([[5.5, -2.5], [5.5, 2.5]], _COVARIANCES, [0.6, 0.4])
)
"""`TWO_GAUSSIANS` with means (5.5, -2.5) and (5.5, 2.5), away from a source around zero."""

TWO_CENTERS = Mixture(
    *_frozen([[3.0, 1.0], [3.0, -1.0]], [[0.3, 0.3], [0.3, 0.3]], [0.5, 0.5])
)
"""Equal Gaussians at (3, 1) and (3, -1) of standard deviation 0.3.

The source that goes with it is N(0, 0.5^2 I).
"""


def two_gaussians(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """Draws from the pair of Gaussians `TWO_GAUSSIANS`, one of which is correlated."""
    return _draw_full(num, TWO_GAUSSIANS, key)


def shifted_gaussians(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """Draws from `SHIFTED_GAUSSIANS`."""
    return _draw_full(num, SHIFTED_GAUSSIANS, key)


def two_centers(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """Draws from `TWO_CENTERS`."""
    check_draw(num)
    return _draw_centers(num, key)


def _draw_full(num: int, mixture: FullMixture, key: PRNGKey) -> Float[Array, "num 2"]:
    check_draw(num)
    means = jnp.asarray(mixture.means, float)
    # Factored on the host, in float64.
    factors = jnp.asarray(np.linalg.cholesky(mixture.covariances), float)
    return _draw(num, means, factors, jnp.asarray(mixture.weights[1], float), key)


@sampler
def _draw(num: int, means: Array, factors: Array, second: Array, key: PRNGKey):
    index_key, noise_key = jr.split(key)
    index = jr.bernoulli(index_key, second, (num,)).astype(int)
    noise = jr.normal(noise_key, (num, means.shape[1]))
    return means[index] + jnp.einsum("nij,nj->ni", factors[index], noise)


@sampler
def _draw_centers(num: int, key: PRNGKey):
    index_key, noise_key = jr.split(key)
    means, stds, _ = (jnp.asarray(a, float) for a in TWO_CENTERS)
    index = jr.bernoulli(index_key, shape=(num,)).astype(int)
    return blur(means[index], stds[index], noise_key)
