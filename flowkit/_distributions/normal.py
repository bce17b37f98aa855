r"""Independent Gaussian entries, the source of most flows.

With the source $\mathcal N(\mu_0, s_0^2)$ and data $\mathcal N(m, s^2)$ for each entry,
$x = \alpha x_1 + \sigma x_0$ has the mean $\alpha m + \sigma \mu_0$ and the variance
$c = \alpha^2 s^2 + \sigma^2 s_0^2$, and with the deviation $d$ of $x$ from that mean

$$\mathbb E[x_1 \mid x] = m + \alpha s^2 d / c, \qquad
\mathbb E[x_0 \mid x] = \mu_0 + \sigma s_0^2 d / c.$$
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._distributions.base import (
    AbstractDistribution,
    AbstractExactDistribution,
    as_shape,
    broadcast,
)
from flowkit._types import FloatArray, is_traced, Number, PRNGKey


class Normal(AbstractExactDistribution):
    r"""Independent Gaussian entries, $x \sim \mathcal N(\mu, \mathrm{diag}(s^2))$.

    The default is the standard normal distribution.

    **Arguments:**

    - `mean`: the mean, a number or an array that broadcasts against the trailing axes
      of a sample.
    - `std`: the standard deviation, likewise, positive.

    Numbers are constants of the program. Arrays are leaves: they can be swept without
    recompiling, and are trained if the module that holds them is.
    """

    mean: float | Array
    std: float | Array

    def __init__(self, mean: Number | FloatArray = 0.0, std: Number | FloatArray = 1.0):
        if not is_traced(std) and not np.all(np.asarray(std) > 0):
            raise ValueError(f"`std` must be positive, got {std}.")
        self.mean = float(mean) if isinstance(mean, Number) else jnp.asarray(mean)
        self.std = float(std) if isinstance(std, Number) else jnp.asarray(std)

    def sample(self, shape: Sequence[int], *, key: PRNGKey) -> Float[Array, "..."]:
        shape = as_shape(shape)
        mean, std = self._moments(shape)
        noise = jr.normal(key, shape, jnp.result_type(self.mean, self.std, float))
        return jnp.asarray(mean + std * noise)

    def log_prob(self, x: FloatArray) -> Float[Array, ""]:
        x = jnp.asarray(x)
        mean, std = self._moments(x.shape)
        log_std = math.log(std) if isinstance(std, float) else jnp.log(std)
        constant = 0.5 * math.log(2 * math.pi)
        return jnp.sum(-0.5 * ((x - mean) / std) ** 2 - log_std - constant)

    def posterior(
        self, source: AbstractDistribution
    ) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
        return _NormalPosterior(self, normal_source(source))

    def marginal(
        self, alpha: Array, sigma: Array, source: AbstractDistribution
    ) -> AbstractDistribution:
        source = normal_source(source)
        arrays = (self.mean, self.std, source.mean, source.std)
        shape = np.broadcast_shapes(*[jnp.shape(array) for array in arrays])
        mean, std = self._moments(shape)
        source_mean, source_std = source._moments(shape)

        variance = (alpha * std) ** 2 + (sigma * source_std) ** 2
        return Normal(alpha * mean + sigma * source_mean, jnp.sqrt(variance))

    def _moments(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Mean and standard deviation in the given shape; numbers stay numbers."""
        mean = jnp.shape(self.mean)
        std = jnp.shape(self.std)
        try:
            fits = np.broadcast_shapes(shape, mean, std) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"`mean` and `std` of shapes {mean} and {std} do not broadcast to {shape}."
            )
        return broadcast(self.mean, shape), broadcast(self.std, shape)


def normal_source(source: Any) -> Normal:
    """The source of an exact flow, which is Gaussian."""
    if not isinstance(source, Normal):
        raise ValueError(
            "`source` must be a `fk.Normal`, since exact flows start from Gaussian noise, "
            f"got {type(source).__name__}."
        )
    return source


class _NormalPosterior(eqx.Module):
    data: Normal
    source: Normal

    def __call__(self, x: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        mean, std = self.data._moments(x.shape)
        source_mean, source_std = self.source._moments(x.shape)

        variance = (alpha * std) ** 2 + (sigma * source_std) ** 2
        solved = (x - alpha * mean - sigma * source_mean) / variance
        x1 = mean + alpha * std**2 * solved
        x0 = source_mean + sigma * source_std**2 * solved
        return x0, x1
