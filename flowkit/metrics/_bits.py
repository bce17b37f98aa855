r"""Bits per dimension: what a lossless code would need for each entry of an example."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._types import FloatArray, Number
from flowkit.metrics._inputs import working_dtype


def bits_per_dimension(
    log_prob: FloatArray, size: int, *, bin_width: Number
) -> Float[Array, "..."]:
    r"""$-\log p(y) / (d \ln 2) - \log_2 \Delta$, for data that were dequantized.

    ```python
    images = fk.data.dequantize(bytes, key=key)  # in [-1, 1), each level 1 / 128 wide
    log_probs = jax.vmap(lambda image: fk.log_prob(flow, image))(images)
    fk.metrics.bits_per_dimension(log_probs, images[0].size, bin_width=1 / 128).mean()
    ```

    With uniform noise within a level it is an upper bound of the bits of the model's discrete
    distribution.

    **Arguments:**

    - `log_prob`: log-densities in nats, of any shape.
    - `size`: $d$, the number of entries of an example.
    - `bin_width`: $\Delta$, the width of one level in the units of the density: 1/128 for bytes
        in [-1, 1), 1/256 in [0, 1).

    **Reference:** Theis, van den Oord, Bethge, A note on the evaluation of generative models, 2016
    (arXiv 1511.01844).
    """
    size = as_size("size", size)
    if not bin_width > 0:
        raise ValueError(f"`bin_width` must be positive, got {bin_width}.")
    log_prob = jnp.asarray(log_prob, working_dtype(log_prob))
    return -log_prob / (size * math.log(2)) - math.log2(bin_width)
