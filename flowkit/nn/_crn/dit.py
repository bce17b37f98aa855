"""A transformer on the points of a cloud, conditioned by adaptive layer normalization."""

import operator
from typing import Any

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
from flowkit.nn._layers.adaln_block import adaln_blocks, AdaLNBlock
from flowkit.nn._layers.arrays import out_size_of
from flowkit.nn._layers.features import AbstractFeatures, PointEmbedding
from flowkit.nn._layers.layer_norm import normalize
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.modulation import modulate, Modulation
from flowkit.nn._layers.time_embeddings import AbstractTimeEmbedding, SinusoidalTime
from flowkit.nn._layers.transformer import split_or_none
from flowkit.nn._sets.masks import valid_points


class DiT(AbstractCRN):
    """A conditional network (CRN) whose points attend to each other.

    It is a diffusion transformer without positions. The points are embedded by
    `SiLU(Linear(features(x)))`. Every block is

    `h <- h + gate_1 * Attention(AdaLN_1(h))`,
    `h <- h + gate_2 * feed_forward(AdaLN_2(h))`

    where `AdaLN(h) = LayerNorm(h) (1 + scale) + shift`, and all scales, shifts and gates
    come from time and latents and start at zero, so each block starts as the identity.
    The result is `Linear(AdaLN(h))`, which starts at zero. Time and memory grow with the
    square of the number of points. Over latents `(k, c)`, with `latent_size=0`, it is a
    velocity field of their joint distribution that does not depend on their order.

    **Arguments:**

    - `in_size`: the dimension of the points.
    - `latent_size`: the size `c` of the latents `(k, c)`; 0 for a network without
      latents.
    - `out_size`: the size of the result for each point; `in_size` by default.
    - `conditioner`: how the latents reach the points: `Broadcast()` for one latent,
      `PerPoint()`, `Pool()`, `Select(in_size, latent_size, key=key)`, ...
    - `width_size`, `depth`: the width and number of the blocks.
    - `cond_size`: the width of the conditioning; 64 is several times as fast if each
      point has its own.
    - `time_embedding`: how the time enters; `SinusoidalTime(32)` by default.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `modulate_output`: whether scale and shift are applied to the outputs of attention
      and feed-forward network, not to their inputs, without gates; blocks then do not
      start as the identity.
    - `stochastic_depth`: as in `Residual`; it rises linearly from 0 at the first block.
    - `key`: the key of the initial weights.
    - options of the blocks: `num_heads` (4), `num_kv_heads` as in `Attention`;
      `mlp_ratio` (2), `feed_forward` as in `AttentionBlock`; `dropout` as in `Residual`.

    **Reference:** Peebles, Xie, Scalable Diffusion Models with Transformers, 2023
    (arXiv 2212.09748).
    """

    conditioner: AbstractConditioner
    conditioning: TimeAndLatent
    modulation: Modulation
    embedding: PointEmbedding
    blocks: "tuple[AdaLNBlock, ...]"
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
        depth: int = 4,
        cond_size: int = 256,
        time_embedding: AbstractTimeEmbedding | None = None,
        features: AbstractFeatures | None = None,
        modulate_output: bool = False,
        stochastic_depth: float = 0.0,
        key: PRNGKey,
        **block_options: Any,
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
        # Scales, shifts and gates of the two halves of each block; two for the output.
        num_vectors = depth * (4 if modulate_output else 6) + 2
        self.modulation = Modulation(
            cond_size, width_size, num_vectors, zero_init=True, key=modulation_key
        )
        self.embedding = PointEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.blocks = adaln_blocks(
            width_size, keys, stochastic_depth=stochastic_depth, **block_options
        )
        self.out = Linear(width_size, self.out_size, zero_init=True, key=out_key)

    def __call__(
        self,
        t: Times,
        points: Points,
        latents: Latents = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n out_size"]:
        """The velocity of every point, zero where masked.

        The key is for dropout and stochastic depth; without one nothing is dropped.
        """
        points = valid_points(points, mask, self.in_size)
        latents = checked_latents(latents, self.latent_size, points.dtype)
        cond_vectors = vectors_from(self.conditioner, t, points, latents, mask)
        modulation = self.modulation(self.conditioning(t, cond_vectors))
        of_blocks = jnp.split(modulation[:-2], len(self.blocks))
        scale, shift = modulation[-2:]

        h = jax.nn.silu(self.embedding(points))
        keys = split_or_none(key, len(self.blocks))
        for block, vectors, block_key in zip(self.blocks, of_blocks, keys, strict=True):
            h = block(h, vectors, mask, key=block_key)
        return zero_masked(self.out(modulate(normalize(h), scale, shift)), mask)
