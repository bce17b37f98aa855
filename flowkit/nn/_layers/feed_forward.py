"""Stacks of fully connected layers."""

import operator
from collections.abc import Callable, Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._types import AnyArray, PRNGKey
from flowkit.nn._layers.linear import Linear


class FeedForward(eqx.Module):
    """Linear layers on the last axis, with an activation between any two of them.

    **Arguments:**

    - `in_size`, `out_size`: the sizes of the last axis.
    - `hidden_sizes`: the sizes between the layers; may be empty.
    - `activation`: the function applied after every layer but the last.
    - `zero_init`: whether the last layer, and so the output, starts at zero.
    - `key`: the key of the initial weights.
    """

    layers: tuple[Linear, ...]
    activation: Callable[[Array], Array]
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        hidden_sizes: Sequence[int],
        activation: Callable[[Array], Array] = jax.nn.silu,
        zero_init: bool = False,
        key: PRNGKey,
    ):
        if min(hidden_sizes, default=1) < 1:
            raise ValueError(
                f"`hidden_sizes` must be positive, got {tuple(hidden_sizes)}."
            )
        *hidden, last = pairwise((in_size, *hidden_sizes, out_size))
        *keys, last_key = jr.split(key, len(hidden) + 1)

        layers = [
            Linear(*sizes, key=layer_key)
            for sizes, layer_key in zip(hidden, keys, strict=True)
        ]
        layers.append(Linear(*last, zero_init=zero_init, key=last_key))

        self.layers = tuple(layers)
        self.activation = activation
        self.in_size = in_size
        self.out_size = out_size

    def __call__(self, x: Float[AnyArray, "*leading _"]) -> Float[Array, "*leading _"]:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)


class SwiGLU(eqx.Module):
    r"""A gated layer on the last axis: $W_3 (\mathrm{SiLU}(W_1 x) \odot W_2 x)$.

    **Arguments:**

    - `in_size`, `hidden_size`: the sizes of the input and of the gated features.
    - `out_size`: the size of the result; `in_size` by default.
    - `use_bias`: whether the linear maps have biases.
    - `key`: the key of the initial weights.

    **Reference:** Shazeer, GLU Variants Improve Transformer, 2020 (arXiv 2002.05202).
    """

    gate_and_value: Linear
    out: Linear

    def __init__(
        self,
        in_size: int,
        hidden_size: int,
        out_size: int | None = None,
        *,
        use_bias: bool = False,
        key: PRNGKey,
    ):
        if out_size is None:
            out_size = in_size
        hidden_size = as_size("hidden_size", hidden_size, least=0)
        in_key, out_key = jr.split(key)

        # Gate and value read the same input: one matrix product makes both.
        self.gate_and_value = Linear(
            in_size, 2 * hidden_size, use_bias=use_bias, key=in_key
        )
        self.out = Linear(hidden_size, out_size, use_bias=use_bias, key=out_key)

    def __call__(self, x: Float[AnyArray, "*leading _"]) -> Float[Array, "*leading _"]:
        gate, value = jnp.split(self.gate_and_value(x), 2, axis=-1)
        return self.out(jax.nn.silu(gate) * value)
