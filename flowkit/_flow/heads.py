r"""How the output of a network is read: as the prediction, or as a distribution of it.

What is predicted (velocity, noise or data) and how it is represented are separate
choices; any prediction works with any head.
"""

import abc
import math
import operator
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jaxtyping import Array, Float

from flowkit._masks import masked_mean
from flowkit._types import FloatArray, Mask


class AbstractHead(eqx.Module):
    """How the output of a network is read.

    To add one: subclass, implement `mean` and `error`, and say in `squared` whether the
    error is the mean square of `mean(output) - target`: only then can losses be
    converted to other targets and weighted.
    """

    squared: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def mean(self, output: FloatArray, x: FloatArray) -> Float[Array, "..."]:
        """The prediction, the shape of `x`."""

    @abc.abstractmethod
    def error(
        self, output: FloatArray, target: FloatArray, mask: Mask | None = None
    ) -> Float[Array, ""]:
        """What training minimizes for one example, the mean over its valid points."""


class PointHead(AbstractHead):
    """The output is the prediction, trained by its mean squared error: the default."""

    squared: ClassVar[bool] = True

    def mean(self, output: FloatArray, x: FloatArray) -> Float[Array, "..."]:
        if output.shape != x.shape:
            raise ValueError(
                f"`network` must return the shape of `x`, {x.shape}, but returned {output.shape}."
            )
        return jnp.asarray(output)

    def error(
        self, output: FloatArray, target: FloatArray, mask: Mask | None = None
    ) -> Float[Array, ""]:
        return masked_mean((self.mean(output, target) - target) ** 2, mask)


class Components(NamedTuple):
    """A Gaussian mixture for each vector of a prediction."""

    log_weights: Float[Array, "... k"]
    """Normalized."""
    means: Float[Array, "... k d"]
    std: Float[Array, "..."]
    """One for all components and dimensions."""


class MixtureHead(AbstractHead):
    r"""The output is a Gaussian mixture of the prediction, trained by its negative log-likelihood.

    $$q(v \mid x_t) = \sum_k \pi_k\, \mathcal N(v; \mu_k, s^2 I), \qquad
    v \approx \sum_k \pi_k \mu_k,$$

    one for each vector along the last axis of `x`: for each point of a cloud. A squared
    error learns only the mean of all pairs that pass through a place; the mixture also
    says how they are spread. Its mean is what flows, samplers and conversions use.

    ```python
    head = fk.MixtureHead(8)
    flow = fk.Flow(fk.nn.MLP(2, head.out_size(2), key=key), head=head)
    ```

    The output holds the `k` logits, the `k` means of size `d`, and $\log s$. The means
    are relative to fixed offsets, which differ between components and have mean zero. A
    network that starts at zero then predicts zero, and its components are distinct. The
    error is in nats per vector, and may be negative. It is minimized without
    conversion: `targets` other than the prediction itself, and a `weighting`, are a
    `ValueError`.

    **Arguments:**

    - `num_components`: `k`.
    - `min_std`: the least $s$, without which the likelihood of data with repeated
      values has no bound.

    **Reference:** Chen et al., Gaussian Mixture Flow Matching Models (2025), arXiv
    2504.05304.
    """

    squared: ClassVar[bool] = False
    num_components: int = eqx.field(static=True, converter=operator.index)
    min_std: float = eqx.field(static=True, default=1e-2)

    def __check_init__(self):
        if self.num_components < 1:
            raise ValueError(
                f"`num_components` must be at least 1, got {self.num_components}."
            )
        if not self.min_std > 0:
            raise ValueError(f"`min_std` must be positive, got {self.min_std}.")

    def out_size(self, size: int) -> int:
        """How wide the output must be for vectors of that size: `k (size + 1) + 1`."""
        return self.num_components * (size + 1) + 1

    def components(self, output: FloatArray, size: int) -> Components:
        """The mixtures that an output `(..., k (size + 1) + 1)` stands for."""
        num = self.num_components
        output = jnp.asarray(output)
        if output.shape[-1:] != (self.out_size(size),):
            raise ValueError(
                f"`network` must return arrays (..., {self.out_size(size)}) for a mixture "
                f"of {num} components over vectors of size {size}, but returned "
                f"{output.shape}; build it with `out_size=head.out_size({size})`."
            )
        logits, means, log_std = jnp.split(output, (num, num * (size + 1)), axis=-1)
        means = jnp.reshape(means, (*means.shape[:-1], num, size))
        places = jnp.asarray(_places(num, size), means.dtype)
        means = means + jnp.broadcast_to(places, means.shape)
        std = jnp.sqrt(jnp.exp(2 * log_std[..., 0]) + self.min_std**2)
        return Components(jax.nn.log_softmax(logits), means, std)

    def mean(self, output: FloatArray, x: FloatArray) -> Float[Array, "..."]:
        log_weights, means, _ = self._components(output, x)
        return jnp.sum(jnp.exp(log_weights)[..., None] * means, axis=-2)

    def error(
        self, output: FloatArray, target: FloatArray, mask: Mask | None = None
    ) -> Float[Array, ""]:
        log_weights, means, std = self._components(output, target)
        squares = (
            jnp.sum((jnp.asarray(target)[..., None, :] - means) ** 2, axis=-1)
            / std[..., None] ** 2
        )
        constant = target.shape[-1] * (jnp.log(std) + 0.5 * math.log(2 * math.pi))
        values = constant - jsp.special.logsumexp(log_weights - 0.5 * squares, axis=-1)
        return masked_mean(values, mask)

    def _components(self, output: FloatArray, x: FloatArray) -> Components:
        if x.ndim == 0 or output.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"`network` must return a vector for each of `x`, {x.shape}, "
                f"but returned {output.shape}."
            )
        return self.components(output, x.shape[-1])


def _places(num: int, size: int) -> np.ndarray:
    """Fixed places `(num, size)` of mean zero, all different if there are several."""
    places = np.random.default_rng(0).normal(size=(num, size))
    return places - places.mean(axis=0)
