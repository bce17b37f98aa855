"""The affine map that every network here is built from."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, PRNGKey


class Linear(eqx.Module):
    """`y = x W + b` on the last axis, with any number of leading axes.

    A cloud `(n, in_size)` is one matrix product, also under an outer `vmap`. Weights are drawn from the LeCun normal
    law (variance `1 / in_size`) and biases are zero; with `zero_init=True` both are zero, as every velocity network
    wants of its last layer, so that it starts as the velocity 0. Parameters are cast to the dtype of the input.

    **Arguments:** sizes, `use_bias`, `zero_init`, and a key.

    **Reference:** LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, section 4.6.
    """

    weight: Float[AnyArray, "in_size out_size"]
    bias: Float[AnyArray, " out_size"] | None
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        use_bias: bool = True,
        zero_init: bool = False,
        key: PRNGKey,
    ):
        init = (
            jax.nn.initializers.zeros
            if zero_init
            else jax.nn.initializers.lecun_normal()
        )
        self.in_size = in_size
        self.out_size = out_size
        self.weight = init(key, (in_size, out_size), jnp.result_type(float))
        self.bias = jnp.zeros(out_size, jnp.result_type(float)) if use_bias else None

    def __call__(self, x: Float[AnyArray, "*leading _"]) -> Float[Array, "*leading _"]:
        x = jnp.asarray(x)
        if x.shape[-1] != self.in_size:
            raise ValueError(
                f"`x` has {x.shape[-1]} features, but this layer was built with in_size={self.in_size}."
            )
        y = x @ self.weight.astype(x.dtype)
        return y if self.bias is None else y + self.bias.astype(x.dtype)
