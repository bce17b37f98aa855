"""Where the slots of slot attention begin.

A start is made by `(in_size, num_slots, size, *, key)` and called as `(points, mask, key) -> (num_slots, size)`.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import AnyArray, Mask, Points, PRNGKey
from flowkit.nn._geometry import farthest_points, k_means
from flowkit.nn.encoders._embedding import RowEmbedding


class LearnedSlots(eqx.Module):
    """Slots drawn from learned normal laws, one for each; without a key, their means.

    With one law for all slots, as in the paper, slots without noise would be and remain the same.

    **Reference:** Locatello et al., Object-Centric Learning with Slot Attention (2020), arXiv 2006.15055.
    """

    mean: Float[AnyArray, "num_slots size"]
    log_std: Float[AnyArray, "num_slots size"]

    def __init__(self, in_size: int, num_slots: int, size: int, *, key: PRNGKey):
        del in_size
        self.mean = jr.normal(key, (num_slots, size), jnp.result_type(float))
        self.log_std = jnp.full((num_slots, size), jnp.log(0.1), jnp.result_type(float))

    def __call__(
        self, points: Points, mask: Mask | None, key: PRNGKey | None
    ) -> Float[Array, "k c"]:
        del mask
        mean, log_std = (
            jnp.asarray(array, points.dtype) for array in (self.mean, self.log_std)
        )
        return (
            mean
            if key is None
            else mean + jnp.exp(log_std) * jr.normal(key, mean.shape, mean.dtype)
        )


class FarthestPoints(eqx.Module):
    """Embeddings of points of the cloud that are far from each other, see `farthest_points`.

    If there are more slots than different points, some slots are the same, and remain so.
    """

    embedding: RowEmbedding
    num_slots: int = eqx.field(static=True)

    def __init__(self, in_size: int, num_slots: int, size: int, *, key: PRNGKey):
        self.embedding = RowEmbedding(in_size, size, key=key)
        self.num_slots = num_slots

    def __call__(
        self, points: Points, mask: Mask | None, key: PRNGKey | None
    ) -> Float[Array, "k c"]:
        del key
        return self.embedding(
            jnp.asarray(points)[farthest_points(points, self.num_slots, mask)]
        )


class KMeans(eqx.Module):
    """Embeddings of the centres that `k_means` finds from points that are far from each other.

    **Arguments:** those of every start, and `num_steps` of `k_means`: pass
    `functools.partial(KMeans, num_steps=10)` for another number.
    """

    embedding: RowEmbedding
    num_slots: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

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
        centers = jnp.asarray(points)[farthest_points(points, self.num_slots, mask)]
        return self.embedding(
            k_means(points, centers, num_steps=self.num_steps, mask=mask)
        )
