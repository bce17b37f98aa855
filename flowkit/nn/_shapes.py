"""What the networks ask of their inputs, and how they learn the sizes of the parts they are given."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._types import Mask, Points


Module = TypeVar("Module")


def out_size_of(fn: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    """Size of the last axis of `fn` at float arrays of these shapes. Nothing is computed."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in shapes]
    return eqx.filter_eval_shape(fn, *arrays).shape[-1]


def valid_points(
    points: Points, mask: Mask | None, in_size: int
) -> Float[Array, "n d"]:
    """The cloud with masked rows set to zero, so that whatever they hold reaches neither values nor gradients.

    Raises a `ValueError` if the points do not have `in_size` coordinates.
    """
    if points.shape[-1] != in_size:
        raise ValueError(
            f"`points` have {points.shape[-1]} coordinates, but the network was built with in_size={in_size}."
        )
    return zero_masked(jnp.asarray(points), mask)


def zero_masked(rows: Float[Array, "n _"], mask: Mask | None) -> Float[Array, "n _"]:
    """The rows with those outside of the mask set to zero."""
    return (
        rows
        if mask is None
        else jnp.where(jnp.asarray(mask)[:, None], rows, jnp.zeros_like(rows))
    )


def nonzero_rows(latents: Float[Array, "k c"]) -> Bool[Array, " k"]:
    """Which latents are there: encoders return zeros in the rows that stand for nothing."""
    return jnp.any(latents != 0, axis=-1)


def cast(module: Module, dtype: Any) -> Module:
    """The module with its floating-point parameters in this dtype, for layers that do not cast on their own."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, module
    )
