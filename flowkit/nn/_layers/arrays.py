"""Sizes, types and broadcasting of the arrays that pass through a network.

All arithmetic here runs under `jax_numpy_rank_promotion="raise"`, so a vector of one
number per feature is given the axes of the rows that it meets. Half precision is summed
in float32.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, sum_dtype


Module = TypeVar("Module")


def out_size_of(fn: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    """The size of the last axis of what `fn` returns for float arrays of these shapes.

    Nothing is computed.
    """
    dtype = jnp.result_type(float)
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return eqx.filter_eval_shape(fn, *arrays).shape[-1]


def per_feature(
    vector: Float[AnyArray, " size"], rows: Float[Array, "*leading _"]
) -> Float[Array, "*ones size"]:
    """The vector in the dtype of the rows, with as many axes as they have."""
    vector = jnp.asarray(vector, rows.dtype)
    return jnp.expand_dims(vector, tuple(range(rows.ndim - 1)))


def in_sum_dtype(x: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """The array in the type to sum in: float32 if it is in half precision."""
    x = jnp.asarray(x)
    return x.astype(sum_dtype(x.dtype))


def cast(module: Module, dtype: Any) -> Module:
    """The module with its floating-point parameters in this dtype.

    For layers from Equinox, which do not cast their parameters to their input.
    """

    def convert(leaf: Any) -> Any:
        return leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(convert, module)
