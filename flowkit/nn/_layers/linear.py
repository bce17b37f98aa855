"""The affine map that every network here is built from."""

import operator

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._types import AnyArray, PRNGKey
from flowkit.nn._layers.arrays import per_feature
from flowkit.nn._layers.initial import lecun_normal, zeros


class Linear(eqx.Module):
    """`y = x W + b` on the last axis, with any number of leading axes.

    A cloud `(n, in_size)` is one matrix product, also under an outer `vmap`. Weights are
    drawn from LeCun's normal distribution (variance `1 / in_size`) and biases are zero.
    With `zero_init=True` both are zero: the last layer of a velocity network should be
    built this way, so that the initial velocity is 0. Parameters are cast to the dtype of
    the input.

    **Arguments:**

    - `in_size`, `out_size`: the sizes of the last axis.
    - `use_bias`: whether there is a `b`.
    - `zero_init`: whether the layer starts at zero.
    - `key`: the key of the initial weights.

    **Reference:** LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, section 4.6.
    """

    weight: Float[AnyArray, "in_size out_size"]
    bias: Float[AnyArray, " out_size"] | None
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        use_bias: bool = True,
        zero_init: bool = False,
        key: PRNGKey,
    ):
        self.in_size = as_size("in_size", in_size, least=0)
        self.out_size = as_size("out_size", out_size, least=0)
        shape = (self.in_size, self.out_size)
        self.weight = zeros(shape) if zero_init else lecun_normal(shape, key=key)
        self.bias = zeros(self.out_size) if use_bias else None

    def __call__(self, x: Float[AnyArray, "*leading _"]) -> Float[Array, "*leading _"]:
        x = jnp.asarray(x)
        if x.shape[-1] != self.in_size:
            raise ValueError(
                f"`x` has {x.shape[-1]} features, but this layer was built with "
                f"in_size={self.in_size}."
            )

        # Parameters stay in their own precision; the product is in that of the input.
        y = x @ self.weight.astype(x.dtype)
        if self.bias is not None:
            y = y + per_feature(self.bias, y)
        return y
