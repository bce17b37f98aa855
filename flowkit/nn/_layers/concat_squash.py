"""Layers that join their input with a condition and squash."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import AnyArray, PRNGKey
from flowkit.nn._layers.arrays import in_sum_dtype
from flowkit.nn._layers.linear import Linear


class ConcatSquashLinear(eqx.Module):
    r"""A linear map, gated and shifted by a condition.

    $$(x W + b) \odot \sigma(c W_g + b_g) + c W_s$$

    Maps `(n, in_size)` and `(m, cond_size)` to `(n, out_size)`. `m` is 1 for a condition
    that the points share, which is then computed once, and `n` otherwise.

    Gates start near one half, so $W$ is drawn with standard deviation
    `gain / sqrt(in_size)`, where a gain of 2 keeps the scale of `x`.

    **Arguments:**

    - `in_size`, `out_size`, `cond_size`: the three sizes.
    - `gain`: see above.
    - `zero_init`: whether $W$, $b$ and $W_s$, and so the result, start at zero.
    - `key`: the key of the initial weights.

    **Reference:** Grathwohl et al., FFJORD, 2018 (arXiv 1810.01367); Yang et al.,
    PointFlow, 2019 (arXiv 1906.12320).
    """

    linear: Linear
    gate: Linear
    shift: Linear

    def __init__(
        self,
        in_size: int,
        out_size: int,
        cond_size: int,
        *,
        gain: float = 2.0,
        zero_init: bool = False,
        key: PRNGKey,
    ):
        linear_key, gate_key, shift_key = jr.split(key, 3)
        linear = Linear(in_size, out_size, zero_init=zero_init, key=linear_key)
        weight_of = lambda linear: linear.weight
        self.linear = eqx.tree_at(weight_of, linear, gain * linear.weight)
        self.gate = Linear(cond_size, out_size, key=gate_key)
        self.shift = Linear(
            cond_size, out_size, use_bias=False, zero_init=zero_init, key=shift_key
        )

    def __call__(
        self, x: Float[AnyArray, "n in_size"], cond: Float[AnyArray, "m cond_size"]
    ) -> Float[Array, "n out_size"]:
        return self.linear(x) * jax.nn.sigmoid(self.gate(cond)) + self.shift(cond)


class SquashSum(eqx.Module):
    r"""A sum of linear maps of several inputs, shortened to a length below 1.

    $$\frac{\|v\|^2}{1 + \|v\|^2} \frac{v}{\|v\|}, \qquad v = b + \sum_i x_i W_i$$

    on the last axis; the other axes of the inputs broadcast.

    **Arguments:**

    - `in_sizes`: the sizes of the inputs.
    - `out_size`: the size of the result.
    - `key`: the key of the initial weights.

    **Reference:** Sabour, Frosst, Hinton, Dynamic Routing Between Capsules, 2017
    (arXiv 1710.09829), for the squashing.
    """

    linears: tuple[Linear, ...]

    def __init__(self, in_sizes: Sequence[int], out_size: int, *, key: PRNGKey):
        keys = jr.split(key, len(in_sizes))
        # The sum has one bias, that of the first map.
        self.linears = tuple(
            Linear(size, out_size, use_bias=i == 0, key=linear_key)
            for i, (size, linear_key) in enumerate(zip(in_sizes, keys, strict=True))
        )

    def __call__(self, *inputs: Float[AnyArray, "..."]) -> Float[Array, "..."]:
        if len(inputs) != len(self.linears):
            raise ValueError(
                f"`inputs` are {len(inputs)}, but the layer was built for "
                f"{len(self.linears)} in_sizes."
            )
        maps = zip(self.linears, inputs, strict=True)
        first, *others = [linear(x) for linear, x in maps]
        ndim = max(term.ndim for term in (first, *others))
        v = _with_axes(first, ndim)
        for term in others:
            v = v + _with_axes(term, ndim)

        wide = in_sum_dtype(v)
        square = jnp.sum(wide * wide, axis=-1, keepdims=True)
        # The square root alone has no derivative at zero.
        length = jnp.sqrt(square + jnp.finfo(wide.dtype).tiny)
        return (wide * length / (1 + square)).astype(v.dtype)


def _with_axes(x: Float[Array, "..."], ndim: int) -> Float[Array, "..."]:
    return jnp.expand_dims(x, tuple(range(ndim - x.ndim)))
