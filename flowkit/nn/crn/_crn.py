"""Conditional networks for clouds, and the part that they share."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import AnyArray, Mask, Points, PRNGKey, Scalar
from flowkit.nn._linear import Linear
from flowkit.nn._time_embeddings import AbstractTimeEmbedding


class AbstractCRN(eqx.Module):
    """A velocity field of clouds given latents: `(t, points, latents) -> (n, in_size)`.

    `latents` stands where a flow passes `cond`. To add one: give it the two sizes and `__call__`, take the latents
    through a conditioner, start the last layer at zero, and hold it to
    `flowkit.testing.assert_permutation_equivariant` and `assert_mask_independent`.
    """

    in_size: eqx.AbstractVar[int]
    latent_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(
        self,
        t: Scalar,
        points: Points,
        latents: Float[AnyArray, "k c"],
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "n d"]:
        """The velocity of every point, zero where masked; `key` is for networks that drop units."""


class TimeAndLatent(eqx.Module):
    """Joins time and latent vectors: `SiLU(Linear(SiLU(W z + b + U embedding(t))))`, `(m, latent) -> (m, cond)`."""

    latent_in: Linear
    time_in: Linear
    hidden: Linear
    time_embedding: AbstractTimeEmbedding

    def __init__(self, latent_size: int, cond_size: int, time_embedding: AbstractTimeEmbedding, *, key: PRNGKey):
        latent_key, time_key, hidden_key = jr.split(key, 3)
        self.latent_in = Linear(latent_size, cond_size, key=latent_key)
        self.time_in = Linear(time_embedding.out_size, cond_size, use_bias=False, key=time_key)
        self.hidden = Linear(cond_size, cond_size, key=hidden_key)
        self.time_embedding = time_embedding

    def __call__(self, t: Scalar, vectors: Float[Array, "m latent_size"]) -> Float[Array, "m cond_size"]:
        embedded = self.time_embedding(jnp.asarray(t, vectors.dtype))
        return jax.nn.silu(self.hidden(jax.nn.silu(self.latent_in(vectors) + self.time_in(embedded))))


def checked_latents(latents: Float[AnyArray, "k c"], latent_size: int, dtype: jnp.dtype) -> Float[Array, "k c"]:
    """The latents in the dtype of the points, or a `ValueError` if their size is not the network's."""
    if latents.shape[-1] != latent_size:
        raise ValueError(
            f"`latents` have size {latents.shape[-1]}, but the network was built with latent_size={latent_size}."
        )
    return jnp.asarray(latents, dtype)
