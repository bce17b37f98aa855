"""Bytes as a continuous variable, for densities."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, UInt8

from flowkit._types import AnyArray, PRNGKey


def dequantize(images: UInt8[AnyArray, "..."], *, key: PRNGKey) -> Float[Array, "..."]:
    r"""Bytes $k$ as $(k + u) / 128 - 1$ with uniform noise $u$: in [-1, 1), without gaps.

    A density of bytes themselves has no bound: a model may put spikes on the levels. For bits per
    dimension, see `fk.metrics.bits_per_dimension` with `bin_width=1 / 128`.

    **Reference:** Uria, Murray, Larochelle, RNADE, 2013 (arXiv 1306.0186).
    """
    noise = jr.uniform(key, images.shape)
    # The greatest byte with the greatest noise would be rounded to 1.
    values = (jnp.asarray(images).astype(noise.dtype) + noise) / 128 - 1
    return jnp.minimum(values, jnp.nextafter(jnp.ones_like(values), 0))
