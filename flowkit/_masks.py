"""Masks of point clouds: `(n,)`, which rows of a cloud are valid.

The values in a masked row are meaningless and may be infinite or NaN, so they are
replaced by selection, never multiplied by zero. The signature of a function tells
whether it takes a mask.
"""

import inspect
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import FloatArray, Mask


def zero_masked(x: FloatArray, mask: Mask | None) -> Float[Array, "..."]:
    """`x` with the rows of masked points set to zero, whatever they hold."""
    if mask is None:
        return jnp.asarray(x)
    if x.ndim == 0 or mask.shape != x.shape[:1]:
        raise ValueError(
            f"`mask` must have shape {x.shape[:1]}, one entry per row of `x`, "
            f"got {mask.shape}."
        )
    rows = jnp.reshape(mask, mask.shape + (1,) * (x.ndim - 1))
    return jnp.where(rows, x, 0)


def masked_mean(values: Float[Array, "..."], mask: Mask | None) -> Float[Array, ""]:
    """The mean over the valid rows; 0 if there are none."""
    if mask is None:
        return jnp.mean(values)
    rows = jnp.mean(values, axis=range(1, values.ndim))
    total = jnp.sum(jnp.where(mask, rows, 0))
    count = jnp.sum(mask, dtype=values.dtype)
    return total / jnp.maximum(count, 1)


def has_parameter(fn: Callable, name: str) -> bool:
    """Whether a function has a parameter of that name, or takes any keyword."""
    try:
        parameters = inspect.signature(fn).parameters
    except ValueError:
        # Built-in callables have no signature.
        return False

    kinds = [parameter.kind for parameter in parameters.values()]
    return name in parameters or inspect.Parameter.VAR_KEYWORD in kinds
