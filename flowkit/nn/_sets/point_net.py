"""PointNet: one network for every point, then a pooling."""

import operator
from collections.abc import Callable, Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import Mask, Points, PRNGKey
from flowkit.nn._layers.arrays import out_size_of
from flowkit.nn._layers.features import AbstractFeatures, PointEmbedding
from flowkit.nn._layers.layer_norm import LayerNorm
from flowkit.nn._layers.linear import Linear
from flowkit.nn._sets.encoder import AbstractEncoder, checked_points
from flowkit.nn._sets.pooling import max_mean_pool


class PointNet(AbstractEncoder):
    """A global encoder, `(n, in_size) -> (1, out_size)`: `Linear(pool_i(f(x_i)))`.

    The features `f` of a point are layers of `LayerNorm(activation(Linear(.)))`. The
    result does not depend on the order of the points. Batch normalization and learned
    rotations of the original are left out.

    **Arguments:**

    - `in_size`, `out_size`: the dimension of the points, and the size of the latent.
    - `hidden_sizes`: the widths of the layers, at least one.
    - `pooling`: any `(features, mask) -> vector`: `max_pool`, `mean_pool`, or both
      joined (the default, which reconstructs best).
    - `features`: fixed features of the coordinates for the first layer, see
      `PointEmbedding`.
    - `activation`: the activation of the layers.
    - `layer`: `(in_size, out_size, *, key) -> network`, for the layers after the first.
      A gated one is `lambda i, o, *, key: SwiGLU(i, 3 * o // 2, o, key=key)`.
    - `key`: the key of the initial weights.

    **Reference:** Qi, Su, Mo, Guibas, PointNet, 2017 (arXiv 1612.00593).
    """

    embedding: PointEmbedding
    layers: tuple[Callable[[Array], Array], ...]
    norms: tuple[LayerNorm, ...]
    out: Linear
    pooling: Callable[..., Array]
    activation: Callable[[Array], Array]
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        hidden_sizes: Sequence[int] = (64, 128, 256),
        pooling: Callable[..., Array] = max_mean_pool,
        features: AbstractFeatures | None = None,
        activation: Callable[[Array], Array] = jax.nn.silu,
        layer: Callable[..., Callable[[Array], Array]] = Linear,
        key: PRNGKey,
    ):
        if not hidden_sizes:
            raise ValueError(
                "`hidden_sizes` is empty: PointNet needs at least one layer before its "
                "pooling."
            )
        embedding_key, out_key, *keys = jr.split(key, len(hidden_sizes) + 1)
        self.embedding = PointEmbedding(
            in_size, hidden_sizes[0], features=features, key=embedding_key
        )
        self.layers = tuple(
            layer(*sizes, key=layer_key)
            for sizes, layer_key in zip(pairwise(hidden_sizes), keys, strict=True)
        )
        self.norms = tuple(LayerNorm(size) for size in hidden_sizes)

        pooled_size = out_size_of(pooling, (1, hidden_sizes[-1]))
        self.out = Linear(pooled_size, out_size, key=out_key)
        self.pooling = pooling
        self.activation = activation
        self.in_size = in_size
        self.out_size = out_size

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "1 c"]:
        """The latent of one cloud.

        A cloud whose points are all masked gives a finite constant.
        """
        del key
        points = checked_points(points, mask, self.in_size)

        # The embedding is the first layer, so there is one norm more than layers.
        first_norm, *norms = self.norms

        h = first_norm(self.activation(self.embedding(points)))
        for layer, norm in zip(self.layers, norms, strict=True):
            h = norm(self.activation(layer(h)))
        return self.out(self.pooling(h, mask))[None]
