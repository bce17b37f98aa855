"""Layer normalization over the features of each row."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._types import AnyArray
from flowkit.nn._layers.arrays import per_feature
from flowkit.nn._layers.initial import ones, zeros
from flowkit.nn._layers.normalized import normalized


def normalize(
    h: Float[AnyArray, "*leading size"],
) -> Float[Array, "*leading size"]:
    """Subtract the mean of the last axis and divide by `sqrt(variance + 1e-6)`."""
    return normalized(h, _mean_of_last_axis, 1e-6)


def _mean_of_last_axis(h: Array) -> Array:
    if jax.default_backend() != "cpu":
        return jnp.mean(h, axis=-1, keepdims=True)
    # A CPU is faster with a matrix product, which XLA does not fuse with its surroundings.
    mean_of = jnp.full((h.shape[-1], 1), 1 / h.shape[-1], h.dtype)
    return jnp.matmul(h, mean_of, precision=jax.lax.Precision.HIGHEST)


class LayerNorm(eqx.Module):
    """`y = scale * normalize(h) + shift`, with a learned scale and shift per feature.

    Scales start at 1 and shifts at 0. It is never applied to raw coordinates: it would
    reduce a vector in the plane to the sign of `x - y`.

    **Reference:** Ba, Kiros, Hinton, Layer Normalization, 2016 (arXiv 1607.06450).
    """

    scale: Float[AnyArray, " size"]
    shift: Float[AnyArray, " size"]

    def __init__(self, size: int):
        check_sizes(size=size)
        self.scale = ones(size)
        self.shift = zeros(size)

    def __call__(
        self, h: Float[AnyArray, "*leading size"]
    ) -> Float[Array, "*leading size"]:
        h = normalize(h)
        return h * per_feature(self.scale, h) + per_feature(self.shift, h)
