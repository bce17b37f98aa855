"""Where the slots of slot attention begin.

A start is made by `(in_size, num_slots, size, *, key)` and called as
`(points, mask, key) -> (num_slots, size)`.
"""

import operator

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import AnyArray, Mask, Points, PRNGKey
from flowkit.nn._sets.embedding import RowEmbedding
from flowkit.nn._sets.geometry import farthest_points, k_means


class LearnedSlots(eqx.Module):
    """Slots drawn from learned normal distributions; without a key, their means.

    Each slot has its own distribution. If all slots shared one, as in the paper, slots
    without noise would start equal and stay equal.

    **Reference:** Locatello et al., Object-Centric Learning with Slot Attention, 2020
    (arXiv 2006.15055).
    """

    mean: Float[AnyArray, "num_slots size"]
    log_std: Float[AnyArray, "num_slots size"]

    def __init__(self, in_size: int, num_slots: int, size: int, *, key: PRNGKey):
        del in_size
        dtype = jnp.result_type(float)
        # The logarithm of the standard deviation, which stays positive in training.
        self.mean = jr.normal(key, (num_slots, size), dtype)
        self.log_std = jnp.full((num_slots, size), jnp.log(0.1), dtype)

    def __call__(
        self, points: Points, mask: Mask | None, key: PRNGKey | None
    ) -> Float[Array, "k c"]:
        del mask
        dtype = jnp.asarray(points).dtype
        mean = jnp.asarray(self.mean, dtype)
        if key is None:
            return mean

        std = jnp.exp(jnp.asarray(self.log_std, dtype))
        return mean + std * jr.normal(key, mean.shape, dtype)


class FarthestPoints(eqx.Module):
    """Embeddings of points that are far from each other, see `farthest_points`.

    If there are more slots than distinct points, some slots are equal, and stay so.
    """

    embedding: RowEmbedding
    num_slots: int = eqx.field(static=True, converter=operator.index)

    def __init__(self, in_size: int, num_slots: int, size: int, *, key: PRNGKey):
        self.embedding = RowEmbedding(in_size, size, key=key)
        self.num_slots = num_slots

    def __call__(
        self, points: Points, mask: Mask | None, key: PRNGKey | None
    ) -> Float[Array, "k c"]:
        del key
        chosen = farthest_points(points, self.num_slots, mask)
        return self.embedding(jnp.asarray(points)[chosen])


class KMeans(eqx.Module):
    """Embeddings of the centers found by `k_means`.

    It begins at points that are far from each other.

    **Arguments:** those of every start, and `num_steps` of `k_means`: pass
    `functools.partial(KMeans, num_steps=10)` for another number.
    """

    embedding: RowEmbedding
    num_slots: int = eqx.field(static=True, converter=operator.index)
    num_steps: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        num_slots: int,
        size: int,
        *,
        num_steps: int = 5,
        key: PRNGKey,
    ):
        self.embedding = RowEmbedding(in_size, size, key=key)
        self.num_slots = num_slots
        self.num_steps = num_steps

    def __call__(
        self, points: Points, mask: Mask | None, key: PRNGKey | None
    ) -> Float[Array, "k c"]:
        del key
        chosen = farthest_points(points, self.num_slots, mask)
        centers = k_means(
            points, jnp.asarray(points)[chosen], num_steps=self.num_steps, mask=mask
        )
        return self.embedding(centers)
