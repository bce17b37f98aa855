"""A network for every point on its own, conditioned by gates and shifts of its linear layers."""

from collections.abc import Callable
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import Mask, Points, PRNGKey, Times
from flowkit.nn._concat_squash import ConcatSquashLinear
from flowkit.nn._coordinates import AbstractFeatures
from flowkit.nn._shapes import out_size_of, valid_points, zero_masked
from flowkit.nn._time_embeddings import AbstractTimeEmbedding, RawTime
from flowkit.nn.crn._conditioners import AbstractConditioner, Broadcast
from flowkit.nn.crn._crn import (
    AbstractCRN,
    checked_latents,
    Latents,
    vectors_from,
    with_time,
)


class ConcatSquashMLP(AbstractCRN):
    """A velocity field of clouds in which each point moves on its own: `ConcatSquashLinear` layers, as in PointFlow.

    The condition of every layer is the latent vector with the time beside it. With smooth activations the field is
    smooth in points, latents and time. The last layer starts at zero.

    **Arguments:**

    - `in_size`: the dimension of the points.
    - `latent_size`: the size `c` of the latents `(k, c)`; 0 for a network without latents.
    - `out_size`: the size of the result for each point; `in_size` by default.
    - `conditioner`: how the latents reach the points: `Broadcast()` for one latent, `PerPoint()`, `Pool()`,
      `Select(in_size, latent_size, key=key)`, ...
    - `width_size`, `depth`: the width and number of the hidden layers.
    - `time_embedding`: the time itself by default, as in the sources.
    - `features`: fixed features of the coordinates, which the first layer sees beside these.
    - `activation`: of the hidden layers.
    - `key`: for the initial weights.

    **Reference:** Grathwohl et al., FFJORD, 2018 (arXiv 1810.01367); Yang et al., PointFlow, 2019 (arXiv 1906.12320).
    """

    conditioner: AbstractConditioner
    time_embedding: AbstractTimeEmbedding
    features: AbstractFeatures | None
    layers: tuple[ConcatSquashLinear, ...]
    activation: Callable[[Array], Array]
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    latent_size: int = eqx.field(static=True)

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
        self.in_size = in_size
        self.out_size = in_size if out_size is None else out_size
        self.latent_size = latent_size
        self.conditioner = conditioner
        self.time_embedding = time_embedding
        self.features = features
        self.activation = activation
        cond_size = (
            out_size_of(conditioner, (), (1, in_size), (1, latent_size))
            + time_embedding.out_size
        )
        sizes = pairwise(
            (
                out_size_of(self._inputs, (1, in_size)),
                *[width_size] * depth,
                self.out_size,
            )
        )
        # A softplus halves deviations: without the larger gain a deep network does not see its input at first.
        self.layers = tuple(
            ConcatSquashLinear(
                *size,
                cond_size,
                gain=4.0 if i else 2.0,
                zero_init=i == depth,
                key=layer_key,
            )
            for i, (size, layer_key) in enumerate(
                zip(sizes, jr.split(key, depth + 1), strict=True)
            )
        )

    def _inputs(self, points: Points) -> Float[Array, "n f"]:
        points = jnp.asarray(points)
        return (
            points
            if self.features is None
            else jnp.concatenate([points, self.features(points)], axis=-1)
        )

    def __call__(
        self,
        t: Times,
        points: Points,
        latents: Latents = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n out_size"]:
        del key
        points = valid_points(points, mask, self.in_size)
        latents = checked_latents(latents, self.latent_size, points.dtype)
        cond = with_time(
            self.time_embedding,
            t,
            vectors_from(self.conditioner, t, points, latents, mask),
        )
        h = self._inputs(points)
        *hidden, last = self.layers
        for layer in hidden:
            h = self.activation(layer(h, cond))
        return zero_masked(last(h, cond), mask)
