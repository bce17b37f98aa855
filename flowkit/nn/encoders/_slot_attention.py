"""Slots that compete for the points of a cloud."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import Mask, Points, PRNGKey
from flowkit.nn._coordinates import AbstractFeatures
from flowkit.nn._feed_forward import FeedForward
from flowkit.nn._layer_norm import LayerNorm
from flowkit.nn._linear import Linear
from flowkit.nn._shapes import cast, zero_masked
from flowkit.nn.encoders._embedding import RowEmbedding
from flowkit.nn.encoders._encoder import AbstractEncoder, checked_points
from flowkit.nn.encoders._slot_starts import FarthestPoints


class SlotAttention(AbstractEncoder):
    r"""A structured encoder, `(n, in_size) -> (num_slots, out_size)`, whose slots share the points among them.

    Keys $k_i$ and values $v_i$ are linear maps of the normalized embedding of each point. In every iteration, with
    the same weights,

    $$a_{is} = \mathrm{softmax}_s(k_i \cdot q_s / \sqrt{c}), \quad u_s = \sum_i a_{is} v_i \big/ \sum_i a_{is}, \quad
    s \leftarrow \mathrm{GRU}(u_s, s), \quad s \leftarrow s + \mathrm{MLP}(\mathrm{LN}(s)).$$

    The softmax is over the slots: each point has one unit of attention to give.

    **Arguments:**

    - `in_size`, `out_size`: the dimension of the points, the size of a latent.
    - `num_slots`: how many; if there are fewer valid points, some slots are the same (see the starts).
    - `width_size`, `hidden_size`: the size of the slots, and of the hidden layer of the MLP.
    - `num_iterations`: how many.
    - `start`: `FarthestPoints`, `KMeans`, `LearnedSlots`, or another `(in_size, num_slots, size, *, key) -> start`.
    - `features`: fixed features of the coordinates for the embedding, see `PointEmbedding`.
    - `key`: for the initial weights.

    **Reference:** Locatello et al., Object-Centric Learning with Slot Attention (2020), arXiv 2006.15055.
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
    num_iterations: int = eqx.field(static=True)
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

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
        ekey, kkey, vkey, skey, qkey, ckey, fkey, okey = jr.split(key, 8)
        self.embedding = RowEmbedding(in_size, width_size, features=features, key=ekey)
        self.norm = LayerNorm(width_size)
        self.keys = Linear(width_size, width_size, use_bias=False, key=kkey)
        self.values = Linear(width_size, width_size, use_bias=False, key=vkey)
        self.start = start(in_size, num_slots, width_size, key=skey)
        self.slot_norm = LayerNorm(width_size)
        self.query = Linear(width_size, width_size, use_bias=False, key=qkey)
        self.cell = eqx.nn.GRUCell(width_size, width_size, key=ckey)
        self.feed_forward_norm = LayerNorm(width_size)
        self.feed_forward = FeedForward(
            width_size, width_size, hidden_sizes=(hidden_size,), key=fkey
        )
        self.out = Linear(width_size, out_size, key=okey)
        self.num_iterations = num_iterations
        self.in_size = in_size
        self.out_size = out_size

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "k c"]:
        """The latents of one cloud. A key is for a random start."""
        return self.with_attention(points, mask, key)[0]

    def with_attention(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> tuple[Float[Array, "k c"], Float[Array, "n k"]]:
        """The latents, and the attention of the last iteration: what each point gives to each slot.

        The rows of valid points sum to 1, others are zero. The largest entry of a row tells the part a point is in.
        """
        points = checked_points(points, mask, self.in_size)
        rows = self.norm(self.embedding(points))
        keys, values = self.keys(rows), self.values(rows)
        slots = self.start(points, mask, key)
        attention = jnp.zeros((points.shape[0], slots.shape[0]), slots.dtype)
        for _ in range(self.num_iterations):
            slots, attention = self._iterate(slots, keys, values, mask)
        return self.out(slots), attention

    def _iterate(
        self, slots: Float[Array, "k c"], keys: Array, values: Array, mask: Mask | None
    ) -> tuple[Float[Array, "k c"], Float[Array, "n k"]]:
        queries = self.query(self.slot_norm(slots))
        attention = zero_masked(
            jax.nn.softmax(keys @ queries.T / keys.shape[1] ** 0.5, axis=1), mask
        )
        # A slot to which no point gives anything reads the mean.
        weights = zero_masked(attention + 1e-8, mask)
        weights = weights / jnp.maximum(jnp.sum(weights, axis=0), 1e-12)
        slots = jax.vmap(cast(self.cell, slots.dtype))(weights.T @ values, slots)
        return slots + self.feed_forward(self.feed_forward_norm(slots)), attention
