"""What all set distances share: checks, masks, squared distances and their bounded memory."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from flowkit._types import AnyArray, FloatArray, is_traced, Mask


# Entries of a distance matrix that are alive at one time: 1 MB in float32, which stays in a core's cache.
BLOCK_ENTRIES = 2**18

# Differences are exact and, up to about this many coordinates, no slower than a matrix product.
MAX_DIRECT_SIZE = 8

_AnyMask: TypeAlias = Bool[AnyArray, "..."] | None


def check_values(name: str, x: FloatArray, mask: _AnyMask = None) -> None:
    """Refuses an empty set, and points that are not finite where the mask holds (if values are known)."""
    if 0 in x.shape:
        raise ValueError(
            f"`{name}` has shape {x.shape}: a distance needs at least one point in one dimension."
        )
    if is_traced(x, mask):
        return
    values, valid = (
        np.asarray(x),
        np.ones(x.shape[:1], bool) if mask is None else np.asarray(mask),
    )
    if not valid.any(-1).all():
        raise ValueError(
            f"`mask_{name}` leaves no valid point; drop empty clouds first."
        )
    if not np.isfinite(values[valid]).all():
        raise ValueError(
            f"`{name}` holds values that are not finite; drop those points or mask them out."
        )


def check_pair(
    x: FloatArray, y: FloatArray, mask_x: _AnyMask, mask_y: _AnyMask
) -> None:
    """The checks of every distance between two sets."""
    check_values("x", x, mask_x)
    check_values("y", y, mask_y)


def prepare(
    x: FloatArray, mask: _AnyMask, dtype: Any = None
) -> tuple[Array, Bool[Array, " n"]]:
    """The points, zero where masked, so that padding of any value (NaN too) is harmless; and a full mask."""
    points = jnp.asarray(x, dtype)
    if mask is None:
        return points, jnp.ones(points.shape[0], bool)
    valid = jnp.asarray(mask)
    return jnp.where(valid.reshape(-1, *[1] * (points.ndim - 1)), points, 0), valid


def prepare_pair(
    x: FloatArray, y: FloatArray, mask_x: _AnyMask, mask_y: _AnyMask
) -> tuple[Array, ...]:
    """`x, y, mask_x, mask_y` ready for use; `y` takes the dtype of `x`."""
    x, mask_x = prepare(x, mask_x)
    y, mask_y = prepare(y, mask_y, x.dtype)
    return x, y, mask_x, mask_y


def squared_distances(
    x: Float[Array, "n d"], y: Float[Array, "m d"]
) -> Float[Array, "n m"]:
    """`|x_i - y_j|^2`: by differences in few dimensions, else by `|x|^2 + |y|^2 - 2 x.y` of the centred points.

    The second form errs by a few units in the last place of `|x|^2`, hence the centring, and is clipped at zero.
    """
    if x.shape[1] <= MAX_DIRECT_SIZE:
        # One term per coordinate, which XLA fuses with the reduction that follows: no (n, m, d) array.
        return sum(jnp.square(x[:, None, k] - y[None, :, k]) for k in range(x.shape[1]))  # pyright: ignore
    centre = jnp.mean(y, 0)
    x, y = x - centre, y - centre
    product = jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1) - 2 * product, 0)


def block_entries() -> int:
    """How many entries of a distance matrix are alive at one time; an accelerator wants more of them at once."""
    return BLOCK_ENTRIES if jax.default_backend() == "cpu" else 64 * BLOCK_ENTRIES


def fill(x: Float[Array, "n d"], mask: Mask | None) -> Float[Array, "n d"]:
    """The points, with a copy of the first valid one in the place of every other."""
    return (
        x
        if mask is None
        else jnp.where(jnp.asarray(mask)[:, None], x, x[jnp.argmax(jnp.asarray(mask))])
    )


def row_blocks(
    x: Float[Array, "n d"], mask: Bool[Array, " n"] | None, width: int
) -> tuple[Array, Array | None]:
    """`x` and its mask cut into blocks of rows, for distance matrices `width` wide.

    The last block is padded with copies of the last point, which its mask leaves out.
    """
    num_rows = x.shape[0]
    # At least two, as the compiler unrolls a loop of one and then computes every distance once for each minimum.
    size = min(-(-num_rows // 2), max(1, block_entries() // width))
    num_blocks = -(-num_rows // size)
    padding = num_blocks * size - num_rows
    blocks = jnp.pad(x, ((0, padding), (0, 0)), mode="edge").reshape(
        num_blocks, size, -1
    )
    return blocks, None if mask is None else jnp.pad(mask, (0, padding)).reshape(
        num_blocks, size
    )


def masked_mean(
    values: Float[Array, " n"], mask: Bool[Array, " n"]
) -> Float[Array, ""]:
    """The mean over valid entries; NaN if there are none."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.sum(mask, dtype=values.dtype)


def safe_sqrt(x: Real[Array, "*shape"]) -> Real[Array, "*shape"]:
    """The square root with derivative zero at zero; NaN passes through."""
    positive = x > 0
    root = jnp.sqrt(jnp.where(positive, x, 1))
    return jnp.where(positive, root, jnp.where(jnp.isnan(x), x, 0))
