"""Conditioners by which each point chooses among the latents of a cloud."""

import jax
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._types import AnyArray, Points, PRNGKey, Times
from flowkit.nn._crn.base import latents_there, with_time
from flowkit.nn._crn.conditioners import AbstractConditioner
from flowkit.nn._layers.attention import Attention
from flowkit.nn._layers.features import AbstractFeatures, PointEmbedding
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.time_embeddings import AbstractTimeEmbedding, SinusoidalTime
from flowkit.nn._sets.masks import masked_softmax


class Select(AbstractConditioner):
    r"""Soft selection: for each point a mean of the latents, `(k, c)` to `(n, width)`.

    The weights say how well a latent matches the point:

    $$\sum_j \mathrm{softmax}_j\big( q_i \cdot h_j / \sqrt{w} \big)\, h_j, \qquad
    q_i = \mathrm{SiLU}(W_q x_i + b_q),\
    h_j = \mathrm{SiLU}(W_h [z_j, \mathrm{embedding}(t)] + b_h)$$

    The result does not depend on the order of the latents, and their number may vary.
    Rows of zeros stand for no latent and are left out.

    **Arguments:**

    - `in_size`, `latent_size`: the sizes of points and latents, as in the network.
    - `width_size`: $w$, the size of the result.
    - `time_embedding`: lets the choice change with time; `SinusoidalTime(32)` by
      default.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `key`: the key of the initial weights.
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
        time_embedding: AbstractTimeEmbedding | None = None,
        features: AbstractFeatures | None = None,
        key: PRNGKey,
    ):
        check_sizes(width_size=width_size)
        if time_embedding is None:
            time_embedding = SinusoidalTime(32)
        embedding_key, latent_key = jr.split(key)
        num_inputs = latent_size + time_embedding.out_size

        self.embedding = PointEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.latent_in = Linear(num_inputs, width_size, key=latent_key)
        self.time_embedding = time_embedding

    def __call__(
        self, t: Times, points: Points, latents: Float[AnyArray, "k c"]
    ) -> Float[Array, "n width"]:
        queries = jax.nn.silu(self.embedding(points))
        timed = with_time(self.time_embedding, t, latents)
        hidden = jax.nn.silu(self.latent_in(timed))

        scores = queries @ hidden.T / hidden.shape[1] ** 0.5
        return masked_softmax(scores, latents_there(latents)) @ hidden


class CrossAttend(AbstractConditioner):
    """What each point gathers from the latents by attention, `(k, c)` to `(n, width)`.

    The queries are `SiLU(Linear(x_i))`, the context is `Linear([z_j, embedding(t)])`.
    The result does not depend on the order of the latents, and their number may vary.
    Rows of zeros are left out.

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
        time_embedding: AbstractTimeEmbedding | None = None,
        features: AbstractFeatures | None = None,
        key: PRNGKey,
    ):
        check_sizes(width_size=width_size)
        if time_embedding is None:
            time_embedding = SinusoidalTime(32)
        embedding_key, latent_key, attention_key = jr.split(key, 3)
        num_inputs = latent_size + time_embedding.out_size

        self.embedding = PointEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.latent_in = Linear(num_inputs, width_size, key=latent_key)
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
        queries = jax.nn.silu(self.embedding(points))
        context = self.latent_in(with_time(self.time_embedding, t, latents))
        return self.attention(queries, context, latents_there(latents))
