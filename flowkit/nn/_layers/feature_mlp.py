"""The velocity network for vectors with fine structure: an MLP of `x` and features of `x`."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, Cond, PRNGKey, Times
from flowkit.nn._layers.arrays import out_size_of
from flowkit.nn._layers.features import AbstractFeatures
from flowkit.nn._layers.mlp import MLP


class FeatureMLP(eqx.Module):
    """An `MLP` that sees features of a vector next to its entries.

    A plain network first learns slowly varying functions of its input. Random Fourier
    features let it learn fine structure, such as thin curves in the plane.

    **Arguments:**

    - `in_size`: the size of `x` and of the result.
    - `features`: a map of points, such as `FourierFeatures`; `None` is a plain `MLP`.
    - `options`: as in `MLP`.
    - `key`: for the initial weights.
    """

    features: AbstractFeatures | None
    mlp: MLP

    def __init__(
        self,
        in_size: int,
        *,
        features: AbstractFeatures | None = None,
        hidden_sizes: Sequence[int] = (128, 128, 128),
        key: PRNGKey,
        **options: Any,
    ):
        size = in_size
        if features is not None:
            size += out_size_of(features, (1, in_size))
        self.features = features
        self.mlp = MLP(size, in_size, hidden_sizes=hidden_sizes, key=key, **options)

    def __call__(
        self, t: Times, x: Float[AnyArray, " d"], cond: Cond = None
    ) -> Float[Array, " d"]:
        """The velocity at time `t` and place `x`."""
        x = jnp.asarray(x)
        if self.features is not None:
            x = jnp.concatenate([x, self.features(x[None])[0]])
        return self.mlp(t, x, cond)
