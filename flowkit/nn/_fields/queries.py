"""Queries to the latents of a field, with what is known at and near each point."""

import operator

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import PRNGKey
from flowkit.nn._fields.latent_blocks import gelu
from flowkit.nn._fields.observed import Observed
from flowkit.nn._layers.features import AbstractFeatures, PointEmbedding
from flowkit.nn._layers.layer_norm import LayerNorm
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.modulation import modulate
from flowkit.nn._sets.geometry import nearest_points


# Scales the offsets between neighbors among a few hundred points in [0, 1]^2 to near 1.
OFFSET_SCALE = 10.0


class FieldQueries(eqx.Module):
    """`GELU(AdaLN(place(q) + V x + W nearby))`, of the sum of what a query knows.

    `nearby` holds the offset and the value of each of the nearest observations, and
    whether it is there.
    """

    place: PointEmbedding
    state: Linear
    nearby: Linear | None
    norm: LayerNorm
    num_neighbors: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        value_size: int,
        coord_size: int,
        width_size: int,
        *,
        features: AbstractFeatures,
        num_neighbors: int,
        key: PRNGKey,
    ):
        if num_neighbors < 0:
            raise ValueError(
                f"`num_neighbors` must not be negative, got {num_neighbors}."
            )
        place_key, state_key, nearby_key = jr.split(key, 3)
        self.place = PointEmbedding(
            coord_size, width_size, features=features, key=place_key
        )
        self.state = Linear(value_size, width_size, key=state_key)
        self.nearby = None
        if num_neighbors:
            num_numbers = num_neighbors * (coord_size + value_size + 1)
            self.nearby = Linear(num_numbers, width_size, key=nearby_key)
        self.norm = LayerNorm(width_size)
        self.num_neighbors = num_neighbors

    def __call__(
        self,
        x: Float[Array, "m c"],
        seen: Observed,
        modulation: Float[Array, "2 1 width"],
    ) -> Float[Array, "m width"]:
        """The queries; `modulation` holds the scale and the shift of their norm."""
        h = self.place(seen.query_coords).astype(x.dtype) + self.state(x)
        if self.nearby is not None:
            h = h + self.nearby(self._nearest(seen))
        scale, shift = modulation
        return gelu(modulate(self.norm(h), scale, shift))

    def _nearest(self, seen: Observed) -> Float[Array, "m numbers"]:
        # There are always enough rows to choose from.
        num_missing = max(self.num_neighbors - seen.coords.shape[0], 0)
        pad = lambda rows: jnp.pad(
            rows, [(0, num_missing)] + [(0, 0)] * (rows.ndim - 1)
        )
        valid = seen.mask
        if valid is None:
            valid = jnp.ones(seen.coords.shape[0], bool)
        coords = pad(seen.coords)
        values = pad(seen.values)

        queries = seen.query_coords
        indices, there = nearest_points(
            queries, coords, self.num_neighbors, pad(jnp.asarray(valid))
        )
        offsets = OFFSET_SCALE * (coords[indices] - queries[:, None])
        numbers = [offsets.astype(values.dtype), values[indices]]
        rows = jnp.concatenate([*numbers, jnp.ones_like(numbers[1][..., :1])], axis=-1)
        return jnp.where(there[..., None], rows, 0).reshape(queries.shape[0], -1)
