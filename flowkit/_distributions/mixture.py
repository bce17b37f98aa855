r"""Gaussian mixtures, in closed form along every path.

With source $\mathcal N(\mu_0, \mathrm{diag}(s_0^2))$ and data $\sum_k \pi_k \mathcal
N(m_k, \Sigma_k)$, $x = \alpha x_1 + \sigma x_0$ has components of mean $\alpha m_k +
\sigma \mu_0$ and covariance $C_k = \alpha^2 \Sigma_k + \sigma^2 \mathrm{diag}(s_0^2)$.
With the deviations $d_k$ from these means and the responsibilities $\gamma_k$,

$$\mathbb E[x_1 \mid x] = \sum_k \gamma_k (m_k + \alpha \Sigma_k C_k^{-1} d_k), \qquad
\mathbb E[x_0 \mid x] =
\sum_k \gamma_k (\mu_0 + \sigma\, \mathrm{diag}(s_0^2)\, C_k^{-1} d_k).$$

In coordinates where the source is standard all $C_k$ are diagonal in the eigenbasis of
$\Sigma_k$, which is computed once.
"""

import functools as ft
import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp
import numpy as np
from jaxtyping import Array, Float, Int

from flowkit._distributions.base import (
    AbstractDistribution,
    AbstractExactDistribution,
    as_shape,
    broadcast,
)
from flowkit._distributions.normal import Normal, normal_source
from flowkit._types import FloatArray, is_traced, Number, PRNGKey


# Of the Cholesky factors that exist at a time in a sample: 4 MiB in float32.
_NUM_ENTRIES = 2**20

