"""What the latents of a field read: its observed values, and its state at the queries."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowkit._checks import check_sizes
from flowkit._types import AnyArray, Mask, Points, PRNGKey
from flowkit.nn._fields.latent_blocks import gelu
from flowkit.nn._fields.observed import joined_masks, Observed
from flowkit.nn._layers.arrays import in_sum_dtype
from flowkit.nn._layers.features import AbstractFeatures, PointEmbedding
from flowkit.nn._layers.layer_norm import LayerNorm
from flowkit.nn._layers.linear import Linear


class FieldTokens(eqx.Module):
    """`GELU(LayerNorm(place(c) + V v + b))`, with `V` and `b` of observed values or states.

    The two biases are the embeddings of the two types. Values have a separate linear
    map: concatenated with hundreds of features of the coordinates, they would have
    little influence at first.
    """

    place: PointEmbedding
    observed: Linear
    state: Linear
    norm: LayerNorm
    max_states: int | None = eqx.field(static=True)

    def __init__(
        self,
        value_size: int,
        coord_size: int,
        width_size: int,
        *,
        features: AbstractFeatures,
        max_states: int | None,
        key: PRNGKey,
    ):
        check_sizes(value_size=value_size, coord_size=coord_size)
        if max_states is not None and max_states < 0:
            raise ValueError(f"`state_tokens` must not be negative, got {max_states}.")
        place_key, observed_key, state_key = jr.split(key, 3)
        self.place = PointEmbedding(
            coord_size, width_size, features=features, key=place_key
        )
        self.observed = Linear(value_size, width_size, key=observed_key)
        self.state = Linear(value_size, width_size, key=state_key)
        self.norm = LayerNorm(width_size)
        self.max_states = None if max_states is None else operator.index(max_states)

    def __call__(
        self, x: Float[Array, "m c"], seen: Observed, mask: Mask | None
    ) -> tuple[Float[Array, "k width"], Bool[AnyArray, " k"] | None]:
        """The tokens, and which of them are there."""
        query_coords = seen.query_coords
        if self.max_states is not None and self.max_states < x.shape[0]:
            chosen = spread_rows(query_coords, self.max_states, mask)
            query_coords = query_coords[chosen]
            x = x[chosen]
            mask = None if mask is None else jnp.asarray(mask)[chosen]

        num_observed = seen.coords.shape[0]
        if num_observed + x.shape[0] == 0:
            raise ValueError(
                "`cond` holds no observation and `state_tokens` is 0, so that there is "
                "nothing to read: pad `coords` and mask that, or allow state tokens."
            )
        place = self.place(jnp.concatenate([seen.coords, query_coords]))
        values = jnp.concatenate([self.observed(seen.values), self.state(x)])
        tokens = gelu(self.norm(place.astype(x.dtype) + values))
        return tokens, joined_masks(seen.mask, num_observed, mask, x.shape[0])


def spread_rows(coords: Points, num: int, mask: Mask | None) -> Int[Array, " num"]:
    """The indices of `num` valid rows spread evenly, whatever the order of the rows.

    The rows with the smallest fractional part of `w . c` are taken. The entries of `w`
    are incommensurable, so on a grid the fractional parts are spread evenly, and so are
    the rows whose parts lie below any bound. The choice is not random: a velocity is
    the same at every call. Equal parts are told apart by the coordinates.
    """
    # Thousands of turns have no fraction left in half precision.
    coords = jax.lax.stop_gradient(in_sum_dtype(coords))
    # Large, so that neighbors on a grid are many turns apart.
    turns = 1000 * np.exp(1 / np.arange(1, coords.shape[1] + 1))
    # A sum, not a matrix product, which may round each row differently.
    total = jnp.sum(coords * jnp.asarray(turns, coords.dtype)[None, :], axis=1)

    fractions = total - jnp.floor(total)
    if mask is not None:
        fractions = jnp.where(jnp.asarray(mask), fractions, 2)
    # `lexsort` sorts by its last key first.
    return jnp.lexsort((*coords.T[::-1], fractions))[:num]
