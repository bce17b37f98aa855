"""A transformer block conditioned by adaptive layer normalization."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import Mask, PRNGKey
from flowkit.nn._layers.attention import Attention
from flowkit.nn._layers.feed_forward import SwiGLU
from flowkit.nn._layers.layer_norm import normalize
from flowkit.nn._layers.modulation import modulate
from flowkit.nn._layers.transformer import depth_rates, Residual, split_or_none


class AdaLNBlock(eqx.Module):
    """Attention and a feed-forward network, each with a scale, a shift and a gate.

    `h <- h + gate * fn(normalize(h) (1 + scale) + shift)` for both. The caller passes these
    six vectors. If there are only four, there are no gates, and scale and shift are applied
    after `fn`.

    **Reference:** Peebles, Xie, Scalable Diffusion Models with Transformers, 2023
    (arXiv 2212.09748).
    """

    attention: Attention
    feed_forward: Callable[[Array], Array]
    residual: Residual

    def __init__(
        self,
        width_size: int,
        *,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        mlp_ratio: float = 2.0,
        feed_forward: Callable[..., Callable[[Array], Array]] = SwiGLU,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        key: PRNGKey,
    ):
        attention_key, feed_forward_key = jr.split(key)
        self.attention = Attention(
            width_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            key=attention_key,
        )
        hidden_size = round(mlp_ratio * width_size)
        self.feed_forward = feed_forward(width_size, hidden_size, key=feed_forward_key)
        # It has no parameters, so both halves of the block use the same one.
        self.residual = Residual(
            width_size, dropout=dropout, stochastic_depth=stochastic_depth
        )

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
        update = _modulated(attend, h, of_attention)
        h = self.residual(h, update, key=attention_key)

        update = _modulated(self.feed_forward, h, of_feed_forward)
        return self.residual(h, update, key=feed_forward_key)


def adaln_blocks(
    width_size: int, keys: Sequence[PRNGKey], *, stochastic_depth: float, **options: Any
) -> tuple[AdaLNBlock, ...]:
    """A block for each key. The rate rises linearly from 0 at the first one."""
    rates = depth_rates(stochastic_depth, len(keys))
    return tuple(
        AdaLNBlock(width_size, **options, stochastic_depth=rate, key=key)
        for rate, key in zip(rates, keys, strict=True)
    )


def _modulated(
    fn: Callable[[Array], Array],
    h: Float[Array, "n width"],
    vectors: Float[Array, "number m width"],
) -> Float[Array, "n width"]:
    """A layer with a scale and shift before it and a gate after it.

    Without a gate, scale and shift come after the layer.
    """
    scale, shift, *gates = vectors
    if not gates:
        return modulate(fn(normalize(h)), scale, shift)
    (gate,) = gates
    return gate * fn(modulate(normalize(h), scale, shift))