# Some devices round the factors of products to 10 bits otherwise.
_einsum = ft.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class GaussianMixture(AbstractExactDistribution):
    r"""$p(x) = \sum_k \pi_k\, \mathcal N(x; m_k, L_k L_k^\top)$ over vectors `(d,)`.

    The parameters are stored unconstrained, so that they can be trained as they are:
    `logits` of the weights, `means`, and `factors`, the lower Cholesky factors $L_k$
    with their diagonal in logarithms.

    **Arguments:**

    - `means`: `(k, d)`.
    - `covariances`: `(k, d, d)`, positive definite; or standard deviations: a number,
      `(k,)` or `(k, d)`.
    - `weights`: `(k,)`, positive, normalized here; equal if `None`.
    """

    logits: Float[Array, " k"]
    means: Float[Array, "k d"]
    factors: Float[Array, "k d d"]

    def __init__(
        self,
        means: FloatArray,
        covariances: Number | FloatArray = 1.0,
        weights: FloatArray | None = None,
    ):
        means = jnp.asarray(means)
        if means.ndim != 2 or 0 in means.shape:
            raise ValueError(
                f"`means` must have shape (k, d) with k, d >= 1, got {means.shape}."
            )
        self.means = means
        self.logits = jnp.log(_checked_weights(weights, means))
        lower = _cholesky_factors(jnp.asarray(covariances, means.dtype), *means.shape)
        index = jnp.arange(means.shape[1])
        self.factors = lower.at[:, index, index].set(jnp.log(lower[:, index, index]))

    @property
    def weights(self) -> Float[Array, " k"]:
        """The normalized weights."""
        return jax.nn.softmax(self.logits)

    @property
    def cholesky(self) -> Float[Array, "k d d"]:
        """The lower Cholesky factors of the covariances."""
        index = jnp.arange(self.means.shape[1])
        lower = jnp.tril(self.factors)
        return lower.at[:, index, index].set(jnp.exp(self.factors[:, index, index]))

    @property
    def covariances(self) -> Float[Array, "k d d"]:
        """The covariances."""
        lower = self.cholesky
        return _einsum("kij,klj->kil", lower, lower)

    def sample(self, shape: Sequence[int], *, key: PRNGKey) -> Float[Array, "..."]:
        shape = as_shape(shape)
        self._check_event(shape)
        ckey, nkey = jr.split(key)
        component = jr.categorical(ckey, self.logits, shape=shape[:-1])
        noise = jr.normal(nkey, shape, self.means.dtype)

        rows = (component.reshape(-1), noise.reshape(-1, shape[-1]))
        return _place(self.means, self.cholesky, *rows).reshape(shape)

    def log_prob(self, x: FloatArray) -> Float[Array, ""]:
        x = jnp.asarray(x)
        self._check_event(x.shape)
        rows = jnp.reshape(x, (-1, x.shape[-1]))
        return jnp.sum(jax.vmap(self._log_prob)(rows))

    def _log_prob(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        whitened = jax.vmap(_solve_lower)(self.cholesky, x[None] - self.means)
        log_det = jnp.trace(self.factors, axis1=-2, axis2=-1)
        constant = 0.5 * x.shape[0] * math.log(2 * math.pi)
        terms = -0.5 * jnp.sum(whitened**2, axis=-1) - log_det - constant
        return jsp.special.logsumexp(jax.nn.log_softmax(self.logits) + terms)

    def posterior(
        self, source: AbstractDistribution
    ) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
        source = normal_source(source)
        std = broadcast(jnp.asarray(source.std, self.means.dtype), self.means.shape[1:])
        scaled = self.covariances / (std[:, None] * std[None, :])[None]
        variances, bases = jnp.linalg.eigh(scaled)
        log_weights = jax.nn.log_softmax(self.logits)
        means = self.means / std[None]
        return _MixturePosterior(log_weights, means, variances, bases, source)

    def marginal(
        self, alpha: Array, sigma: Array, source: AbstractDistribution
    ) -> AbstractDistribution:
        return smoothed(
            normal_source(source),
            alpha,
            sigma,
            self.means,
            self.covariances,
            self.weights,
        )

    def _check_event(self, shape: tuple[int, ...]) -> None:
        if len(shape) == 0 or shape[-1] != self.means.shape[1]:
            raise ValueError(
                f"the last axis must be {self.means.shape[1]}, the dimension of the "
                f"mixture, got shape {shape}."
            )


def smoothed(
    source: Normal,
    alpha: Array,
    sigma: Array,
    means: Float[Array, "k d"],
    covariances: Float[Array, "k d d"],
    weights: Float[Array, " k"],
) -> GaussianMixture:
    """The mixture of `alpha x1 + sigma x0` for components that may have no width."""
    size = means.shape[1:]
    variances = broadcast(jnp.asarray((sigma * source.std) ** 2), size)
    shift = broadcast(jnp.asarray(sigma * source.mean), size)
    covariances = alpha**2 * covariances + jnp.diag(variances)[None]
    return GaussianMixture(alpha * means + shift[None], covariances, weights)


class _MixturePosterior(eqx.Module):
    """Works on `(x - sigma mean_0) / std_0`, where the source is standard.

    `means` and `variances` are scaled alike.
    """

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    variances: Float[Array, "k d"]
    bases: Float[Array, "k d d"]
    source: Normal

    def __call__(self, x: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        rows = jnp.reshape(x, (-1, x.shape[-1]))
        x0, x1 = jax.vmap(lambda row: self._row(row, alpha, sigma))(rows)
        return jnp.reshape(x0, x.shape), jnp.reshape(x1, x.shape)

    def _row(self, x: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        source_mean = broadcast(self.source.mean, x.shape)
        source_std = broadcast(self.source.std, x.shape)
        whitened = (x - sigma * source_mean) / source_std

        # In its eigenbasis the covariance of a component is diagonal.
        variances = alpha**2 * self.variances + sigma**2
        deviations = whitened[None] - alpha * self.means
        rotated = _einsum("kij,ki->kj", self.bases, deviations)
        solved = rotated / variances
        log_density = -0.5 * jnp.sum(rotated * solved + jnp.log(variances), axis=-1)
        gamma = jax.nn.softmax(self.log_weights + log_density)

        back = ft.partial(_einsum, "k,kij,kj->i", gamma, self.bases)
        x1 = _einsum("k,ki->i", gamma, self.means)
        x1 = x1 + alpha * back(self.variances * solved)
        x0 = sigma * back(solved)
        return source_mean + source_std * x0, source_std * x1


@eqx.filter_jit
def _place(
    means: Float[Array, "k d"],
    cholesky: Float[Array, "k d d"],
    component: Int[Array, " n"],
    noise: Float[Array, "n d"],
) -> Float[Array, "n d"]:
    """`m_k + L_k z` for every row, some rows at a time.

    A factor for each of them would take `d` times the memory of the samples.
    """

    def place(row):
        k, z = row
        return means[k] + _einsum("ij,j->i", cholesky[k], z)

    num_rows = max(_NUM_ENTRIES // means.shape[1] ** 2, 1)
    return jax.lax.map(place, (component, noise), batch_size=num_rows)


def _checked_weights(
    weights: FloatArray | None, means: Float[Array, "k d"]
) -> Float[Array, " k"]:
    num = means.shape[0]
    if weights is None:
        return jnp.ones(num, means.dtype)

    weights = jnp.asarray(weights, means.dtype)
    if weights.shape != (num,):
        raise ValueError(
            f"`weights` must have shape {(num,)}, one per component, got {weights.shape}."
        )
    if not is_traced(weights) and not np.all(np.asarray(weights) > 0):
        raise ValueError(f"`weights` must be positive, got {weights}.")
    return weights


def _cholesky_factors(
    covariances: Float[Array, "..."], num: int, size: int
) -> Float[Array, "k d d"]:
    """The lower factors of covariances `(k, d, d)`, or of standard deviations."""
    if covariances.shape == (num, size, size):
        lower = jnp.linalg.cholesky(covariances)
    elif covariances.shape in ((), (num,), (num, size)):
        stds = covariances[:, None] if covariances.ndim == 1 else covariances
        lower = jax.vmap(jnp.diag)(jnp.broadcast_to(stds, (num, size)))
    else:
        raise ValueError(
            f"`covariances` must have shape {(num, size, size)}, or hold standard "
            f"deviations of shape (), {(num,)} or {(num, size)}; got {covariances.shape}."
        )

    if is_traced(lower):
        return lower
    # A factor of a matrix that is not positive definite is NaN.
    if not np.all(np.diagonal(np.asarray(lower), axis1=1, axis2=2) > 0):
        raise ValueError(
            "`covariances` must be positive definite, standard deviations positive."
        )
    return lower


def _solve_lower(
    lower: Float[Array, "d d"], x: Float[Array, " d"]
) -> Float[Array, " d"]:
    """Solves $L y = x$ for a lower-triangular factor."""
    return jsp.linalg.solve_triangular(lower, x, lower=True)
