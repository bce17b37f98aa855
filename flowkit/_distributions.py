"""Distributions that can be sampled and, where a density exists, evaluated.

`d.sample(shape, key=key)` draws one array of that shape; `d.log_prob(x)` is summed over all entries. The trailing
axes of a shape are the event of the distribution, its leading axes are independent rows: a mixture in two dimensions
draws a cloud `(n, 2)` of independent points.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import FloatArray, is_traced, Number, PRNGKey


class AbstractDistribution(eqx.Module):
    """A distribution over arrays.

    To add one: subclass, implement `sample` and `log_prob`, accept any leading axes as independent rows, and store
    what can be trained unconstrained.
    """

    @abc.abstractmethod
    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> Float[Array, "..."]:
        """One draw of the given shape."""

    @abc.abstractmethod
    def log_prob(self, x: FloatArray) -> Float[Array, ""]:
        """Log-density of `x` in nats, summed over all its entries."""

    def score(self, x: FloatArray) -> Float[Array, "..."]:
        r"""$\nabla_x \log p(x)$, the shape of `x`."""
        return jax.grad(self.log_prob)(jnp.asarray(x))


class Normal(AbstractDistribution):
    r"""Independent Gaussian entries, $x \sim \mathcal N(\mu, \mathrm{diag}(s^2))$; the standard one by default.

    **Arguments:**

    - `mean`: the mean, a number or an array that broadcasts against the trailing axes of a sample.
    - `std`: the standard deviation, likewise, positive.

    Numbers are constants of the program. Arrays are leaves: they can be swept without recompiling, and are trained if
    the module that holds them is.
    """

    mean: float | Array
    std: float | Array

    def __init__(self, mean: Number | FloatArray = 0.0, std: Number | FloatArray = 1.0):
        if not is_traced(std) and not np.all(np.asarray(std) > 0):
            raise ValueError(f"`std` must be positive, got {std}.")
        self.mean = float(mean) if isinstance(mean, Number) else jnp.asarray(mean)
        self.std = float(std) if isinstance(std, Number) else jnp.asarray(std)

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> Float[Array, "..."]:
        self._check_shape(shape)
        noise = jr.normal(key, shape, jnp.result_type(self.mean, self.std, float))
        return jnp.asarray(self.mean + self.std * noise)

    def log_prob(self, x: FloatArray) -> Float[Array, ""]:
        x = jnp.asarray(x)
        self._check_shape(x.shape)
        log_std = (
            math.log(self.std) if isinstance(self.std, float) else jnp.log(self.std)
        )
        terms = (
            -0.5 * ((x - self.mean) / self.std) ** 2
            - log_std
            - 0.5 * math.log(2 * math.pi)
        )
        return jnp.sum(terms)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        mean, std = jnp.shape(self.mean), jnp.shape(self.std)
        if jnp.broadcast_shapes(shape, mean, std) != shape:
            raise ValueError(
                f"`mean` and `std` of shapes {mean} and {std} do not broadcast to {shape}."
            )


class GaussianMixture(AbstractDistribution):
    r"""$p(x) = \sum_k \pi_k\, \mathcal N(x; m_k, L_k L_k^\top)$ over vectors `(d,)`.

    The parameters are stored unconstrained, so that they can be trained as they are: `logits` of the weights, `means`,
    and `factors`, the lower Cholesky factors $L_k$ with their diagonal in logarithms.

    **Arguments:**

    - `means`: `(k, d)`.
    - `covariances`: `(k, d, d)`, positive definite; or standard deviations: a number, `(k,)` or `(k, d)`.
    - `weights`: `(k,)`, positive, normalised here; equal if `None`.
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
        num, size = means.shape
        covariances = jnp.asarray(covariances, means.dtype)
        if covariances.shape == (num, size, size):
            lower = jnp.linalg.cholesky(covariances)
        elif covariances.shape in ((), (num,), (num, size)):
            lower = _diagonal(covariances, num, size)
        else:
            raise ValueError(
                f"`covariances` must have shape {(num, size, size)}, or hold standard deviations of shape (), {(num,)} "
                f"or {(num, size)}; got {covariances.shape}."
            )
        weights = (
            jnp.ones(num, means.dtype)
            if weights is None
            else jnp.asarray(weights, means.dtype)
        )
        if weights.shape != (num,):
            raise ValueError(
                f"`weights` must have shape {(num,)}, one per component, got {weights.shape}."
            )
        if not is_traced(weights) and not np.all(np.asarray(weights) > 0):
            raise ValueError(f"`weights` must be positive, got {weights}.")
        if not is_traced(lower) and not np.all(
            np.diagonal(np.asarray(lower), axis1=1, axis2=2) > 0
        ):
            raise ValueError(
                "`covariances` must be positive definite, standard deviations positive."
            )
        self.logits = jnp.log(weights)
        self.means = means
        index = jnp.arange(size)
        self.factors = lower.at[:, index, index].set(jnp.log(lower[:, index, index]))

    @property
    def weights(self) -> Float[Array, " k"]:
        """The normalised weights."""
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
        return lower @ jnp.swapaxes(lower, -1, -2)

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> Float[Array, "..."]:
        ckey, nkey = jr.split(key)
        rows = shape[:-1]
        self._check_event(shape)
        component = jr.categorical(ckey, self.logits, shape=rows)
        noise = jr.normal(nkey, shape, self.means.dtype)
        return self.means[component] + jnp.einsum(
            "...ij,...j->...i", self.cholesky[component], noise
        )

    def log_prob(self, x: FloatArray) -> Float[Array, ""]:
        x = jnp.asarray(x)
        self._check_event(x.shape)
        row_log_prob = jnp.vectorize(self._log_prob, signature="(d)->()")
        return jnp.sum(row_log_prob(x))

    def _log_prob(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        whiten = jax.vmap(_solve_lower)
        whitened = whiten(self.cholesky, x - self.means)
        size = x.shape[0]
        log_det = jnp.trace(self.factors, axis1=-2, axis2=-1)
        terms = (
            -0.5 * jnp.sum(whitened**2, axis=-1)
            - log_det
            - 0.5 * size * math.log(2 * math.pi)
        )
        return jsp.special.logsumexp(jax.nn.log_softmax(self.logits) + terms)

    def _check_event(self, shape: tuple[int, ...]) -> None:
        if len(shape) == 0 or shape[-1] != self.means.shape[1]:
            raise ValueError(
                f"the last axis must be {self.means.shape[1]}, the dimension of the mixture, got shape {shape}."
            )


class Empirical(AbstractDistribution):
    """The uniform distribution over finite data: rows drawn with replacement.

    It has no density; `fk.exact_flow` and `fk.marginal` smooth it along a path.

    **Arguments:**

    - `data`: `(n, ...)`, at least one row; the event is one row.
    """

    data: Float[Array, "n ..."]

    def __init__(self, data: FloatArray):
        data = jnp.asarray(data)
        if data.ndim == 0 or data.shape[0] == 0:
            raise ValueError(
                f"`data` must have at least one row, got shape {data.shape}."
            )
        self.data = data

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> Float[Array, "..."]:
        event = self.data.shape[1:]
        rows = shape[: len(shape) - len(event)]
        if rows + event != shape:
            raise ValueError(
                f"`shape` must end in the event {event} of the data, got {shape}."
            )
        return self.data[jr.randint(key, rows, 0, self.data.shape[0])]

    def log_prob(self, x: FloatArray) -> Float[Array, ""]:
        del x
        raise ValueError(
            "finite data has no density; use `fk.marginal(data, path, t)` at a time t < 1."
        )


def _solve_lower(
    lower: Float[Array, "d d"], x: Float[Array, " d"]
) -> Float[Array, " d"]:
    """Solves $L y = x$ for a lower-triangular factor."""
    return jsp.linalg.solve_triangular(lower, x, lower=True)


def _diagonal(stds: Float[Array, "..."], num: int, size: int) -> Float[Array, "k d d"]:
    stds = stds[:, None] if stds.ndim == 1 else stds
    return jax.vmap(jnp.diag)(jnp.broadcast_to(stds, (num, size)))
