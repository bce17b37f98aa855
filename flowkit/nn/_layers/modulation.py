"""Adaptive layer normalization: conditioning by scales, shifts and gates."""

import operator

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._types import AnyArray, PRNGKey
from flowkit.nn._layers.linear import Linear


class Modulation(eqx.Module):
    """All scales, shifts and gates of a network, from one matrix product.

    Maps conditioning vectors `(m, cond_size)` to `(number, m, width_size)`, where `m` is
    1 if the points share their conditioning, and the number of points otherwise. Either
    broadcasts against the features `(n, width_size)`, so shared conditioning is computed
    once for a cloud, not once for each point.

    **Arguments:**

    - `cond_size`, `width_size`: the sizes of the conditioning and of the features.
    - `number`: how many vectors to make.
    - `zero_init`: whether all of them start at zero.
    - `key`: the key of the initial weights.

    **Reference:** Perez et al., FiLM, 2017 (arXiv 1709.07871).
    """

    linear: Linear
    number: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        cond_size: int,
        width_size: int,
        number: int,
        *,
        zero_init: bool = False,
        key: PRNGKey,
    ):
        check_sizes(cond_size=cond_size, width_size=width_size)
        self.linear = Linear(
            cond_size, number * width_size, zero_init=zero_init, key=key
        )
        self.number = number

    def __call__(
        self, cond: Float[AnyArray, "m cond_size"]
    ) -> Float[Array, "number m width_size"]:
        # The number comes first, so that the result unpacks into scale, shift, ...
        vectors = self.linear(cond).reshape(cond.shape[0], self.number, -1)
        return jnp.swapaxes(vectors, 0, 1)


def modulate(
    h: Float[Array, "n width"],
    scale: Float[Array, "m width"],
    shift: Float[Array, "m width"],
) -> Float[Array, "n width"]:
    """`h (1 + scale) + shift`, where `m` is 1 or `n`; at zero it changes nothing."""
    return h * (1 + scale) + shift
