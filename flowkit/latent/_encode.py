"""The latents of a whole data set."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_mask
from flowkit._types import AnyArray
from flowkit.latent._set_flow import SetFlow


def encode_sets(
    model: SetFlow,
    points: Float[AnyArray, "b n d"],
    *,
    mask: Bool[AnyArray, "b n"] | None = None,
    batch_size: int = 512,
) -> Float[Array, "b k c"]:
    """The latents of many clouds, encoded one batch at a time.

    The encoder is in inference mode; a variational model returns the means.

    **Arguments:**

    - `model`: the model.
    - `points`, `mask`: the clouds `(b, n, d)`, and which of their points are valid.
    - `batch_size`: the number of clouds in memory at a time.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if len(points) == 0:
        raise ValueError("`points` is empty: give at least one cloud.")

    check_mask("mask", mask)
    model = eqx.nn.inference_mode(model)
    number = len(points)
    parts = []
    for start in range(0, number, batch_size):
        part = slice(start, start + batch_size)
        latents = _encode(model, points[part], None if mask is None else mask[part])
        parts.append(latents)

    return jnp.concatenate(parts)


@eqx.filter_jit
def _encode(model: SetFlow, points: Any, mask: Any) -> Array:
    return jax.vmap(model.encode)(jnp.asarray(points), mask)
