r"""Normalization to mean 0 and variance 1, over any set of entries.

For $y = s\, (h - \bar h)$ with $s = (\overline{(h - \bar h)^2} + \epsilon)^{-1/2}$,
the derivative is

$$\dot y = s\, \bigl(\dot h - \overline{\dot h} - y\, \overline{y \dot h}\bigr).$$

It takes two means, where autodiff takes four. This saves 4 to 8% of a training step on
a CPU.
"""

import functools as ft
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray
from flowkit.nn._layers.arrays import in_sum_dtype


Mean = Callable[[Array], Array]
"""A mean over some entries, in a shape that broadcasts against the array."""


def normalized(
    h: Float[AnyArray, "*shape"], mean: Mean, epsilon: float
) -> Float[Array, "*shape"]:
    """Subtract the mean and divide by `sqrt(variance + epsilon)`."""
    # Squares of half precision overflow from 256 on.
    dtype = jnp.asarray(h).dtype
    return _normalized(in_sum_dtype(h), mean, epsilon).astype(dtype)


@ft.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _normalized(h: Array, mean: Mean, epsilon: float) -> Array:
    return _value_and_scale(h, mean, epsilon)[0]


@_normalized.defjvp
def _(mean, epsilon, primals, tangents):
    (h,) = primals
    (tangent,) = tangents
    value, scale = _value_and_scale(h, mean, epsilon)
    along = value * mean(value * tangent)
    return value, scale * (tangent - mean(tangent) - along)


def _value_and_scale(h: Array, mean: Mean, epsilon: float) -> tuple[Array, Array]:
    h = h - mean(h)
    scale = jax.lax.rsqrt(mean(h * h) + epsilon)
    return h * scale, scale
