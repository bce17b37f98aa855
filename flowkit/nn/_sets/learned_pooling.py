"""Poolings with parameters: by attention, or by a recurrent network."""

import operator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import as_size, check_sizes
from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Mask, PRNGKey
from flowkit.nn._layers.arrays import cast
from flowkit.nn._layers.feed_forward import FeedForward
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.transformer import AttentionBlock, learned_rows
from flowkit.nn._sets.masks import masked_softmax


class AttentionPool(eqx.Module):
    r"""A mean of the valid rows with learned weights.

    $$\sum_i \mathrm{softmax}_i\big(q \cdot W x_i / \sqrt{A}\big)\, x_i$$

    **Arguments:**

    - `size`: the number of features.
    - `key_size`: $A$.
    - `key`: the key of the initial weights.

    **Reference:** Ilse, Tomczak, Welling, Attention-based Deep Multiple Instance
    Learning, 2018 (arXiv 1802.04712).
    """

    query: Float[AnyArray, " key_size"]
    keys: Linear

    def __init__(self, size: int, *, key_size: int = 64, key: PRNGKey):
        check_sizes(size=size)
        key_size = as_size("key_size", key_size)
        query_key, keys_key = jr.split(key)
        self.query = learned_rows(1, key_size, key=query_key)[0]
        self.keys = Linear(size, key_size, use_bias=False, key=keys_key)

    def __call__(
        self, features: Float[AnyArray, "n c"], mask: Mask | None = None
    ) -> Float[Array, " c"]:
        features = zero_masked(jnp.asarray(features), mask)
        query = jnp.asarray(self.query, features.dtype)
        scores = self.keys(features) @ query / query.shape[0] ** 0.5
        return masked_softmax(scores, mask) @ features


class Set2Set(eqx.Module):
    """An LSTM that reads the set by attention in every step.

    In each step `h = LSTM([h, r])` and `r = sum_i softmax_i(h . x_i) x_i`, over the
    valid rows. The result is `[h, r]` after the last step, which is twice as wide as the
    features.

    **Arguments:**

    - `size`: the number of features.
    - `num_steps`: the number of steps.
    - `key`: the key of the initial weights.

    **Reference:** Vinyals, Bengio, Kudlur, Order Matters: Sequence to Sequence for Sets,
    2015 (arXiv 1511.06391).
    """

    cell: eqx.nn.LSTMCell
    num_steps: int = eqx.field(static=True, converter=operator.index)

    def __init__(self, size: int, *, num_steps: int = 3, key: PRNGKey):
        size = as_size("size", size)
        self.cell = eqx.nn.LSTMCell(2 * size, size, key=key)
        self.num_steps = as_size("num_steps", num_steps)

    def __call__(
        self, features: Float[AnyArray, "n c"], mask: Mask | None = None
    ) -> Float[Array, " c2"]:
        features = zero_masked(jnp.asarray(features), mask)
        cell = cast(self.cell, features.dtype)

        query = memory = read = jnp.zeros(features.shape[1], features.dtype)
        for _ in range(self.num_steps):
            query, memory = cell(jnp.concatenate([query, read]), (query, memory))
            read = masked_softmax(features @ query, mask) @ features
        return jnp.concatenate([query, read])


class PMA(eqx.Module):
    """Pooling by multi-head attention: what a few learned rows gather from the set.

    Maps `(n, size)` to `(num_seeds, size)`: `AttentionBlock(cross=True)` from the seeds
    to a feed-forward network of the features, then `depth` blocks in which the seeds
    attend to each other.

    **Arguments:**

    - `size`: the number of features.
    - `num_seeds`: the number of learned rows.
    - `depth`: the number of blocks after the first.
    - `key`: the key of the initial weights.
    - any option of `AttentionBlock` except `dropout` and `stochastic_depth`.

    **Reference:** Lee et al., Set Transformer, 2019 (arXiv 1810.00825).
    """

    seeds: Float[AnyArray, "num_seeds size"]
    feed_forward: FeedForward
    gather: AttentionBlock
    blocks: tuple[AttentionBlock, ...]

    def __init__(
        self,
        size: int,
        *,
        num_seeds: int = 1,
        depth: int = 1,
        key: PRNGKey,
        **block_options: Any,
    ):
        dropped = {"dropout", "stochastic_depth"} & set(block_options)
        if dropped:
            raise ValueError(
                f"`{min(dropped)}` is not for a pooling, which has no key and drops "
                "nothing."
            )
        size = as_size("size", size)
        num_seeds = as_size("num_seeds", num_seeds)
        depth = as_size("depth", depth, least=0)
        seeds_key, feed_forward_key, gather_key, *keys = jr.split(key, depth + 3)

        self.seeds = learned_rows(num_seeds, size, key=seeds_key)
        self.feed_forward = FeedForward(
            size, size, hidden_sizes=(size,), key=feed_forward_key
        )
        self.gather = AttentionBlock(size, cross=True, **block_options, key=gather_key)
        self.blocks = tuple(
            AttentionBlock(size, **block_options, key=block_key) for block_key in keys
        )

    def __call__(
        self, features: Float[AnyArray, "n c"], mask: Mask | None = None
    ) -> Float[Array, "num_seeds c"]:
        features = zero_masked(jnp.asarray(features), mask)
        seeds = jnp.asarray(self.seeds, features.dtype)
        h = self.gather(seeds, self.feed_forward(features), mask)
        for block in self.blocks:
            h = block(h)
        return h
