"""Encoders made of encoders."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import Mask, Points, PRNGKey
from flowkit.nn._linear import Linear
from flowkit.nn._pooling import max_mean_pool
from flowkit.nn._shapes import nonzero_rows, out_size_of
from flowkit.nn._transformer import split_or_none
from flowkit.nn.encoders._encoder import AbstractEncoder


class Pooled(AbstractEncoder):
    """The latents of an encoder, pooled: `Linear(pooling(latents))`, of shape `(1, out_size)`.

    Rows of zeros, by which encoders say that there is no latent, are left out of the pooling.

    **Arguments:**

    - `encoder`: with latents `(k, c)`, local or structured.
    - `pooling`: any `(features, mask) -> vector`, such as `max_pool`, `mean_pool`, `max_mean_pool` (the default),
        `AttentionPool(c, key=key)` or `Set2Set(c, key=key)`. With `PMA(c, num_seeds=m, key=key)`, which returns `m`
        rows, the result is `(m, out_size)`.
    - `out_size`: the size of the pooled latent.
    - `key`: for the last linear map.
    """

    encoder: Callable[..., Array]
    pooling: Callable[..., Array]
    out: Linear
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    def __init__(
        self,
        encoder: Callable[..., Array],
        pooling: Callable[..., Array] = max_mean_pool,
        *,
        out_size: int,
        key: PRNGKey,
    ):
        self.encoder = encoder
        self.pooling = pooling
        self.in_size = encoder.in_size  # pyright: ignore
        self.out_size = out_size
        self.out = Linear(
            out_size_of(pooling, (1, encoder.out_size)), out_size, key=key
        )  # pyright: ignore

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "m c"]:
        latents = self.encoder(points, mask, key)
        return self.out(jnp.atleast_2d(self.pooling(latents, nonzero_rows(latents))))


class Chained(AbstractEncoder):
    """An encoder whose latents are the points of another: `second(first(points))`.

    Rows of zeros in between, by which encoders say that there is no latent, are masked.

    **Arguments:** `first` and `second`, where `second.in_size` is `first.out_size`.
    """

    first: Callable[..., Array]
    second: Callable[..., Array]
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    def __init__(self, first: Callable[..., Array], second: Callable[..., Array]):
        sizes = first.out_size, second.in_size  # pyright: ignore
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"`second` must have `in_size` {sizes[0]}, the `out_size` of `first`, got {sizes[1]}."
            )
        self.first = first
        self.second = second
        self.in_size = first.in_size  # pyright: ignore
        self.out_size = second.out_size  # pyright: ignore

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "k c"]:
        first_key, second_key = split_or_none(key, 2)
        latents = self.first(points, mask, first_key)
        return self.second(latents, nonzero_rows(latents), second_key)
