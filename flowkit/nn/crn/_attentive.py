"""Conditioners by which each point chooses among the latents of a cloud."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import AnyArray, Points, PRNGKey, Times
from flowkit.nn._attention import Attention
from flowkit.nn._coordinates import AbstractFeatures, PointEmbedding
from flowkit.nn._linear import Linear
from flowkit.nn._time_embeddings import AbstractTimeEmbedding, SinusoidalTime
from flowkit.nn.crn._conditioners import AbstractConditioner
from flowkit.nn.crn._crn import latents_there, with_time


class Select(AbstractConditioner):
    r"""For each point a mean of the latents, weighted by how well they match: soft selection, `(k, c)` to `(n, width)`.

    $$\sum_j \mathrm{softmax}_j\big( q_i \cdot h_j / \sqrt{w} \big)\, h_j, \qquad
    q_i = \mathrm{SiLU}(W_q x_i + b_q),\ h_j = \mathrm{SiLU}(W_h [z_j, \mathrm{embedding}(t)] + b_h)$$

    It does not depend on the order of the latents, and their number may vary. Rows of zeros are latents that are not
    there, and are left out.

    **Arguments:**

    - `in_size`, `latent_size`: of the points and of the latents, as in the network.
    - `width_size`: $w$, the size of the result.
    - `time_embedding`: so that the choice may change with time.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `key`: for the initial weights.
    """

    embedding: PointEmbedding
    latent_in: Linear
    time_embedding: AbstractTimeEmbedding

    def __init__(
        self,
        in_size: int,
        latent_size: int,
        *,
        width_size: int = 64,
        time_embedding: AbstractTimeEmbedding = SinusoidalTime(32),
        features: AbstractFeatures | None = None,
        key: PRNGKey,
    ):
        embedding_key, latent_key = jr.split(key)
        self.embedding = PointEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.latent_in = Linear(
            latent_size + time_embedding.out_size, width_size, key=latent_key
        )
        self.time_embedding = time_embedding

    def __call__(
        self, t: Times, points: Points, latents: Float[AnyArray, "k c"]
    ) -> Float[Array, "n width"]:
        queries = jax.nn.silu(self.embedding(points))
        hidden = jax.nn.silu(self.latent_in(with_time(self.time_embedding, t, latents)))
        scores = (
            queries @ hidden.T / jnp.sqrt(jnp.asarray(hidden.shape[1], hidden.dtype))
        )
        there = latents_there(latents)
        scores = jnp.where(
            there, scores, jnp.full_like(scores, jnp.finfo(scores.dtype).min)
        )
        return (
            jnp.where(there, jax.nn.softmax(scores, axis=-1), jnp.zeros_like(scores))
            @ hidden
        )


class CrossAttend(AbstractConditioner):
    """What each point gathers from the latents by attention with several heads, `(k, c)` to `(n, width)`.

    The queries are `SiLU(Linear(x_i))`, the context `Linear([z_j, embedding(t)])`. It does not depend on the order of
    the latents, and their number may vary. Rows of zeros are left out.

    **Arguments:** those of `Select`, and `num_heads`, `num_kv_heads` as in `Attention`.
    """

    embedding: PointEmbedding
    latent_in: Linear
    attention: Attention
    time_embedding: AbstractTimeEmbedding

    def __init__(
        self,
        in_size: int,
        latent_size: int,
        *,
        width_size: int = 64,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        time_embedding: AbstractTimeEmbedding = SinusoidalTime(32),
        features: AbstractFeatures | None = None,
        key: PRNGKey,
    ):
        embedding_key, latent_key, attention_key = jr.split(key, 3)
        self.embedding = PointEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.latent_in = Linear(
            latent_size + time_embedding.out_size, width_size, key=latent_key
        )
        self.attention = Attention(
            width_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            key=attention_key,
        )
        self.time_embedding = time_embedding

    def __call__(
        self, t: Times, points: Points, latents: Float[AnyArray, "k c"]
    ) -> Float[Array, "n width"]:
        context = self.latent_in(with_time(self.time_embedding, t, latents))
        return self.attention(
            jax.nn.silu(self.embedding(points)), context, latents_there(latents)
        )
