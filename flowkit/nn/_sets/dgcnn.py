"""Convolutions over the edges of a graph of nearest neighbors."""

import operator
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import as_size, check_sizes
from flowkit._masks import zero_masked
from flowkit._types import Mask, Points, PRNGKey
from flowkit.nn._layers.arrays import out_size_of
from flowkit.nn._layers.features import AbstractFeatures
from flowkit.nn._layers.layer_norm import LayerNorm
from flowkit.nn._layers.linear import Linear
from flowkit.nn._sets.embedding import RowEmbedding
from flowkit.nn._sets.encoder import AbstractEncoder, checked_points
from flowkit.nn._sets.geometry import nearest_neighbors
from flowkit.nn._sets.pooling import max_pool


class DGCNN(AbstractEncoder):
    r"""A local encoder, `(n, in_size) -> (n, out_size)`: points read their neighbors.

    In each of `depth` layers the neighbors are found again, among the features $h$ of
    that layer:

    $$h_i \leftarrow \mathrm{LN}\big(h_i + \mathrm{pool}_j\,
    f(\mathrm{LN}[h_i,\ h_j - h_i,\ |h_j - h_i|^2])\big)$$

    where $f$ is two linear layers with a SiLU between them. A point without neighbors
    adds nothing.

    **Arguments:**

    - `in_size`, `out_size`: the dimension of the points, and the size of a latent.
    - `num_neighbors`: the number of neighbors; in a cloud of fewer other points, all of
      them.
    - `width_size`, `depth`: the width and number of the layers.
    - `pooling`: any `(features, mask) -> vector` that keeps the size: `max_pool`,
      `mean_pool`, or `AttentionPool(width_size, key=key)`, of which each layer has its
      own copy.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `key`: the key of the initial weights.

    **Reference:** Wang et al., Dynamic Graph CNN for Learning on Point Clouds, 2018
    (arXiv 1801.07829); the distance as an input is that of Satorras, Hoogeboom, Welling,
    2021 (arXiv 2102.09844).
    """

    embedding: RowEmbedding
    layers: "tuple[_EdgeConvolution, ...]"
    norms: tuple[LayerNorm, ...]
    out: Linear
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        num_neighbors: int = 20,
        width_size: int = 64,
        depth: int = 4,
        pooling: Callable[..., Array] = max_pool,
        features: AbstractFeatures | None = None,
        key: PRNGKey,
    ):
        check_sizes(width_size=width_size)
        depth = as_size("depth", depth, least=0)
        if num_neighbors < 1:
            raise ValueError(
                f"`num_neighbors` must be at least 1, got {num_neighbors}."
            )
        pooled = out_size_of(pooling, (1, width_size))
        if pooled != width_size:
            raise ValueError(
                f"`pooling` must keep the size of {width_size}, but it returns {pooled}."
            )
        embedding_key, out_key, *keys = jr.split(key, depth + 2)

        self.embedding = RowEmbedding(
            in_size, width_size, features=features, key=embedding_key
        )
        self.layers = tuple(
            _EdgeConvolution(width_size, num_neighbors, pooling, key=layer_key)
            for layer_key in keys
        )
        self.norms = tuple(LayerNorm(width_size) for _ in keys)
        self.out = Linear(width_size, out_size, key=out_key)
        self.in_size = in_size
        self.out_size = out_size

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "n c"]:
        """The latent of every point."""
        del key
        h = self.embedding(checked_points(points, mask, self.in_size))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = norm(h + layer(h, mask))
        return zero_masked(self.out(h), mask)


class _EdgeConvolution(eqx.Module):
    """The pooled features of the edges from each row to its nearest rows."""

    norm: LayerNorm
    hidden: Linear
    out: Linear
    pooling: Callable[..., Array]
    num_neighbors: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        width_size: int,
        num_neighbors: int,
        pooling: Callable[..., Array],
        *,
        key: PRNGKey,
    ):
        hidden_key, out_key = jr.split(key)
        edge_size = 2 * width_size + 1
        self.norm = LayerNorm(edge_size)
        self.hidden = Linear(edge_size, 2 * width_size, key=hidden_key)
        self.out = Linear(2 * width_size, width_size, key=out_key)
        self.pooling = pooling
        self.num_neighbors = num_neighbors

    def __call__(
        self, h: Float[Array, "n width"], mask: Mask | None
    ) -> Float[Array, "n width"]:
        indices, valid = nearest_neighbors(h, self.num_neighbors, mask)
        there = h[indices]
        here = jnp.broadcast_to(h[:, None], there.shape)
        difference = there - here
        distance = jnp.sum(difference**2, axis=-1, keepdims=True)

        # Edges beyond the number of valid points mean nothing; the pooling masks them.
        edges = jnp.concatenate([here, difference, distance], axis=-1)
        edges = self.out(jax.nn.silu(self.hidden(self.norm(edges))))
        return jax.vmap(self.pooling)(edges, valid)
