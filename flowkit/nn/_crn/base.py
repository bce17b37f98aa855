"""Conditional networks (CRNs) for clouds, and the parts that they share."""

import abc
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_sizes
from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Mask, Points, PRNGKey, Times
from flowkit.nn._crn.conditioners import AbstractConditioner
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.time_embeddings import AbstractTimeEmbedding, embedded_time
from flowkit.nn._sets.masks import nonzero_rows


Latents: TypeAlias = Float[AnyArray, "k c"] | Float[AnyArray, " c"] | None
"""The latents of one cloud; `(c,)` is read as `(1, c)`, `None` is for `latent_size=0`."""


class AbstractCRN(eqx.Module):
    """A velocity field of clouds: `(t, points, latents) -> (n, out_size)`.

    `latents` takes the place of the `cond` of a flow. They may be those of an encoder,
    `(k, latent_size)`, or anything else that is known about the cloud, such as the
    class as a vector `(latent_size,)`. With `latent_size=0` there are none: a velocity
    field of clouds alone, or of the latents `(k, c)` themselves, read as a cloud of `k`
    points, as needed by `fk.latent.FlowPrior`. A velocity has `out_size = in_size`; use
    another `out_size` if more outputs are needed.

    To add one, give it the three sizes and `__call__`, pass the latents through
    `checked_latents` and a conditioner, start the last layer at zero, and test it with
    `flowkit.testing.assert_permutation_equivariant` and `assert_mask_independent`.
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
        """The velocity of every point, zero where masked.

        The key is for networks that drop units.
        """


class TimeAndLatent(eqx.Module):
    """Joins time and latent vectors, `(m, latent_size) -> (m, cond_size)`.

    `SiLU(Linear(SiLU(W z + b + U embedding(t))))`; with `latent_size=0` there is no term
    `W z`.
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
        check_sizes(cond_size=cond_size)
        latent_key, time_key, hidden_key = jr.split(key, 3)
        self.latent_in = None
        if latent_size:
            self.latent_in = Linear(latent_size, cond_size, key=latent_key)

        # One bias is enough for the sum.
        self.time_in = Linear(
            time_embedding.out_size, cond_size, use_bias=not latent_size, key=time_key
        )
        self.hidden = Linear(cond_size, cond_size, key=hidden_key)
        self.time_embedding = time_embedding

    def __call__(
        self, t: Times, vectors: Float[Array, "m latent_size"]
    ) -> Float[Array, "m cond_size"]:
        time = embedded_time(self.time_embedding, t, vectors.dtype)
        h = self.time_in(time)[None]
        if self.latent_in is not None:
            h = self.latent_in(vectors) + h
        return jax.nn.silu(self.hidden(jax.nn.silu(h)))


def with_time(
    time_embedding: AbstractTimeEmbedding, t: Times, vectors: Float[AnyArray, "m c"]
) -> Float[Array, "m c_and_time"]:
    """The vectors, each followed by the embedded time."""
    vectors = jnp.asarray(vectors)
    time = embedded_time(time_embedding, t, vectors.dtype)
    times = jnp.tile(time[None], (vectors.shape[0], 1))
    return jnp.concatenate([vectors, times], axis=-1)


def vectors_from(
    conditioner: AbstractConditioner,
    t: Times,
    points: Float[Array, "n d"],
    latents: Float[Array, "k c"],
    mask: Mask | None,
) -> Float[Array, "m size"]:
    """The vectors of a conditioner.

    If there is one for each point, those of masked points are set to zero.
    """
    vectors = conditioner(t, points, latents)
    if vectors.shape[0] != points.shape[0]:
        return vectors
    return zero_masked(vectors, mask)


def checked_latents(
    latents: Latents, latent_size: int, dtype: jnp.dtype
) -> Float[Array, "k c"]:
    """The latents `(k, latent_size)` in the dtype of the points.

    `None` with `latent_size=0` gives `(1, 0)`. Raises a `ValueError` if latents are
    given to an unconditional network, are missing, or have another size.
    """
    if latents is None:
        if latent_size:
            raise ValueError(
                "`latents` is None, but the network was built with "
                f"latent_size={latent_size}: pass them as `cond`, or build it with "
                "latent_size=0."
            )
        return jnp.zeros((1, 0), dtype)

    size = latents.shape[-1]
    if not latent_size:
        raise ValueError(
            f"`latents` of size {size} were given, but the network is unconditional: "
            f"build it with latent_size={size}."
        )
    if size != latent_size:
        raise ValueError(
            f"`latents` have size {size}, but the network was built with "
            f"latent_size={latent_size}."
        )
    return jnp.reshape(jnp.asarray(latents, dtype), (-1, latent_size))


def latents_there(latents: Float[AnyArray, "k c"]) -> Bool[Array, " k"]:
    """Which latents are attended to.

    Rows of zeros are left out, unless all rows are zero.
    """
    there = nonzero_rows(latents)
    return there | ~jnp.any(there)
