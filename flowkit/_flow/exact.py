r"""The exact flow of a known distribution: what a perfect network would predict.

With source $\mathcal N(\mu_0, \mathrm{diag}(s_0^2))$ and data $\sum_k \pi_k \mathcal N(m_k, \Sigma_k)$, drawn
independently, the point on the path has components of mean $\alpha m_k + \sigma \mu_0$ and covariance
$C_k = \alpha^2 \Sigma_k + \sigma^2 \mathrm{diag}(s_0^2)$. With the deviations $d_k$ from these means and the
responsibilities $\gamma_k$,

$$\hat x_1 = \sum_k \gamma_k (m_k + \alpha \Sigma_k C_k^{-1} d_k), \qquad
\hat x_0 = \sum_k \gamma_k (\mu_0 + \sigma\, \mathrm{diag}(s_0^2)\, C_k^{-1} d_k),$$

and every prediction is a combination of the two. In coordinates where the source is standard all $C_k$ are diagonal
in the eigenbasis of $\Sigma_k$, which is computed once. **Reference:** Albergo, Boffi and Vanden-Eijnden, Stochastic
Interpolants (2023), arXiv 2303.08797.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_time
from flowkit._distributions import (
    AbstractDistribution,
    Empirical,
    GaussianMixture,
    Normal,
)
from flowkit._flow.flow import Flow
from flowkit._flow.paths import AbstractPath, as_time, LinearPath
from flowkit._flow.predictions import AbstractPrediction, Score, Velocity
from flowkit._types import Cond, is_traced, Scalar


def exact_flow(
    distribution: AbstractDistribution,
    path: AbstractPath = LinearPath(),
    *,
    source: Normal = Normal(),
    prediction: AbstractPrediction = Velocity(),
) -> Flow:
    """The exact flow from a Gaussian source to `distribution` along `path`, the pairs being independent.

    **Arguments:**

    - `distribution`: `fk.GaussianMixture` or `fk.Normal` (any shape), or `fk.Empirical` (any shape).
    - `path`: any path.
    - `source`: the source, `fk.Normal(mean, std)`.
    - `prediction`: what the exact network returns; each one is in closed form.

    **Returns:** a `Flow`, itself a velocity field. It is exact on all of [0, 1], except for finite data at `t = 1`,
    where the noise is not determined, and for paths whose derivative diverges there.

    **Raises:** `ValueError` for any other distribution, and for scores with another source than the standard one.
    """
    standard = (
        isinstance(source.mean, float)
        and source.mean == 0
        and isinstance(source.std, float)
        and source.std == 1
    )
    if isinstance(prediction, Score) and not standard:
        raise ValueError(
            "`prediction` Score() is for the standard normal source; use `fk.marginal(...).score`."
        )
    if isinstance(distribution, GaussianMixture):
        network = _mixture_network(distribution, path, source, prediction)
    elif isinstance(distribution, Normal):
        network = _NormalNetwork(distribution, path, source, prediction)
    elif isinstance(distribution, Empirical):
        network = _EmpiricalNetwork(distribution, path, source, prediction)
    else:
        raise ValueError(
            f"`distribution` must be a Normal, a GaussianMixture or an Empirical, got {type(distribution).__name__}."
        )
    return Flow(network, path, prediction)


def marginal(
    distribution: AbstractDistribution,
    path: AbstractPath,
    t: Scalar,
    *,
    source: Normal = Normal(),
) -> GaussianMixture:
    """The exact marginal $p_t$ of the path, again a mixture, with `log_prob` and `score`, at `t = 1` as well.

    **Arguments:**

    - `distribution`: a `fk.GaussianMixture`, or `fk.Empirical` vectors (then `t < 1`).
    - `path`, `t`, `source`: as in `fk.exact_flow`.
    """
    check_time("t", t)
    if isinstance(distribution, Empirical):
        if not is_traced(t) and t == 1:
            raise ValueError(
                "`t` must be below 1 for finite data, which have no density."
            )
        if distribution.data.ndim != 2:
            raise ValueError(
                f"`distribution` must hold vectors, data of shape (n, d), got {distribution.data.shape}."
            )
        means = distribution.data
        covariances = jnp.zeros((*means.shape, means.shape[1]), means.dtype)
        weights = jnp.ones(means.shape[0], means.dtype)
    elif isinstance(distribution, GaussianMixture):
        means, covariances, weights = (
            distribution.means,
            distribution.covariances,
            distribution.weights,
        )
    else:
        raise ValueError(
            f"`distribution` must be a GaussianMixture or an Empirical, got {type(distribution).__name__}; one "
            "Gaussian is a mixture with one component."
        )
    t = as_time(t, means.dtype)
    alpha, sigma = path.alpha(t), path.sigma(t)
    noise = jnp.diag(
        jnp.broadcast_to(jnp.asarray(sigma * source.std) ** 2, means.shape[1:])
    )
    return GaussianMixture(
        alpha * means + sigma * source.mean, alpha**2 * covariances + noise, weights
    )


class _MixtureNetwork(eqx.Module):
    """Works on `(x - sigma mean_0) / std_0`, where the source is standard; `means` and `variances` are scaled alike."""

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    variances: Float[Array, "k d"]
    bases: Float[Array, "k d d"]
    source: Normal
    path: AbstractPath
    prediction: AbstractPrediction

    def __call__(
        self, t: Float[Array, ""], x: Float[Array, "..."], cond: Cond = None
    ) -> Float[Array, "..."]:
        del cond
        return jnp.vectorize(ft.partial(self._row, t), signature="(d)->(d)")(x)

    def _row(self, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, " d"]:
        c = self.path.coefficients(t)
        std = self.source.std
        whitened = (x - c.sigma * self.source.mean) / std
        variances = c.alpha**2 * self.variances + c.sigma**2
        rotated = jnp.einsum("kij,ki->kj", self.bases, whitened - c.alpha * self.means)
        solved = rotated / variances
        log_density = -0.5 * jnp.sum(rotated * solved + jnp.log(variances), axis=-1)
        gamma = jax.nn.softmax(self.log_weights + log_density)
        back = ft.partial(jnp.einsum, "k,kij,kj->i", gamma, self.bases)
        x1 = gamma @ self.means + c.alpha * back(self.variances * solved)
        x0 = c.sigma * back(solved)
        return self.prediction.evaluate(c, self.source.mean + std * x0, std * x1)


def _mixture_network(
    mixture: GaussianMixture,
    path: AbstractPath,
    source: Normal,
    prediction: AbstractPrediction,
) -> _MixtureNetwork:
    std = jnp.broadcast_to(
        jnp.asarray(source.std, mixture.means.dtype), mixture.means.shape[1:]
    )
    variances, bases = jnp.linalg.eigh(mixture.covariances / (std[:, None] * std))
    log_weights = jax.nn.log_softmax(mixture.logits)
    return _MixtureNetwork(
        log_weights, mixture.means / std, variances, bases, source, path, prediction
    )


class _NormalNetwork(eqx.Module):
    distribution: Normal
    path: AbstractPath
    source: Normal
    prediction: AbstractPrediction

    def __call__(
        self, t: Float[Array, ""], x: Float[Array, "..."], cond: Cond = None
    ) -> Float[Array, "..."]:
        del cond
        c = self.path.coefficients(t)
        mean, std = self.distribution.mean, self.distribution.std
        variance = (c.alpha * std) ** 2 + (c.sigma * self.source.std) ** 2
        solved = (x - c.alpha * mean - c.sigma * self.source.mean) / variance
        x1 = mean + c.alpha * std**2 * solved
        x0 = self.source.mean + c.sigma * self.source.std**2 * solved
        return self.prediction.evaluate(c, x0, x1)


class _EmpiricalNetwork(eqx.Module):
    distribution: Empirical
    path: AbstractPath
    source: Normal
    prediction: AbstractPrediction

    def __call__(
        self, t: Float[Array, ""], x: Float[Array, "..."], cond: Cond = None
    ) -> Float[Array, "..."]:
        del cond
        data = self.distribution.data
        rows = x.ndim - data.ndim + 1
        apply = ft.partial(self._row, t)
        for _ in range(rows):
            apply = jax.vmap(apply)
        return apply(x)

    def _row(self, t: Float[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
        c = self.path.coefficients(t)
        # At t = 1 the noise is not determined: the nearest time where float arithmetic still sees it stands in.
        sigma = jnp.maximum(c.sigma, 1e-5)
        noise = (x - c.alpha * self.distribution.data) / sigma
        deviation = (noise - self.source.mean) / self.source.std
        gamma = jax.nn.softmax(
            -0.5 * jnp.sum(deviation**2, axis=range(1, deviation.ndim))
        )
        x1 = jnp.tensordot(gamma, self.distribution.data, axes=1)
        x0 = jnp.tensordot(gamma, noise, axes=1)
        return self.prediction.evaluate(c, x0, x1)
