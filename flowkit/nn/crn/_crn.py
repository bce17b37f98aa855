"""Conditional networks for clouds, and the part that they share."""

import abc
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, Mask, Points, PRNGKey, Times
from flowkit.nn._linear import Linear
from flowkit.nn._shapes import nonzero_rows, zero_masked
from flowkit.nn._time_embeddings import AbstractTimeEmbedding
from flowkit.nn.crn._conditioners import AbstractConditioner


Latents: TypeAlias = Float[AnyArray, "k c"] | Float[AnyArray, " c"] | None
"""The latents of one cloud; `(c,)` is read as `(1, c)`, and `None` goes with `latent_size=0`."""


class AbstractCRN(eqx.Module):
    """A velocity field of clouds given latents: `(t, points, latents) -> (n, out_size)`, where `out_size` is `in_size`.

    `latents` stands where a flow passes `cond`. They may be those of an encoder, `(k, latent_size)`, or anything else
    that is known of the cloud, such as the class as a vector `(latent_size,)`. With `latent_size=0` there are none: a
    velocity field of clouds alone, or of the latents `(k, c)` themselves, read as a cloud of `k` points, as
    `fk.latent.FlowPrior` wants it. Another `out_size` is for what needs more than a velocity.

    To add one: give it the three sizes and `__call__`, take the latents through `checked_latents` and a conditioner,
    start the last layer at zero, and hold it to `flowkit.testing.assert_permutation_equivariant` and
    `assert_mask_independent`.
    """

    in_size: eqx.AbstractVar[int]
    out_size: eqx.AbstractVar[int]
    latent_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(
        self,
        t: Times,
        points: Points,
        latents: Latents = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n out_size"]:
        """The velocity of every point, zero where masked; `key` is for networks that drop units."""


class TimeAndLatent(eqx.Module):
    """Joins time and latent vectors: `SiLU(Linear(SiLU(W z + b + U embedding(t))))`, `(m, latent) -> (m, cond)`.

    With `latent_size=0` the term `W z` is not there.
    """

    latent_in: Linear | None
    time_in: Linear
    hidden: Linear
    time_embedding: AbstractTimeEmbedding

    def __init__(
        self,
        latent_size: int,
        cond_size: int,
        time_embedding: AbstractTimeEmbedding,
        *,
        key: PRNGKey,
    ):
        latent_key, time_key, hidden_key = jr.split(key, 3)
        self.latent_in = (
            Linear(latent_size, cond_size, key=latent_key) if latent_size else None
        )
        self.time_in = Linear(
            time_embedding.out_size, cond_size, use_bias=not latent_size, key=time_key
        )
        self.hidden = Linear(cond_size, cond_size, key=hidden_key)
        self.time_embedding = time_embedding

    def __call__(
        self, t: Times, vectors: Float[Array, "m latent_size"]
    ) -> Float[Array, "m cond_size"]:
        h = self.time_in(self.time_embedding(jnp.asarray(t, vectors.dtype)))[None]
        if self.latent_in is not None:
            h = self.latent_in(vectors) + h
        return jax.nn.silu(self.hidden(jax.nn.silu(h)))


def with_time(
    time_embedding: AbstractTimeEmbedding, t: Times, vectors: Float[AnyArray, "m c"]
) -> Float[Array, "m c_and_time"]:
    """The vectors with the embedded time beside each."""
    vectors = jnp.asarray(vectors)
    embedded = time_embedding(jnp.asarray(t, vectors.dtype))
    return jnp.concatenate(
        [vectors, jnp.tile(embedded, (vectors.shape[0], 1))], axis=-1
    )


def vectors_from(
    conditioner: AbstractConditioner,
    t: Times,
    points: Float[Array, "n d"],
    latents: Float[Array, "k c"],
    mask: Mask | None,
) -> Float[Array, "m size"]:
    """The vectors of a conditioner, those of masked points set to zero if there is one for each point."""
    vectors = conditioner(t, points, latents)
    return (
        zero_masked(vectors, mask) if vectors.shape[0] == points.shape[0] else vectors
    )


def checked_latents(
    latents: Latents, latent_size: int, dtype: jnp.dtype
) -> Float[Array, "k c"]:
    """The latents `(k, latent_size)` in the dtype of the points, `(1, 0)` for `None` and `latent_size=0`.

    Raises a `ValueError` if they are there and should not be, are not and should, or have another size.
    """
    if latents is None:
        if latent_size:
            raise ValueError(
                f"`latents` is None, but the network was built with latent_size={latent_size}: pass them as `cond`, "
                "or build it with latent_size=0."
            )
        return jnp.zeros((1, 0), dtype)
    size = latents.shape[-1]
    if not latent_size:
        raise ValueError(
            f"`latents` of size {size} were given, but the network is unconditional: build it with latent_size={size}."
        )
    if size != latent_size:
        raise ValueError(
            f"`latents` have size {size}, but the network was built with latent_size={latent_size}."
        )
    return jnp.reshape(jnp.asarray(latents, dtype), (-1, latent_size))


def latents_there(latents: Float[AnyArray, "k c"]) -> Bool[Array, " k"]:
    """Which latents are attended to: rows of zeros stand for nothing, unless there is nothing else."""
    there = nonzero_rows(jnp.asarray(latents))
    return there | ~jnp.any(there)
