"""Initial values of parameters, without a compiled program for every shape.

If values were drawn eagerly, each new shape would compile its own programs, and a U-Net
would take 15 seconds to build. So numbers are drawn in a few sizes only, and each array
takes the first ones that it needs: the generator returns the same first numbers for every
size.
"""

import functools as ft
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import is_traced, PRNGKey


# The standard deviation of a standard normal distribution cut at 2 and -2.
CUT_STD = 0.87962566103423978


def zeros(shape: int | tuple[int, ...]) -> Float[Array, "..."]:
    return full(shape, 0.0)


def ones(shape: int | tuple[int, ...]) -> Float[Array, "..."]:
    return full(shape, 1.0)


def full(shape: int | tuple[int, ...], value: float) -> Float[Array, "..."]:
    return jnp.asarray(np.full(shape, value, jnp.result_type(float)))


def normal(
    shape: tuple[int, ...], std: float = 1.0, *, key: PRNGKey
) -> Float[Array, "..."]:
    """`N(0, std^2)`."""
    return _drawn(_normal, shape, std, key)


def lecun_normal(shape: tuple[int, ...], *, key: PRNGKey) -> Float[Array, "..."]:
    """LeCun's normal distribution: the variance is one over the fan-in.

    All axes but the last count as inputs. The distribution is truncated at two standard
    deviations.

    **Reference:** LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, section 4.6.
    """
    dtype = jnp.result_type(float)
    variance = np.asarray(1 / max(math.prod(shape[:-1]), 1), dtype)
    std = np.sqrt(variance) / np.asarray(CUT_STD, dtype)
    return _drawn(_cut_normal, shape, std, key)


def _drawn(
    draw: Callable[..., Array], shape: tuple[int, ...], std: Any, key: PRNGKey
) -> Float[Array, "..."]:
    dtype = jnp.result_type(float)
    std = np.asarray(std, dtype)
    num = math.prod(shape)
    if is_traced(key):
        return std * draw(key, num, dtype).reshape(shape)

    values = draw(key, _rounded_up(num), dtype)
    if is_traced(values):  # a known key, inside of a program that is being traced
        return std * values[:num].reshape(shape)
    return jnp.asarray(std * np.asarray(values)[:num].reshape(shape))


def _rounded_up(num: int) -> int:
    """The next power of four, and at least 1024."""
    bits = max(num - 1, 1023).bit_length()
    return 1 << (bits + bits % 2)


@ft.partial(jax.jit, static_argnums=(1, 2))
def _normal(key, num, dtype):
    return jr.normal(key, (num,), dtype)


@ft.partial(jax.jit, static_argnums=(1, 2))
def _cut_normal(key, num, dtype):
    return jr.truncated_normal(key, -2, 2, (num,), dtype)
