"""The embedding in front of layers that normalize."""

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._types import Points, PRNGKey
from flowkit.nn._layers.features import AbstractFeatures, PointEmbedding
from flowkit.nn._layers.linear import Linear


class RowEmbedding(eqx.Module):
    """`Linear(SiLU(PointEmbedding(points)))`, each point on its own.

    A linear map alone would not do: its bias starts at zero, and normalization would
    then remove the distance of a point from the origin.
    """

    embedding: PointEmbedding
    out: Linear

    def __init__(
        self,
        in_size: int,
        width_size: int,
        *,
        features: AbstractFeatures | None = None,
        key: PRNGKey,
    ):
        check_sizes(width_size=width_size)
        embedding_key, out_key = jr.split(key)
        self.embedding = PointEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.out = Linear(width_size, width_size, key=out_key)

    def __call__(self, points: Points) -> Float[Array, "n width"]:
        return self.out(jax.nn.silu(self.embedding(points)))
