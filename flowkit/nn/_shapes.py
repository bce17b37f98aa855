"""What the networks ask of their inputs, and how they learn the sizes of the parts they are given."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import Mask, Points


def out_size_of(fn: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    """Size of the last axis of `fn` at float arrays of these shapes. Nothing is computed."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in shapes]
    return eqx.filter_eval_shape(fn, *arrays).shape[-1]


def valid_points(points: Points, mask: Mask | None, in_size: int) -> Float[Array, "n d"]:
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
    return rows if mask is None else jnp.where(jnp.asarray(mask)[:, None], rows, jnp.zeros_like(rows))
