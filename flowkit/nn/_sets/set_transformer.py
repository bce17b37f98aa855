"""A transformer over the points of a cloud."""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Mask, Points, PRNGKey
from flowkit.nn._layers.features import AbstractFeatures
from flowkit.nn._layers.layer_norm import LayerNorm
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.transformer import (
    AttentionBlock,
    depth_rates,
    learned_rows,
    split_or_none,
)
from flowkit.nn._sets.embedding import RowEmbedding
from flowkit.nn._sets.encoder import AbstractEncoder, checked_points


class SetTransformer(AbstractEncoder):
    """A local encoder, `(n, in_size) -> (n, out_size)`: points attend to each other.

    Each point is embedded on its own. The rows pass through `depth` blocks, are
    normalized, and are mapped to `out_size`. Coordinates are the only positional
    information. For a global or structured encoder use `num_tokens` with
    `return_tokens=True`, or `Pooled(SetTransformer(...), PMA(...), ...)`.

    **Arguments:**

    - `in_size`, `out_size`: the dimension of the points, and the size of a latent.
    - `width_size`, `depth`: the width and number of the blocks.
    - `block`: `(width_size, *, stochastic_depth, key, ...) -> block`: `AttentionBlock`,
      in which all points attend to all, or `ISAB`, whose cost is linear in their number.
    - `num_tokens`: the number of learned rows that join the points and are attended to
      like them.
    - `return_tokens`: whether the result is these rows, `(num_tokens, out_size)`,
      instead of those of the points.
    - `stochastic_depth`: the rate of the last block; it rises linearly from 0.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `key`: the key of the initial weights.
    - any option of the block: `num_heads`, `num_kv_heads`, `mlp_ratio`, `layer_scale`,
      `dropout`, `num_inducing`, ...

    **Reference:** Lee et al., Set Transformer, 2019 (arXiv 1810.00825); Devlin et al.,
    BERT, 2018 (arXiv 1810.04805), for a token whose row is the result.
    """

    embedding: RowEmbedding
    tokens: Float[AnyArray, "num_tokens width"]
    blocks: tuple[Callable[..., Array], ...]
    norm: LayerNorm
    out: Linear
    return_tokens: bool = eqx.field(static=True)
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        width_size: int = 64,
        depth: int = 3,
        block: Callable[..., Callable[..., Array]] = AttentionBlock,
        num_tokens: int = 0,
        return_tokens: bool = False,
        stochastic_depth: float = 0.0,
        features: AbstractFeatures | None = None,
        key: PRNGKey,
        **block_options: Any,
    ):
        if return_tokens and num_tokens < 1:
            raise ValueError(
                "`num_tokens` must be at least 1 if they are returned, "
                f"got {num_tokens}."
            )
        depth = as_size("depth", depth, least=0)
        num_tokens = as_size("num_tokens", num_tokens, least=0)
        embedding_key, tokens_key, out_key, *keys = jr.split(key, depth + 3)
        rates = depth_rates(stochastic_depth, depth)

        self.embedding = RowEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.tokens = learned_rows(num_tokens, width_size, key=tokens_key)
        self.blocks = tuple(
            block(width_size, **block_options, stochastic_depth=rate, key=block_key)
            for rate, block_key in zip(rates, keys, strict=True)
        )
        self.norm = LayerNorm(width_size)
        self.out = Linear(width_size, out_size, key=out_key)
        self.return_tokens = return_tokens
        self.in_size = in_size
        self.out_size = out_size

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "k c"]:
        """The latents.

        The key is for dropout and stochastic depth; without one nothing is dropped.
        """
        h = self.embedding(checked_points(points, mask, self.in_size))
        num_tokens = self.tokens.shape[0]
        h = jnp.concatenate([jnp.asarray(self.tokens, h.dtype), h])

        # Tokens are always there.
        valid = None
        if mask is not None:
            valid = jnp.concatenate([jnp.ones(num_tokens, bool), jnp.asarray(mask)])

        keys = split_or_none(key, len(self.blocks))
        for block, block_key in zip(self.blocks, keys, strict=True):
            h = block(h, mask=valid, key=block_key)

        if self.return_tokens:
            return self.out(self.norm(h[:num_tokens]))
        return zero_masked(self.out(self.norm(h[num_tokens:])), mask)
