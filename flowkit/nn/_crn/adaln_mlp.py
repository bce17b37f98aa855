"""A pointwise network, conditioned by adaptive layer normalization."""

import abc
import operator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._masks import zero_masked
from flowkit._types import Mask, Points, PRNGKey, Times
from flowkit.nn._crn.base import (
    AbstractCRN,
    checked_latents,
    Latents,
    TimeAndLatent,
    vectors_from,
)
from flowkit.nn._crn.conditioners import AbstractConditioner, Broadcast
from flowkit.nn._layers.arrays import out_size_of
from flowkit.nn._layers.features import AbstractFeatures, PointEmbedding
from flowkit.nn._layers.layer_norm import LayerNorm, normalize
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.modulation import modulate, Modulation
from flowkit.nn._layers.time_embeddings import AbstractTimeEmbedding, SinusoidalTime
from flowkit.nn._sets.masks import valid_points


class AdaLNMLP(AbstractCRN):
    """A conditional network (CRN) in which each point moves on its own.

    With `residual=True` every layer is `h <- h + gate * Linear(SiLU(AdaLN(h)))`, where
    `AdaLN(h) = LayerNorm(h) (1 + scale) + shift`, and scales, shifts and gates come from
    time and latents. All of them start at zero, so each layer starts as the identity.
    With `residual=False` it is `h <- AdaLN(SiLU(Linear(h)))`. The last layer starts at
    zero in both.

    **Arguments:**

    - `in_size`: the dimension of the points.
    - `latent_size`: the size `c` of the latents `(k, c)`; 0 for a network without
      latents.
    - `out_size`: the size of the result for each point; `in_size` by default.
    - `conditioner`: how the latents reach the points: `Broadcast()` for one latent,
      `PerPoint()`, `Pool()`, `Select(in_size, latent_size, key=key)`, ...
    - `width_size`, `depth`: the width and number of the layers.
    - `cond_size`: the width of the conditioning; 64 is several times as fast if each
      point has its own.
    - `time_embedding`: how the time enters; `SinusoidalTime(32)` by default.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `residual`: see above.
    - `key`: the key of the initial weights.

    **Reference:** Peebles, Xie, Scalable Diffusion Models with Transformers, 2023
    (arXiv 2212.09748), for the layers that start as the identity.
    """

    conditioner: AbstractConditioner
    conditioning: TimeAndLatent
    modulation: Modulation
    embedding: PointEmbedding
    blocks: "tuple[_AbstractBlock, ...]"
    out: Linear
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
        width_size: int = 64,
        depth: int = 6,
        cond_size: int = 256,
        time_embedding: AbstractTimeEmbedding | None = None,
        features: AbstractFeatures | None = None,
        residual: bool = True,
        key: PRNGKey,
    ):
        depth = as_size("depth", depth)
        if time_embedding is None:
            time_embedding = SinusoidalTime(32)
        conditioning_key, modulation_key, embedding_key, out_key, *keys = jr.split(
            key, depth + 4
        )
        self.in_size = in_size
        self.out_size = in_size if out_size is None else out_size
        self.latent_size = latent_size
        self.conditioner = conditioner

        vector_size = out_size_of(conditioner, (), (1, in_size), (1, latent_size))
        self.conditioning = TimeAndLatent(
            vector_size, cond_size, time_embedding, key=conditioning_key
        )
        # One matrix product makes the vectors of all layers.
        block = _ResidualBlock if residual else _PlainBlock
        self.modulation = Modulation(
            cond_size,
            width_size,
            depth * block.num_vectors,
            zero_init=residual,
            key=modulation_key,
        )
        self.embedding = PointEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.blocks = tuple(block(width_size, key=block_key) for block_key in keys)
        self.out = Linear(width_size, self.out_size, zero_init=True, key=out_key)

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
        cond_vectors = vectors_from(self.conditioner, t, points, latents, mask)
        modulation = self.modulation(self.conditioning(t, cond_vectors))

        h = jax.nn.silu(self.embedding(points))
        of_blocks = jnp.split(modulation, len(self.blocks))
        for block, vectors in zip(self.blocks, of_blocks, strict=True):
            h = block(h, vectors)
        return zero_masked(self.out(h), mask)


class _AbstractBlock(eqx.Module):
    num_vectors: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def __call__(
        self, h: Float[Array, "n width"], vectors: Float[Array, "number m width"]
    ) -> Array:
        """One layer of `AdaLNMLP`, given its scale, shift and perhaps gate."""


class _ResidualBlock(_AbstractBlock):
    num_vectors: ClassVar[int] = 3
    linear: Linear

    def __init__(self, width_size: int, *, key: PRNGKey):
        self.linear = Linear(width_size, width_size, key=key)

    def __call__(
        self, h: Float[Array, "n width"], vectors: Float[Array, "number m width"]
    ) -> Array:
        scale, shift, gate = vectors
        update = self.linear(jax.nn.silu(modulate(normalize(h), scale, shift)))
        return h + gate * update


class _PlainBlock(_AbstractBlock):
    num_vectors: ClassVar[int] = 2
    linear: Linear
    norm: LayerNorm

    def __init__(self, width_size: int, *, key: PRNGKey):
        self.linear = Linear(width_size, width_size, key=key)
        self.norm = LayerNorm(width_size)

    def __call__(
        self, h: Float[Array, "n width"], vectors: Float[Array, "number m width"]
    ) -> Array:
        scale, shift = vectors
        return modulate(self.norm(jax.nn.silu(self.linear(h))), scale, shift)
