"""A pointwise network, conditioned by gates and shifts."""

import operator
from collections.abc import Callable
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import as_size, check_sizes
from flowkit._masks import zero_masked
from flowkit._types import Mask, Points, PRNGKey, Times
from flowkit.nn._crn.base import (
    AbstractCRN,
    checked_latents,
    Latents,
    vectors_from,
    with_time,
)
from flowkit.nn._crn.conditioners import AbstractConditioner, Broadcast
from flowkit.nn._layers.arrays import out_size_of
from flowkit.nn._layers.concat_squash import ConcatSquashLinear
from flowkit.nn._layers.features import AbstractFeatures
from flowkit.nn._layers.time_embeddings import AbstractTimeEmbedding, RawTime
from flowkit.nn._sets.masks import valid_points


class ConcatSquashMLP(AbstractCRN):
    """A conditional network (CRN) of `ConcatSquashLinear` layers, as in PointFlow.

    Each point moves on its own. The condition of every layer is the latent vector joined
    with the time. With smooth activations the velocity is smooth in points, latents and
    time. The last layer starts at zero.

    **Arguments:**

    - `in_size`: the dimension of the points.
    - `latent_size`: the size `c` of the latents `(k, c)`; 0 for a network without
      latents.
    - `out_size`: the size of the result for each point; `in_size` by default.
    - `conditioner`: how the latents reach the points: `Broadcast()` for one latent,
      `PerPoint()`, `Pool()`, `Select(in_size, latent_size, key=key)`, ...
    - `width_size`, `depth`: the width and number of the hidden layers.
    - `time_embedding`: the time itself by default, as in the sources.
    - `features`: fixed features of the coordinates, joined with them in the first layer.
    - `activation`: the activation of the hidden layers.
    - `key`: the key of the initial weights.

    **Reference:** Grathwohl et al., FFJORD, 2018 (arXiv 1810.01367); Yang et al.,
    PointFlow, 2019 (arXiv 1906.12320).
    """

    conditioner: AbstractConditioner
    time_embedding: AbstractTimeEmbedding
    features: AbstractFeatures | None
    layers: tuple[ConcatSquashLinear, ...]
    activation: Callable[[Array], Array]
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)
    latent_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        latent_size: int,
        *,
        out_size: int | None = None,
        conditioner: AbstractConditioner = Broadcast(),
        width_size: int = 128,
        depth: int = 3,
        time_embedding: AbstractTimeEmbedding = RawTime(),
        features: AbstractFeatures | None = None,
        activation: Callable[[Array], Array] = jax.nn.softplus,
        key: PRNGKey,
    ):
        check_sizes(width_size=width_size)
        depth = as_size("depth", depth, least=0)
        self.in_size = in_size
        self.out_size = in_size if out_size is None else out_size
        self.latent_size = latent_size
        self.conditioner = conditioner
        self.time_embedding = time_embedding
        self.features = features
        self.activation = activation

        vector_size = out_size_of(conditioner, (), (1, in_size), (1, latent_size))
        cond_size = vector_size + time_embedding.out_size
        num_inputs = out_size_of(self._inputs, (1, in_size))
        sizes = (num_inputs, *(width_size for _ in range(depth)), self.out_size)

        layers = []
        keys = jr.split(key, depth + 1)
        for layer_sizes, layer_key in zip(pairwise(sizes), keys, strict=True):
            # A softplus halves deviations: without the larger gain a deep network would
            # hardly see its input at first.
            gain = 4.0 if layers else 2.0
            is_last = len(layers) + 1 == len(keys)
            layer = ConcatSquashLinear(
                *layer_sizes, cond_size, gain=gain, zero_init=is_last, key=layer_key
            )
            layers.append(layer)
        self.layers = tuple(layers)

    def _inputs(self, points: Points) -> Float[Array, "n f"]:
        points = jnp.asarray(points)
        if self.features is None:
            return points
        return jnp.concatenate([points, self.features(points)], axis=-1)

    def __call__(
        self,
        t: Times,
        points: Points,
        latents: Latents = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n out_size"]:
        """The velocity of every point, zero where masked."""
        del key
        points = valid_points(points, mask, self.in_size)
        latents = checked_latents(latents, self.latent_size, points.dtype)
        vectors = vectors_from(self.conditioner, t, points, latents, mask)
        cond = with_time(self.time_embedding, t, vectors)

        h = self._inputs(points)
        *hidden, last = self.layers
        for layer in hidden:
            h = self.activation(layer(h, cond))
        return zero_masked(last(h, cond), mask)
