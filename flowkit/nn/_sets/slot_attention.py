"""Slots that compete for the points of a cloud."""

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
from flowkit.nn._layers.arrays import cast, in_sum_dtype
from flowkit.nn._layers.features import AbstractFeatures
from flowkit.nn._layers.feed_forward import FeedForward
from flowkit.nn._layers.layer_norm import LayerNorm
from flowkit.nn._layers.linear import Linear
from flowkit.nn._sets.embedding import RowEmbedding
from flowkit.nn._sets.encoder import AbstractEncoder, checked_points
from flowkit.nn._sets.slot_starts import FarthestPoints


class SlotAttention(AbstractEncoder):
    r"""A structured encoder, `(n, in_size) -> (num_slots, out_size)`.

    The slots share the points among them. Keys $k_i$ and values $v_i$ are linear maps of
    the normalized embedding of each point. In every iteration, with the same weights,

    $$a_{is} = \mathrm{softmax}_s(k_i \cdot q_s / \sqrt{c}), \quad
    u_s = \sum_i a_{is} v_i \big/ \sum_i a_{is}, \quad
    s \leftarrow \mathrm{GRU}(u_s, s), \quad
    s \leftarrow s + \mathrm{MLP}(\mathrm{LN}(s)).$$

    The softmax is over the slots: each point has one unit of attention to give.

    **Arguments:**

    - `in_size`, `out_size`: the dimension of the points, and the size of a latent.
    - `num_slots`: the number of slots; if there are fewer valid points, some slots are
      equal (see the starts).
    - `width_size`, `hidden_size`: the size of the slots, and of the hidden layer of the
      MLP.
    - `num_iterations`: the number of iterations.
    - `start`: `FarthestPoints`, `KMeans`, `LearnedSlots`, or another
      `(in_size, num_slots, size, *, key) -> start`.
    - `features`: fixed features of the coordinates for the embedding, see
      `PointEmbedding`.
    - `key`: the key of the initial weights.

    **Reference:** Locatello et al., Object-Centric Learning with Slot Attention, 2020
    (arXiv 2006.15055).
    """

    embedding: RowEmbedding
    norm: LayerNorm
    keys: Linear
    values: Linear
    start: Callable[..., Array]
    slot_norm: LayerNorm
    query: Linear
    cell: eqx.nn.GRUCell
    feed_forward_norm: LayerNorm
    feed_forward: FeedForward
    out: Linear
    num_iterations: int = eqx.field(static=True, converter=operator.index)
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        num_slots: int = 8,
        width_size: int = 64,
        hidden_size: int = 128,
        num_iterations: int = 3,
        start: Callable[..., Callable[..., Array]] = FarthestPoints,
        features: AbstractFeatures | None = None,
        key: PRNGKey,
    ):
        check_sizes(width_size=width_size, hidden_size=hidden_size)
        num_slots = as_size("num_slots", num_slots)
        width = operator.index(width_size)
        ekey, kkey, vkey, skey, qkey, ckey, fkey, okey = jr.split(key, 8)
        self.embedding = RowEmbedding(in_size, width, features=features, key=ekey)
        self.norm = LayerNorm(width)
        self.keys = Linear(width, width, use_bias=False, key=kkey)
        self.values = Linear(width, width, use_bias=False, key=vkey)

        self.start = start(in_size, num_slots, width, key=skey)
        self.slot_norm = LayerNorm(width)
        self.query = Linear(width, width, use_bias=False, key=qkey)
        self.cell = eqx.nn.GRUCell(width, width, key=ckey)
        self.feed_forward_norm = LayerNorm(width)
        self.feed_forward = FeedForward(
            width, width, hidden_sizes=(hidden_size,), key=fkey
        )

        self.out = Linear(width, out_size, key=okey)
        self.num_iterations = num_iterations
        self.in_size = in_size
        self.out_size = out_size

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "k c"]:
        """The latents of one cloud. The key is for a random start."""
        latents, _ = self.with_attention(points, mask, key)
        return latents

    def with_attention(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> tuple[Float[Array, "k c"], Float[Array, "n k"]]:
        """The latents, and what each point gives to each slot in the last iteration.

        The rows of valid points sum to 1, those of others are zero. The largest entry of
        a row says which part a point belongs to.
        """
        points = checked_points(points, mask, self.in_size)
        rows = self.norm(self.embedding(points))
        keys = self.keys(rows)
        values = self.values(rows)

        slots = self.start(points, mask, key)
        attention = jnp.zeros((points.shape[0], slots.shape[0]), slots.dtype)
        for _ in range(self.num_iterations):
            slots, attention = self._iterate(slots, keys, values, mask)
        return self.out(slots), attention

    def _iterate(
        self, slots: Float[Array, "k c"], keys: Array, values: Array, mask: Mask | None
    ) -> tuple[Float[Array, "k c"], Float[Array, "n k"]]:
        queries = self.query(self.slot_norm(slots))
        scores = keys @ queries.T / keys.shape[1] ** 0.5
        attention = zero_masked(jax.nn.softmax(scores, axis=1), mask)

        # A slot to which no point gives anything reads the mean of all values. Sums are
        # in float32: 1e-8 does not exist in half precision.
        weights = zero_masked(in_sum_dtype(attention) + 1e-8, mask)
        totals = jnp.sum(weights, axis=0, keepdims=True)
        weights = (weights / jnp.maximum(totals, 1e-12)).astype(values.dtype)
        updates = weights.T @ values

        slots = jax.vmap(cast(self.cell, slots.dtype))(updates, slots)
        slots = slots + self.feed_forward(self.feed_forward_norm(slots))
        return slots, attention
