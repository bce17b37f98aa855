"""Blocks of attention and feed-forward layers for sets."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._checks import as_size
from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Mask, PRNGKey
from flowkit.nn._layers.arrays import per_feature
from flowkit.nn._layers.attention import Attention
from flowkit.nn._layers.feed_forward import SwiGLU
from flowkit.nn._layers.initial import full, normal
from flowkit.nn._layers.layer_norm import LayerNorm


def check_rate(name: str, rate: float) -> None:
    """Raises unless this is a probability below 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"`{name}` is a probability below 1, got {rate}.")


class Residual(eqx.Module):
    """`h + scale * update`; in training, parts of the update are dropped.

    Without a key, and in inference mode, nothing is dropped.

    **Arguments:**

    - `width_size`: the width of the rows.
    - `layer_scale`: the initial value of a learned factor per feature, such as `1e-4`;
      `None` for no factor.
    - `dropout`: the probability that an entry of the update is dropped.
    - `stochastic_depth`: the probability that the whole update is dropped.

    **Reference:** Touvron et al., Going Deeper with Image Transformers, 2021
    (arXiv 2103.17239), for the factor; Huang et al., Deep Networks with Stochastic
    Depth, 2016 (arXiv 1603.09382).
    """

    scale: Float[AnyArray, " width"] | None
    dropout: eqx.nn.Dropout
    stochastic_depth: eqx.nn.Dropout

    def __init__(
        self,
        width_size: int,
        *,
        layer_scale: float | None = None,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ):
        check_rate("dropout", dropout)
        check_rate("stochastic_depth", stochastic_depth)
        self.scale = None
        if layer_scale is not None:
            self.scale = full(width_size, layer_scale)
        self.dropout = eqx.nn.Dropout(dropout)
        self.stochastic_depth = eqx.nn.Dropout(stochastic_depth)

    def __call__(
        self,
        h: Float[Array, "n width"],
        update: Float[Array, "n width"],
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n width"]:
        if self.scale is not None:
            update = update * per_feature(self.scale, update)
        if key is not None:
            entry_key, whole_key = jr.split(key)
            update = self.dropout(update, key=entry_key)
            # Dropout of a single 1 keeps or drops the whole update.
            one = jnp.ones((), update.dtype)
            update = update * self.stochastic_depth(one, key=whole_key)
        return h + update


class AttentionBlock(eqx.Module):
    """A pre-norm transformer block: attention, then a feed-forward network.

    `h <- h + Attention(norm(h), context)`, `h <- h + feed_forward(norm(h))`. Without a
    context the rows attend to each other (the SAB block of the Set Transformer). With a
    context they attend to its normalized rows (the MAB block).

    **Arguments:**

    - `width_size`: the width of the rows.
    - `cross`: whether the block takes a context.
    - `context_size`: the width of the rows of the context; `width_size` by default.
    - `num_heads`, `num_kv_heads`, `use_bias`: as in `Attention`.
    - `mlp_ratio`: the hidden width of the feed-forward network, divided by
      `width_size`.
    - `feed_forward`: `(in_size, hidden_size, *, key) -> network`, such as `SwiGLU`.
    - `layer_scale`, `dropout`, `stochastic_depth`: as in `Residual`.
    - `key`: the key of the initial weights.

    **Reference:** Xiong et al., On Layer Normalization in the Transformer Architecture,
    2020 (arXiv 2002.04745); Lee et al., Set Transformer, 2019 (arXiv 1810.00825).
    """

    attention: Attention
    feed_forward: Callable[[Array], Array]
    norm: LayerNorm
    context_norm: LayerNorm | None
    feed_forward_norm: LayerNorm
    attention_residual: Residual
    feed_forward_residual: Residual

    def __init__(
        self,
        width_size: int,
        *,
        cross: bool = False,
        context_size: int | None = None,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        use_bias: bool = False,
        mlp_ratio: float = 4.0,
        feed_forward: Callable[..., Callable[[Array], Array]] = SwiGLU,
        layer_scale: float | None = None,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        key: PRNGKey,
    ):
        if context_size is None:
            context_size = width_size
        attention_key, feed_forward_key = jr.split(key)
        self.attention = Attention(
            width_size,
            context_size=context_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            use_bias=use_bias,
            key=attention_key,
        )
        hidden_size = round(mlp_ratio * width_size)
        self.feed_forward = feed_forward(width_size, hidden_size, key=feed_forward_key)
        self.norm = LayerNorm(width_size)
        self.context_norm = LayerNorm(context_size) if cross else None
        self.feed_forward_norm = LayerNorm(width_size)

        residual = Residual(
            width_size,
            layer_scale=layer_scale,
            dropout=dropout,
            stochastic_depth=stochastic_depth,
        )
        # Equal at first; they are two leaves of the tree and are trained apart.
        self.attention_residual = residual
        self.feed_forward_residual = residual

    def __call__(
        self,
        h: Float[Array, "n width"],
        context: Float[Array, "m context"] | None = None,
        mask: Bool[AnyArray, " m"] | None = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n width"]:
        """The new rows.

        `mask` marks the valid rows among those that are attended to: the rows of the
        context, or of `h` itself. Masked rows of `h` get values, too, but these mean
        nothing.
        """
        if (context is None) != (self.context_norm is None):
            raise ValueError(
                "`context` must be given to a block built with `cross=True`, and to no "
                "other."
            )
        attention_key, feed_forward_key = split_or_none(key, 2)
        if context is None:
            h = zero_masked(h, mask)
        elif self.context_norm is not None:
            context = self.context_norm(zero_masked(context, mask))

        gathered = self.attention(self.norm(h), context, mask)
        h = self.attention_residual(h, gathered, key=attention_key)

        update = self.feed_forward(self.feed_forward_norm(h))
        return self.feed_forward_residual(h, update, key=feed_forward_key)


class ISAB(eqx.Module):
    """Attention of rows to each other by way of a few learned rows.

    `i <- block(inducing, context=h)`, `h <- block(h, context=i)`, with two blocks
    `AttentionBlock(cross=True)`. The cost is linear in the number of rows, not
    quadratic.

    **Arguments:**

    - `width_size`: the width of the rows.
    - `num_inducing`: the number of learned rows.
    - `key`: the key of the initial weights.
    - any option of `AttentionBlock`.

    **Reference:** Lee et al., Set Transformer, 2019 (arXiv 1810.00825).
    """

    inducing: Float[AnyArray, "num_inducing width"]
    gather: AttentionBlock
    spread: AttentionBlock

    def __init__(
        self,
        width_size: int,
        *,
        num_inducing: int = 16,
        key: PRNGKey,
        **block_options: Any,
    ):
        width_size = as_size("width_size", width_size)
        num_inducing = as_size("num_inducing", num_inducing)
        inducing_key, gather_key, spread_key = jr.split(key, 3)
        self.inducing = learned_rows(num_inducing, width_size, key=inducing_key)
        self.gather = AttentionBlock(
            width_size, cross=True, **block_options, key=gather_key
        )
        self.spread = AttentionBlock(
            width_size, cross=True, **block_options, key=spread_key
        )

    def __call__(
        self,
        h: Float[Array, "n width"],
        *,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n width"]:
        """The new rows. `mask` marks the valid rows of `h`, as in `AttentionBlock`."""
        gather_key, spread_key = split_or_none(key, 2)
        h = zero_masked(h, mask)
        inducing = jnp.asarray(self.inducing, h.dtype)
        gathered = self.gather(inducing, h, mask, key=gather_key)
        return self.spread(h, gathered, key=spread_key)


def learned_rows(num: int, size: int, *, key: PRNGKey) -> Float[Array, "num size"]:
    """Initial values of learned tokens, seeds and queries: `N(0, 0.02^2)`."""
    return normal((num, size), 0.02, key=key)


def split_or_none(key: PRNGKey | None, num: int) -> list[PRNGKey | None]:
    """That many keys, or that many `None`."""
    return [None] * num if key is None else list(jr.split(key, num))


def depth_rates(stochastic_depth: float, depth: int) -> list[float]:
    """The rates of a stack of blocks: evenly spaced from 0 to `stochastic_depth`."""
    return [stochastic_depth * i / max(depth - 1, 1) for i in range(depth)]
