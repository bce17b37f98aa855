"""Encoders made of encoders."""

import operator
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import Mask, Points, PRNGKey
from flowkit.nn._layers.arrays import out_size_of
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.transformer import split_or_none
from flowkit.nn._sets.encoder import AbstractEncoder
from flowkit.nn._sets.masks import nonzero_rows
from flowkit.nn._sets.pooling import max_mean_pool


class Pooled(AbstractEncoder):
    """The pooled latents of an encoder: `Linear(pooling(latents))`, `(1, out_size)`.

    Rows of zeros, which encoders return where there is no latent, are left out.

    **Arguments:**

    - `encoder`: an encoder with local or structured latents `(k, c)`.
    - `pooling`: any `(features, mask) -> vector`, such as `max_pool`, `mean_pool`,
      `max_mean_pool` (the default), `AttentionPool(c, key=key)` or
      `Set2Set(c, key=key)`. With `PMA(c, num_seeds=m, key=key)`, which returns `m` rows,
      the result is `(m, out_size)`.
    - `out_size`: the size of the pooled latent.
    - `key`: the key of the last linear map.
    """

    encoder: Callable[..., Array]
    pooling: Callable[..., Array]
    out: Linear
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        encoder: Callable[..., Array],
        pooling: Callable[..., Array] = max_mean_pool,
        *,
        out_size: int,
        key: PRNGKey,
    ):
        pooled_size = out_size_of(pooling, (1, encoder.out_size))  # pyright: ignore
        self.encoder = encoder
        self.pooling = pooling
        self.in_size = encoder.in_size  # pyright: ignore
        self.out_size = out_size
        self.out = Linear(pooled_size, out_size, key=key)

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "m c"]:
        """The pooled latents of one cloud; the key is passed to the encoder."""
        latents = self.encoder(points, mask, key)
        pooled = self.pooling(latents, nonzero_rows(latents))
        # A pooling returns one vector, or a row for each of its seeds.
        return self.out(jnp.atleast_2d(pooled))


class Chained(AbstractEncoder):
    """An encoder whose points are the latents of another: `second(first(points))`.

    Rows of zeros in between, which encoders return where there is no latent, are masked.

    **Arguments:** `first` and `second`, where `second.in_size` is `first.out_size`.
    """

    first: Callable[..., Array]
    second: Callable[..., Array]
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(self, first: Callable[..., Array], second: Callable[..., Array]):
        given = first.out_size  # pyright: ignore
        wanted = second.in_size  # pyright: ignore
        if given != wanted:
            raise ValueError(
                f"`second` must have `in_size` {given}, the `out_size` of `first`, "
                f"got {wanted}."
            )
        self.first = first
        self.second = second
        self.in_size = first.in_size  # pyright: ignore
        self.out_size = second.out_size  # pyright: ignore

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "k c"]:
        """The latents of the second encoder."""
        first_key, second_key = split_or_none(key, 2)
        latents = self.first(points, mask, first_key)
        return self.second(latents, nonzero_rows(latents), second_key)
