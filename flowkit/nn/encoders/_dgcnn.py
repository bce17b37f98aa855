"""Convolutions over the edges of a graph of nearest neighbours."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowkit._types import Mask, Points, PRNGKey
from flowkit.nn._coordinates import AbstractFeatures
from flowkit.nn._geometry import nearest_neighbors
from flowkit.nn._layer_norm import LayerNorm
from flowkit.nn._linear import Linear
from flowkit.nn._pooling import max_pool
from flowkit.nn._shapes import out_size_of, zero_masked
from flowkit.nn.encoders._embedding import RowEmbedding
from flowkit.nn.encoders._encoder import AbstractEncoder, checked_points


class DGCNN(AbstractEncoder):
    r"""A local encoder, `(n, in_size) -> (n, out_size)`, in which each point reads its nearest neighbours.

    In each of `depth` layers the neighbours are found anew, among the features $h$ of that layer:

    $$h_i \leftarrow \mathrm{LN}\big(h_i + \mathrm{pool}_j\, f(\mathrm{LN}[h_i,\ h_j - h_i,\ |h_j - h_i|^2])\big)$$

    with two linear layers $f$ with a SiLU between them. A point without neighbours adds nothing.

    **Arguments:**

    - `in_size`, `out_size`: the dimension of the points, the size of a latent.
    - `num_neighbors`: how many; in a cloud of fewer other points, all of them.
    - `width_size`, `depth`: the width and number of the layers.
    - `pooling`: any `(features, mask) -> vector` that keeps the size: `max_pool`, `mean_pool`, or
        `AttentionPool(width_size, key=key)`, of which each layer has its own copy.
    - `features`: fixed features of the coordinates, see `PointEmbedding`.
    - `key`: for the initial weights.

    **Reference:** Wang et al., Dynamic Graph CNN for Learning on Point Clouds (2018), arXiv 1801.07829; the distance
    as an input is that of Satorras, Hoogeboom, Welling (2021), arXiv 2102.09844.
    """

    embedding: RowEmbedding
    layers: "tuple[_EdgeConvolution, ...]"
    norms: tuple[LayerNorm, ...]
    out: Linear
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

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
    num_neighbors: int = eqx.field(static=True)

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
        edges = self.out(jax.nn.silu(self._hidden(h, indices)))
        return jax.vmap(self.pooling)(edges, valid)

    def _hidden(
        self, h: Float[Array, "n width"], indices: Int[Array, "n k"]
    ) -> Float[Array, "n k hidden"]:
        """`hidden(norm(e))` of the edges `e = [h_i, h_j - h_i, d]` with `d = |h_j - h_i|^2`.

        Products with a row are made once for it, not once for each of its edges, and the moments that normalize an edge
        follow from those of rows: the sum of `e` is `sum(h_j) + d`, that of its squares `|h_i|^2 + d + d^2`.
        """
        width, size = h.shape[1], 2 * h.shape[1] + 1
        scale, shift = (
            leaf.astype(h.dtype) for leaf in (self.norm.scale, self.norm.shift)
        )
        weight = self.hidden.weight.astype(h.dtype)
        scaled = scale[:, None] * weight
        to_here, to_there = scaled[:width] - scaled[width:-1], scaled[width:-1]
        gathered = jnp.concatenate([h, h @ to_there], axis=1)[indices]
        there, products = gathered[..., :width], gathered[..., width:]
        distance = jnp.sum((there - h[:, None]) ** 2, axis=-1, keepdims=True)
        mean = (jnp.sum(there, axis=-1, keepdims=True) + distance) / size
        squares = jnp.sum(h * h, axis=-1)[:, None, None] + distance + distance**2
        inverse = jax.lax.rsqrt(jnp.maximum(squares / size - mean**2, 0) + 1e-6)
        products = (
            products
            + (h @ to_here)[:, None]
            + distance * scaled[-1]
            - mean * jnp.sum(scaled, axis=0)
        )
        return inverse * products + self.hidden(shift)
