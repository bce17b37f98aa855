"""Learned latents that read a set of tokens, and attend to each other.

`h <- h + Attention(norm(h), tokens)`, `h <- h + Attention(norm(h))`,
`h <- h + feed_forward(norm(h))`, in every block. Tokens are not normalized. With a
modulation, `norm(h)` becomes `norm(h) (1 + scale) + shift`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._checks import as_size
from flowkit._types import AnyArray, PRNGKey
from flowkit.nn._layers.attention import Attention
from flowkit.nn._layers.feed_forward import FeedForward
from flowkit.nn._layers.layer_norm import LayerNorm
from flowkit.nn._layers.modulation import modulate
from flowkit.nn._layers.transformer import learned_rows, Residual, split_or_none


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, not its approximation by a hyperbolic tangent."""
    return jax.nn.gelu(x, approximate=False)


class LatentBlock(eqx.Module):
    """Rows read a context, attend to each other if `thinks`, and go through an MLP."""

    reading: Attention
    thinking: Attention | None
    feed_forward: FeedForward
    norms: tuple[LayerNorm, ...]
    residual: Residual

    def __init__(
        self,
        width_size: int,
        *,
        thinks: bool = True,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        key: PRNGKey,
    ):
        reading_key, thinking_key, feed_forward_key = jr.split(key, 3)
        options = {"num_heads": num_heads, "use_bias": True}
        self.reading = Attention(width_size, **options, key=reading_key)
        self.thinking = None
        if thinks:
            self.thinking = Attention(width_size, **options, key=thinking_key)

        self.feed_forward = FeedForward(
            width_size,
            width_size,
            hidden_sizes=(round(mlp_ratio * width_size),),
            activation=gelu,
            key=feed_forward_key,
        )
        num_layers = 3 if thinks else 2
        self.norms = tuple(LayerNorm(width_size) for _ in range(num_layers))
        self.residual = Residual(width_size, dropout=dropout)

    def __call__(
        self,
        h: Float[Array, "k width"],
        context: Float[Array, "n width"],
        mask: Bool[AnyArray, " n"] | None = None,
        modulation: Float[Array, "number 1 width"] | None = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "k width"]:
        layers = [lambda h: self.reading(h, context, mask), self.feed_forward]
        if self.thinking is not None:
            layers.insert(1, self.thinking)

        keys = split_or_none(key, len(layers))
        for i, (norm, layer) in enumerate(zip(self.norms, layers, strict=True)):
            inputs = norm(h)
            if modulation is not None:
                inputs = modulate(inputs, modulation[2 * i], modulation[2 * i + 1])
            h = self.residual(h, layer(inputs), key=keys[i])
        return h


class LatentReader(eqx.Module):
    """Learned latents, `(num_latents, width)`, after all blocks of reading and thinking."""

    latents: Float[AnyArray, "num_latents width"]
    blocks: tuple[LatentBlock, ...]

    def __init__(
        self,
        width_size: int,
        num_latents: int,
        depth: int,
        *,
        key: PRNGKey,
        **block_options: Any,
    ):
        width_size = as_size("width_size", width_size)
        depth = as_size("depth", depth)
        num_latents = as_size("num_latents", num_latents)
        latents_key, *keys = jr.split(key, depth + 1)
        self.latents = learned_rows(num_latents, width_size, key=latents_key)
        self.blocks = tuple(
            LatentBlock(width_size, **block_options, key=block_key)
            for block_key in keys
        )

    def __call__(
        self,
        tokens: Float[Array, "n width"],
        mask: Bool[AnyArray, " n"] | None = None,
        modulation: Float[Array, "number 1 width"] | None = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "num_latents width"]:
        depth = len(self.blocks)
        of_blocks = [None] * depth
        if modulation is not None:
            of_blocks = jnp.split(modulation, depth)

        h = jnp.asarray(self.latents, tokens.dtype)
        keys = split_or_none(key, depth)
        for block, vectors, block_key in zip(self.blocks, of_blocks, keys, strict=True):
            h = block(h, tokens, mask, vectors, key=block_key)
        return h
