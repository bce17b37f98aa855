"""How the latents `(k, c)` of an encoder reach the points of a cloud.

A conditioner returns `(m, size)`: one vector for all points (`m = 1`) or one for each
(`m = n`). Both broadcast against the points, so every network works with every
conditioner and computes what is shared once.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, Points, Times
from flowkit.nn._sets.masks import nonzero_rows
from flowkit.nn._sets.pooling import max_mean_pool


class AbstractConditioner(eqx.Module):
    """A map from latents to one conditioning vector for all points, or one for each.

    To add one, write `__call__`, with the time and the points that it may use, and pass
    it as `conditioner`. It must accept `n = k = 1`, which is how a conditional network
    (CRN) finds the size of its vectors.
    """

    @abc.abstractmethod
    def __call__(
        self, t: Times, points: Points, latents: Float[AnyArray, "k c"]
    ) -> Float[Array, "m size"]:
        """The vectors, with `m` equal to 1 or to the number of points."""


class Broadcast(AbstractConditioner):
    """One global latent `(1, c)` for all points.

    More than one latent is a `ValueError`.
    """

    def __call__(
        self, t: Times, points: Points, latents: Float[AnyArray, "k c"]
    ) -> Float[Array, "1 c"]:
        del t, points
        if latents.shape[0] != 1:
            raise ValueError(
                f"`latents` has {latents.shape[0]} rows, but Broadcast() gives one to "
                "all points. Reduce them with the conditioner Pool(), use PerPoint() if "
                "each point has its own, or an encoder with one latent."
            )
        return jnp.asarray(latents)


class PerPoint(AbstractConditioner):
    """One local latent for each point.

    Raises a `ValueError` unless there are as many latents as points.
    """

    def __call__(
        self, t: Times, points: Points, latents: Float[AnyArray, "k c"]
    ) -> Float[Array, "n c"]:
        del t
        if latents.shape[0] != points.shape[0]:
            raise ValueError(
                f"`latents` has {latents.shape[0]} rows and `points` has "
                f"{points.shape[0]}, but PerPoint() needs one latent for each point. "
                "For any other number use the conditioner Pool()."
            )
        return jnp.asarray(latents)


class Pool(AbstractConditioner):
    """Any number of latents, reduced to one vector for all points.

    Rows of zeros, which encoders return where there is no latent, are left out.

    **Arguments:** `pooling`, a function `(latents, mask) -> vector` such as `max_pool`,
    `mean_pool`, `max_mean_pool` or `AttentionPool(latent_size, key=key)`.
    """

    pooling: Callable[..., Array] = max_mean_pool

    def __call__(
        self, t: Times, points: Points, latents: Float[AnyArray, "k c"]
    ) -> Float[Array, "1 size"]:
        del t, points
        return self.pooling(latents, nonzero_rows(latents))[None]
