"""A pointwise network, conditioned by attention to the latents."""

import operator
from typing import Any

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
    latents_there,
    TimeAndLatent,
)
from flowkit.nn._layers.features import AbstractFeatures, PointEmbedding
from flowkit.nn._layers.layer_norm import LayerNorm
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.time_embeddings import AbstractTimeEmbedding, SinusoidalTime
from flowkit.nn._layers.transformer import AttentionBlock, depth_rates, split_or_none
from flowkit.nn._sets.masks import valid_points


class CrossAttentionCRN(AbstractCRN):
    """A conditional network (CRN) whose points attend to tokens made of the latents.

    Each point moves on its own. Each latent, joined with the time, gives `num_tokens`
    tokens. The points, embedded by `SiLU(Linear(features(x)))`, pass through blocks of
    attention to the tokens and feed-forward networks, and a last layer that starts at
    zero. The result does not depend on the order of the latents, and their number may
    vary. The cost is proportional to the number of points times the number of tokens.
    Rows of zeros stand for no latent and are left out.

    It has no conditioner, and does not know which latent belongs to which point; for
    local latents use `DiT` with `PerPoint()`.

    **Arguments:**

    - `in_size`: the dimension of the points.
    - `latent_size`: the size `c` of the latents `(k, c)`; 0 for a network without
      latents.
    - `out_size`: the size of the result for each point; `in_size` by default.
    - `num_tokens`: the number of tokens for each latent. The default suits one latent
      for a cloud; for several use 1.
    - `width_size`, `depth`: the width and number of the blocks.
    - `cond_size`: the width in which latents and time are joined.
    - `time_embedding`: how the time enters; `SinusoidalTime(32)` by default.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `mlp_ratio`: as in `AttentionBlock`.
    - `stochastic_depth`: the rate of the last block; it rises linearly from 0.
    - `key`: the key of the initial weights.
    - any other option of `AttentionBlock`: `num_heads`, `num_kv_heads`, `feed_forward`,
      `dropout`, ...

    **Reference:** Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762);
    Jaegle et al., Perceiver IO, 2021 (arXiv 2107.14795), for outputs that attend to
    latents.
    """

    conditioning: TimeAndLatent
    tokens: Linear
    embedding: PointEmbedding
    blocks: tuple[AttentionBlock, ...]
    norm: LayerNorm
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
        num_tokens: int = 32,
        width_size: int = 64,
        depth: int = 3,
        cond_size: int = 256,
        time_embedding: AbstractTimeEmbedding | None = None,
        features: AbstractFeatures | None = None,
        mlp_ratio: float = 2.0,
        stochastic_depth: float = 0.0,
        key: PRNGKey,
        **block_options: Any,
    ):
        num_tokens = as_size("num_tokens", num_tokens)
        depth = as_size("depth", depth)
        check_sizes(width_size=width_size)
        if time_embedding is None:
            time_embedding = SinusoidalTime(32)
        conditioning_key, tokens_key, embedding_key, out_key, *keys = jr.split(
            key, depth + 4
        )
        self.in_size = in_size
        self.out_size = in_size if out_size is None else out_size
        self.latent_size = latent_size

        self.conditioning = TimeAndLatent(
            latent_size, cond_size, time_embedding, key=conditioning_key
        )
        self.tokens = Linear(cond_size, num_tokens * width_size, key=tokens_key)
        self.embedding = PointEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        options = {"cross": True, "mlp_ratio": mlp_ratio, **block_options}
        rates = depth_rates(stochastic_depth, depth)
        self.blocks = tuple(
            AttentionBlock(width_size, **options, stochastic_depth=rate, key=block_key)
            for rate, block_key in zip(rates, keys, strict=True)
        )
        self.norm = LayerNorm(width_size)
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

        h = jax.nn.silu(self.embedding(points))
        tokens = self.tokens(self.conditioning(t, latents)).reshape(-1, h.shape[1])
        # The tokens of a latent are consecutive, and are valid if the latent is.
        there = jnp.repeat(latents_there(latents), tokens.shape[0] // latents.shape[0])

        keys = split_or_none(key, len(self.blocks))
        for block, block_key in zip(self.blocks, keys, strict=True):
            h = block(h, tokens, there, key=block_key)
        return zero_masked(self.out(self.norm(h)), mask)
