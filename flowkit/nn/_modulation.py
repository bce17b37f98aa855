"""Adaptive layer normalization: conditioning by scales, shifts and gates."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, PRNGKey
from flowkit.nn._linear import Linear


class Modulation(eqx.Module):
    """All the scales, shifts and gates of a network from its conditioning vectors, in one matrix product.

    Maps `(m, cond_size)` to `(number, m, width_size)`, where `m` is 1 if the points share their conditioning and the
    number of points otherwise; either broadcasts against the features `(n, width_size)`. What is shared is so
    computed once for a cloud, not once for a point.

    **Arguments:** the sizes, `number` of vectors, `zero_init` (start them all at zero), and a key.

    **Reference:** Perez et al., FiLM, 2017 (arXiv 1709.07871).
    """

    linear: Linear
    number: int = eqx.field(static=True)

    def __init__(
        self,
        cond_size: int,
        width_size: int,
        number: int,
        *,
        zero_init: bool = False,
        key: PRNGKey,
    ):
        self.linear = Linear(
            cond_size, number * width_size, zero_init=zero_init, key=key
        )
        self.number = number

    def __call__(
        self, cond: Float[AnyArray, "m cond_size"]
    ) -> Float[Array, "number m width_size"]:
        vectors = self.linear(cond).reshape(cond.shape[0], self.number, -1)
        return jnp.swapaxes(vectors, 0, 1)


def modulate(
    h: Float[Array, "n width"],
    scale: Float[Array, "m width"],
    shift: Float[Array, "m width"],
) -> Float[Array, "n width"]:
    """`h (1 + scale) + shift`: scale and shift 0 change nothing. `m` is 1 or `n`."""
    return h * (1 + scale) + shift
