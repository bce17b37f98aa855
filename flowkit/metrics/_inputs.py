"""Sets of points as the metrics take them: checked, masked, and in the type of sums.

A set is `(n, ...)`, with a mask `(n,)` of its valid points or `None`. Masked points have
no influence, whatever they hold. Everything is computed and returned in the type of the
first set, but half precision in float32: it would overflow, or lose the digits of a sum.
"""

import warnings
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowkit._masks import zero_masked
from flowkit._types import AnyArray, FloatArray, is_traced, Mask, sum_dtype


AnyMask: TypeAlias = Bool[AnyArray, "..."] | None

_LEAST_DIGITS = 1e-3
"""The fraction of their spread by which values may be rounded without a warning."""


def check_values(name: str, x: FloatArray, mask: AnyMask = None) -> None:
    """Raises for an empty set and, if values are known, for valid points not finite."""
    if 0 in x.shape:
        raise ValueError(
            f"`{name}` has shape {x.shape}: at least one point in one dimension is needed."
        )
    if is_traced(x, mask) or not _is_known(x):
        return

    values = np.asarray(x)
    if mask is not None:
        valid = np.asarray(mask)
        if not valid.any(-1).all():
            raise ValueError(
                f"`mask_{name}` leaves no valid point; drop empty clouds first."
            )
        values = values[valid]
    if not np.isfinite(values).all():
        raise ValueError(
            f"`{name}` holds values that are not finite; drop those points or mask them."
        )
    _warn_of_rounding(name, values)


def _is_known(x: FloatArray) -> bool:
    """Whether this process has all of the values, or may have a part of them."""
    return not isinstance(x, Array) or x.is_fully_addressable or x.is_fully_replicated


def _warn_of_rounding(name: str, values: np.ndarray) -> None:
    """Warns where values in float64 differ by less than float32 can tell apart."""
    dtype = jax.dtypes.canonicalize_dtype(values.dtype)
    if dtype == values.dtype or values.ndim == 0:
        return

    rounding = np.max(np.abs(values)) * float(jnp.finfo(dtype).eps)
    spread = np.max(np.ptp(values, axis=0))
    if rounding > _LEAST_DIGITS * spread > 0:
        warnings.warn(
            f"`{name}` differs by {spread:.2g}, but so far from zero {dtype} rounds by "
            f"{rounding:.1g}. Subtract the same offset from both arguments, or use "
            "float64 (`jax.config.update('jax_enable_x64', True)`).",
            stacklevel=4,
        )


def check_pair(x: FloatArray, y: FloatArray, mask_x: AnyMask, mask_y: AnyMask) -> None:
    """The checks of every distance between two sets."""
    check_values("x", x, mask_x)
    check_values("y", y, mask_y)


def check_log_values(name: str, x: FloatArray) -> None:
    """Raises for logarithms that are empty or, if known, NaN or infinite.

    Minus infinity, the logarithm of zero, is allowed.
    """
    if 0 in x.shape:
        raise ValueError(f"`{name}` has shape {x.shape}: at least one value is needed.")
    if is_traced(x):
        return
    # The comparison is false for NaN, too.
    if not np.all(np.asarray(x) < np.inf):
        raise ValueError(
            f"`{name}` holds NaN or plus infinity; the logarithm of zero is `-inf`."
        )


def working_dtype(x: FloatArray) -> Any:
    """The type in which a metric of `x` is computed and returned."""
    return sum_dtype(jax.dtypes.canonicalize_dtype(x.dtype))


def prepare(
    x: FloatArray, mask: AnyMask, dtype: Any
) -> tuple[Float[Array, "n ..."], Bool[Array, " n"]]:
    """The points in a type, zero where masked, and a full mask."""
    points = jnp.asarray(x, dtype)
    if mask is None:
        return points, jnp.ones(len(points), bool)
    valid = jnp.asarray(mask)
    return zero_masked(points, valid), valid


def prepare_pair(
    x: FloatArray, y: FloatArray, mask_x: AnyMask, mask_y: AnyMask
) -> tuple[Array, Array, Array, Array]:
    """`x, y, mask_x, mask_y` in one type and with full masks."""
    dtype = working_dtype(x)
    x, mask_x = prepare(x, mask_x, dtype)
    y, mask_y = prepare(y, mask_y, dtype)
    return x, y, mask_x, mask_y


def nan_if_any(value: Float[Array, "..."], *inputs: Array) -> Float[Array, "..."]:
    """NaN if an input has one: comparisons take NaN for a number, and hide it."""
    missing = [jnp.any(jnp.isnan(x)) for x in inputs]
    return jnp.where(jnp.any(jnp.stack(missing)), jnp.nan, value)


def fill(x: Float[Array, "n d"], mask: Mask | None) -> Float[Array, "n d"]:
    """The points, with a copy of the first valid one in place of every masked one."""
    if mask is None:
        return x
    mask = jnp.asarray(mask)
    first = x[jnp.argmax(mask)]
    return jnp.where(mask[:, None], x, first[None])
