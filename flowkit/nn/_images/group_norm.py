"""Group normalization of images, channels last."""

import operator

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._types import AnyArray
from flowkit.nn._layers.arrays import per_feature
from flowkit.nn._layers.initial import ones, zeros
from flowkit.nn._layers.normalized import normalized


class GroupNorm(eqx.Module):
    r"""`y = scale * (h - mean) / sqrt(variance + 1e-5) + shift`.

    Mean and variance are those of each group of neighboring channels, over all pixels.
    Scale and shift are learned for each channel and start at 1 and 0.

    **Arguments:**

    - `size`: the number of channels.
    - `num_groups`: the number of groups, which divides `size`.

    **Reference:** Wu, He, Group Normalization, 2018 (arXiv 1803.08494).
    """

    scale: Float[AnyArray, " size"]
    shift: Float[AnyArray, " size"]
    num_groups: int = eqx.field(static=True, converter=operator.index)

    def __init__(self, size: int, num_groups: int = 8):
        check_sizes(size=size)
        if num_groups < 1 or size % num_groups:
            raise ValueError(
                f"`num_groups` must divide the {size} channels, got {num_groups}."
            )
        self.scale = ones(size)
        self.shift = zeros(size)
        self.num_groups = num_groups

    def __call__(self, h: Float[AnyArray, "h w size"]) -> Float[Array, "h w size"]:
        size = len(self.scale)
        if h.shape[-1] != size:
            raise ValueError(
                f"`h` has {h.shape[-1]} channels, but this layer was built with "
                f"size={size}."
            )
        rows = normalized(h, self._mean_of_groups, 1e-5)
        return rows * per_feature(self.scale, rows) + per_feature(self.shift, rows)

    def _mean_of_groups(
        self, rows: Float[Array, "h w size"]
    ) -> Float[Array, "1 1 size"]:
        """The mean of each group over all pixels, for each of its channels."""
        of_channels = jnp.mean(rows, axis=(0, 1)).reshape(self.num_groups, -1)
        means = jnp.mean(of_channels, axis=1)
        return jnp.repeat(means, of_channels.shape[1])[None, None]
