"""Learned latents that read the cloud by attention."""

import operator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import as_size
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


class CrossAttentionEncoder(AbstractEncoder):
    """A structured encoder, `(n, in_size) -> (num_latents, out_size)`.

    Learned latents attend to the embedded points and then to each other, `depth` times,
    each time with an `AttentionBlock`. Then they are normalized and mapped to
    `out_size`. The cost is linear in the number of points.

    **Arguments:**

    - `in_size`, `out_size`: the dimension of the points, and the size of a latent.
    - `num_latents`: the number of latents.
    - `width_size`, `depth`: the width, and the number of pairs of blocks.
    - `stochastic_depth`: the rate of the last pair; it rises linearly from 0.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `key`: the key of the initial weights.
    - any other option of `AttentionBlock`.

    **Reference:** Jaegle et al., Perceiver, 2021 (arXiv 2103.03206).
    """

    embedding: RowEmbedding
    latents: Float[AnyArray, "num_latents width"]
    reading: tuple[AttentionBlock, ...]
    thinking: tuple[AttentionBlock, ...]
    norm: LayerNorm
    out: Linear
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        num_latents: int = 32,
        width_size: int = 64,
        depth: int = 3,
        stochastic_depth: float = 0.0,
        features: AbstractFeatures | None = None,
        key: PRNGKey,
        **block_options: Any,
    ):
        depth = as_size("depth", depth)
        num_latents = as_size("num_latents", num_latents)
        embedding_key, latents_key, out_key, *keys = jr.split(key, 2 * depth + 3)
        # A pair of blocks shares its rate.
        rates = depth_rates(stochastic_depth, depth)

        self.embedding = RowEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.latents = learned_rows(num_latents, width_size, key=latents_key)
        self.reading = tuple(
            AttentionBlock(
                width_size,
                cross=True,
                **block_options,
                stochastic_depth=rate,
                key=block_key,
            )
            for rate, block_key in zip(rates, keys[:depth], strict=True)
        )
        self.thinking = tuple(
            AttentionBlock(
                width_size, **block_options, stochastic_depth=rate, key=block_key
            )
            for rate, block_key in zip(rates, keys[depth:], strict=True)
        )
        self.norm = LayerNorm(width_size)
        self.out = Linear(width_size, out_size, key=out_key)
        self.in_size = in_size
        self.out_size = out_size

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "k c"]:
        """The latents.

        The key is for dropout and stochastic depth; without one nothing is dropped.
        """
        rows = self.embedding(checked_points(points, mask, self.in_size))
        h = jnp.asarray(self.latents, rows.dtype)
        keys = iter(split_or_none(key, 2 * len(self.reading)))

        for reading, thinking in zip(self.reading, self.thinking, strict=True):
            h = reading(h, rows, mask, key=next(keys))
            h = thinking(h, key=next(keys))
        return self.out(self.norm(h))
