"""The velocity of a field by a plain Perceiver IO, as it was first trained."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Cond, Mask, PRNGKey, Times
from flowkit.nn._fields.observed import checked_observed, checked_state, joined_masks
from flowkit.nn._fields.perceiver_io import PerceiverIO
from flowkit.nn._layers.time_embeddings import (
    AbstractTimeEmbedding,
    embedded_time,
    LearnedTime,
    SinusoidalTime,
)


class PerceiverField(eqx.Module):
    r"""The velocity of a field at any coordinates, by `PerceiverIO` alone.

    $$v(t, x) = \mathrm{PerceiverIO}\big(\{(c_i, y_i + \tau)\} \cup \{(q_j, x_j + \tau)\},
    \; \{q_j\}\big), \qquad \tau = \mathrm{MLP}(\mathrm{embedding}(t))_{1 \dots c}$$

    with observed values $y_i$ at $c_i$ and the state $x_j$ at $q_j$. The time enters as
    one number added to each channel, observed values and states are not distinguished, and
    the state influences its own velocity through the latents alone. It reproduces
    published results; `PixelField` is the network for new ones.

    As a velocity network it is called `(t, x, cond)` with `x` of shape `(m, value_size)`
    and `cond` an `Observed`. It does not depend on the order of the observations, and is
    equivariant in the queries. Every queried point is a token, so the velocity at one
    depends on which others are queried. It does not start at zero.

    **Arguments:**

    - `value_size`, `coord_size`: the number of channels, and the dimension of the
      coordinates.
    - `time_embedding`: how the time enters the MLP; `SinusoidalTime(width_size)` by
      default, and `TwoTimes(...)` for flow maps.
    - `width_size` (512) and any other option of `PerceiverIO`, whose defaults are those
      of the original.
    - `key`: the key of the initial weights.

    Without a valid observation the latents see the state alone.

    **Raises:** `ValueError` for an `x` or a `cond` that does not fit.

    **Reference:** Jaegle et al., Perceiver IO, 2021 (arXiv 2107.14795).
    """

    perceiver: PerceiverIO
    time: LearnedTime

    def __init__(
        self,
        value_size: int = 3,
        coord_size: int = 2,
        *,
        width_size: int = 512,
        time_embedding: AbstractTimeEmbedding | None = None,
        key: PRNGKey,
        **options: Any,
    ):
        if width_size < value_size:
            raise ValueError(
                f"`width_size` must be at least the {value_size} channels, got "
                f"{width_size}."
            )
        if time_embedding is None:
            time_embedding = SinusoidalTime(width_size)
        perceiver_key, time_key = jr.split(key)
        self.perceiver = PerceiverIO(
            coord_size, value_size, width_size=width_size, **options, key=perceiver_key
        )
        self.time = LearnedTime(width_size, embedding=time_embedding, key=time_key)

    def __call__(
        self,
        t: Times,
        x: Float[AnyArray, "..."],
        cond: Cond,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "m c"]:
        """The velocity at the query coordinates, zero where masked.

        `mask` marks the valid rows of `x`; the key is for dropout.
        """
        x = checked_state(x, self.perceiver.value_size)
        seen = checked_observed(cond, x, mask, self.perceiver.coord_size)
        state = zero_masked(x, mask)

        # The other entries of the vector are not used.
        time = embedded_time(self.time, t, x.dtype)[: x.shape[1]]
        values = jnp.concatenate([seen.values, state]) + time[None]
        coords = jnp.concatenate([seen.coords, seen.query_coords])
        there = joined_masks(seen.mask, len(seen.coords), mask, len(x))

        out = self.perceiver(coords, values, seen.query_coords, there, key)
        return zero_masked(out, mask)
