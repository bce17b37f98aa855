"""A network for every point on its own, conditioned by attention to the latents."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import Mask, Points, PRNGKey, Times
from flowkit.nn._coordinates import AbstractFeatures, PointEmbedding
from flowkit.nn._feed_forward import SwiGLU
from flowkit.nn._layer_norm import LayerNorm
from flowkit.nn._linear import Linear
from flowkit.nn._shapes import valid_points, zero_masked
from flowkit.nn._time_embeddings import AbstractTimeEmbedding, SinusoidalTime
from flowkit.nn._transformer import AttentionBlock, depth_rates, split_or_none
from flowkit.nn.crn._crn import (
    AbstractCRN,
    checked_latents,
    Latents,
    latents_there,
    TimeAndLatent,
)


class CrossAttentionCRN(AbstractCRN):
    """A velocity field of clouds in which each point moves on its own, by attention to tokens made of the latents.

    Each latent, joined with the time, gives `num_tokens` tokens. The points, embedded by `SiLU(Linear(features(x)))`,
    pass through blocks of attention to the tokens and feed-forward networks, and a last layer that starts at zero. The
    result does not depend on the order of the latents, whose number may vary; the cost is that of points times tokens.
    Rows of zeros are latents that are not there, and are left out.

    It has no conditioner. A latent for each point is not known here as that point's; use `DiT` with `PerPoint()`.

    **Arguments:**

    - `in_size`: the dimension of the points.
    - `latent_size`: the size `c` of the latents `(k, c)`; 0 for a network without latents.
    - `out_size`: the size of the result for each point; `in_size` by default.
    - `num_tokens`: for each latent. The default suits one latent for a cloud; for several use 1.
    - `width_size`, `depth`: the width and number of the blocks.
    - `num_heads`, `num_kv_heads`: as in `Attention`.
    - `mlp_ratio`, `feed_forward`: as in `AttentionBlock`.
    - `cond_size`: the width in which latents and time are joined.
    - `time_embedding`: use `SinusoidalTime(32, scale=1.0)` if the network is to be differentiated in time.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `dropout`, `stochastic_depth`: as in `Residual`, the latter growing linearly from 0 at the first block.
    - `key`: for the initial weights.

    **Reference:** Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762); Jaegle et al., Perceiver IO, 2021
    (arXiv 2107.14795), for outputs that attend to latents.
    """

    conditioning: TimeAndLatent
    tokens: Linear
    embedding: PointEmbedding
    blocks: tuple[AttentionBlock, ...]
    norm: LayerNorm
    out: Linear
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    latent_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        latent_size: int,
        *,
        out_size: int | None = None,
        num_tokens: int = 32,
        width_size: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        mlp_ratio: float = 2.0,
        feed_forward: Callable[..., Callable[[Array], Array]] = SwiGLU,
        cond_size: int = 256,
        time_embedding: AbstractTimeEmbedding = SinusoidalTime(32),
        features: AbstractFeatures | None = None,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        key: PRNGKey,
    ):
        if num_tokens < 1:
            raise ValueError(
                f"`num_tokens` must be at least 1 for each latent, got {num_tokens}."
            )
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
        self.blocks = tuple(
            AttentionBlock(
                width_size,
                cross=True,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                mlp_ratio=mlp_ratio,
                feed_forward=feed_forward,
                dropout=dropout,
                stochastic_depth=rate,
                key=block_key,
            )
            for rate, block_key in zip(
                depth_rates(stochastic_depth, depth), keys, strict=True
            )
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
        points = valid_points(points, mask, self.in_size)
        latents = checked_latents(latents, self.latent_size, points.dtype)
        h = jax.nn.silu(self.embedding(points))
        tokens = self.tokens(self.conditioning(t, latents)).reshape(-1, h.shape[1])
        there = jnp.repeat(latents_there(latents), tokens.shape[0] // latents.shape[0])
        for block, block_key in zip(
            self.blocks, split_or_none(key, len(self.blocks)), strict=True
        ):
            h = block(h, tokens, there, key=block_key)
        return zero_masked(self.out(self.norm(h)), mask)
