"""A transformer on the points of a cloud, conditioned by adaptive layer normalization."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import Mask, Points, PRNGKey, Times
from flowkit.nn._attention import Attention
from flowkit.nn._coordinates import AbstractFeatures, PointEmbedding
from flowkit.nn._feed_forward import SwiGLU
from flowkit.nn._layer_norm import normalize
from flowkit.nn._linear import Linear
from flowkit.nn._modulation import modulate, Modulation
from flowkit.nn._shapes import out_size_of, valid_points, zero_masked
from flowkit.nn._time_embeddings import AbstractTimeEmbedding, SinusoidalTime
from flowkit.nn._transformer import depth_rates, Residual, split_or_none
from flowkit.nn.crn._conditioners import AbstractConditioner, Broadcast
from flowkit.nn.crn._crn import (
    AbstractCRN,
    checked_latents,
    Latents,
    TimeAndLatent,
    vectors_from,
)


class DiT(AbstractCRN):
    """A velocity field of clouds whose points attend to each other: a diffusion transformer without positions.

    The points are embedded by `SiLU(Linear(features(x)))`. Every block is

    `h <- h + gate_1 * Attention(AdaLN_1(h))`, `h <- h + gate_2 * feed_forward(AdaLN_2(h))`

    where `AdaLN(h) = LayerNorm(h) (1 + scale) + shift`, and all scales, shifts and gates come from time and latents and
    start at zero, so each block starts as the identity. The result is `Linear(AdaLN(h))`, which starts at zero. Time
    and memory grow with the square of the number of points. Over latents `(k, c)`, with `latent_size=0`, it is a
    velocity field of their joint law that does not depend on their order.

    **Arguments:**

    - `in_size`: the dimension of the points.
    - `latent_size`: the size `c` of the latents `(k, c)`; 0 for a network without latents.
    - `out_size`: the size of the result for each point; `in_size` by default.
    - `conditioner`: how the latents reach the points: `Broadcast()` for one latent, `PerPoint()`, `Pool()`,
      `Select(in_size, latent_size, key=key)`, ...
    - `width_size`, `depth`: the width and number of the blocks.
    - `num_heads`, `num_kv_heads`: as in `Attention`.
    - `mlp_ratio`, `feed_forward`: as in `AttentionBlock`.
    - `cond_size`: the width of the conditioning; 64 is several times as fast if each point has its own.
    - `time_embedding`: use `SinusoidalTime(32, scale=1.0)` if the network is to be differentiated in time.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `modulate_output`: scale and shift what attention and feed-forward network return, not what they are given, and
      have no gates; blocks then do not start as the identity.
    - `dropout`, `stochastic_depth`: as in `Residual`, the latter growing linearly from 0 at the first block.
    - `key`: for the initial weights.

    **Reference:** Peebles, Xie, Scalable Diffusion Models with Transformers, 2023 (arXiv 2212.09748).
    """

    conditioner: AbstractConditioner
    conditioning: TimeAndLatent
    modulation: Modulation
    embedding: PointEmbedding
    blocks: "tuple[_Block, ...]"
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
        conditioner: AbstractConditioner = Broadcast(),
        width_size: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        mlp_ratio: float = 2.0,
        feed_forward: Callable[..., Callable[[Array], Array]] = SwiGLU,
        cond_size: int = 256,
        time_embedding: AbstractTimeEmbedding = SinusoidalTime(32),
        features: AbstractFeatures | None = None,
        modulate_output: bool = False,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        key: PRNGKey,
    ):
        conditioning_key, modulation_key, embedding_key, out_key, *keys = jr.split(
            key, depth + 4
        )
        vector_size = out_size_of(conditioner, (), (1, in_size), (1, latent_size))
        num_vectors = depth * (4 if modulate_output else 6) + 2
        self.in_size = in_size
        self.out_size = in_size if out_size is None else out_size
        self.latent_size = latent_size
        self.conditioner = conditioner
        self.conditioning = TimeAndLatent(
            vector_size, cond_size, time_embedding, key=conditioning_key
        )
        self.modulation = Modulation(
            cond_size, width_size, num_vectors, zero_init=True, key=modulation_key
        )
        self.embedding = PointEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.blocks = tuple(
            _Block(
                Attention(
                    width_size,
                    num_heads=num_heads,
                    num_kv_heads=num_kv_heads,
                    key=attention_key,
                ),
                feed_forward(
                    width_size, round(mlp_ratio * width_size), key=feed_forward_key
                ),
                Residual(width_size, dropout=dropout, stochastic_depth=rate),
            )
            for rate, (attention_key, feed_forward_key) in zip(
                depth_rates(stochastic_depth, depth), map(jr.split, keys), strict=True
            )
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
        points = valid_points(points, mask, self.in_size)
        latents = checked_latents(latents, self.latent_size, points.dtype)
        vectors = self.modulation(
            self.conditioning(
                t, vectors_from(self.conditioner, t, points, latents, mask)
            ),
        )
        h = jax.nn.silu(self.embedding(points))
        of_blocks, (scale, shift) = (
            jnp.split(vectors[:-2], len(self.blocks)),
            vectors[-2:],
        )
        keys = split_or_none(key, len(self.blocks))
        for block, block_vectors, block_key in zip(
            self.blocks, of_blocks, keys, strict=True
        ):
            h = block(h, block_vectors, mask, key=block_key)
        return zero_masked(self.out(modulate(normalize(h), scale, shift)), mask)


class _Block(eqx.Module):
    attention: Attention
    feed_forward: Callable[[Array], Array]
    residual: Residual

    def __call__(
        self,
        h: Float[Array, "n width"],
        vectors: Float[Array, "number m width"],
        mask: Mask | None = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n width"]:
        of_attention, of_feed_forward = jnp.split(vectors, 2)
        attention_key, feed_forward_key = split_or_none(key, 2)
        attend = lambda x: self.attention(x, mask=mask)
        h = self.residual(h, _modulated(attend, h, of_attention), key=attention_key)
        return self.residual(
            h, _modulated(self.feed_forward, h, of_feed_forward), key=feed_forward_key
        )


def _modulated(
    fn: Callable[[Array], Array],
    h: Float[Array, "n width"],
    vectors: Float[Array, "number m width"],
) -> Float[Array, "n width"]:
    """The layer between a scale and shift before and a gate after it, or with scale and shift after it."""
    scale, shift, *gate = vectors
    if not gate:
        return modulate(fn(normalize(h)), scale, shift)
    return gate[0] * fn(modulate(normalize(h), scale, shift))
