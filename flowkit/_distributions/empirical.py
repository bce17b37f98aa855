r"""Finite data. Given $x = \alpha x_1 + \sigma x_0$ each row $x_1^i$ has the weight
$\gamma_i \propto p_0((x - \alpha x_1^i) / \sigma)$, with $p_0$ the density of the
source.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._distributions.base import (
    AbstractDistribution,
    AbstractExactDistribution,
    as_shape,
    broadcast,
)
from flowkit._distributions.mixture import smoothed
from flowkit._distributions.normal import Normal, normal_source
from flowkit._types import FloatArray, is_traced, PRNGKey


class Empirical(AbstractExactDistribution):
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

    def sample(self, shape: Sequence[int], *, key: PRNGKey) -> Float[Array, "..."]:
        shape = as_shape(shape)
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

    def posterior(
        self, source: AbstractDistribution
    ) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
        return _EmpiricalPosterior(self.data, normal_source(source))

    def marginal(
        self, alpha: Array, sigma: Array, source: AbstractDistribution
    ) -> AbstractDistribution:
        source = normal_source(source)
        if not is_traced(sigma) and sigma == 0:
            raise ValueError(
                "`t` must be below 1 for finite data, which have no density."
            )
        if self.data.ndim != 2:
            raise ValueError(
                "`distribution` must hold vectors, data of shape (n, d), "
                f"got {self.data.shape}."
            )
        num, size = self.data.shape
        covariances = jnp.zeros((num, size, size), self.data.dtype)
        weights = jnp.ones(num, self.data.dtype)
        return smoothed(source, alpha, sigma, self.data, covariances, weights)


class _EmpiricalPosterior(eqx.Module):
    data: Float[Array, "n ..."]
    source: Normal

    def __call__(self, x: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        event = self.data.shape[1:]
        rows = jnp.reshape(x, (-1, *event))
        x0, x1 = jax.vmap(lambda row: self._row(row, alpha, sigma))(rows)
        return jnp.reshape(x0, x.shape), jnp.reshape(x1, x.shape)

    def _row(self, x: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        # At t = 1 the noise is not determined: the nearest time at which float arithmetic
        # still sees it stands in.
        sigma = jnp.maximum(sigma, 1e-5)
        noise = (x[None] - alpha * self.data) / sigma

        mean = broadcast(self.source.mean, noise.shape)
        deviation = (noise - mean) / broadcast(self.source.std, noise.shape)
        squares = jnp.sum(deviation**2, axis=range(1, deviation.ndim))
        gamma = jax.nn.softmax(-0.5 * squares)

        precision = jax.lax.Precision.HIGHEST
        x1 = jnp.tensordot(gamma, self.data, axes=1, precision=precision)
        x0 = jnp.tensordot(gamma, noise, axes=1, precision=precision)
        return x0, x1
