"""Images as point clouds."""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from flowkit._types import AnyArray, is_traced, PRNGKey, Scalar


Noise: TypeAlias = Callable[..., Any]
"""`(key, shape, dtype) -> array`, as `jax.random.normal` and its likes have it."""

_BLOCK = 1024


class Images(NamedTuple):
    """Grey images with what they show.

    - `images`: `(b, h, w)`, intensities in `[0, 1]`, row 0 at the top.
    - `labels`: `(b,)`, integers.
    """

    images: Float[np.ndarray, "b h w"]
    labels: Int[np.ndarray, " b"]


def pixel_normal(key: PRNGKey, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """A Gaussian jitter with the variance of a pixel: `N(0, 1/12)`, in pixels."""
    return 12**-0.5 * jr.normal(key, shape, dtype)


def wide_normal(key: PRNGKey, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """`N(0, 1/4)`: the points that stand for an image without any ink."""
    return 0.5 * jr.normal(key, shape, dtype)


def images_to_points(
    images: Real[AnyArray, "b h w"] | Bool[AnyArray, "b h w"],
    num_points: int,
    *,
    jitter: Scalar | Noise = 0.5,
    unit: Scalar | None = None,
    empty: Noise | None = None,
    key: PRNGKey,
) -> Float[Array, "b {num_points} 2"]:
    """Draws points from images, as if each were a density: dark paper is empty, ink is likely.

    Pixels are chosen with replacement with probability proportional to their intensity, then moved by a jitter. Row 0
    is up, and the origin is the middle of the image. By default the longer side spans `[-1, 1]`, so that with the
    default jitter, which fills the pixel, every coordinate lies within.

    Call it again with another key for an independent draw of the same images. For equally likely pixels above a
    threshold, hand over `images > threshold`. Images are worked on in blocks, so that memory is bounded.

    **Arguments:**

    - `images`: `(b, h, w)`, not negative, in any unit; integers and booleans too.
    - `num_points`: points per image, `n`.
    - `jitter`: half the width of a uniform blur, in pixels, where 0 gives the centres; or a function
        `(key, shape, dtype)` that draws offsets in pixels, such as `pixel_normal`. Another function is another program.
    - `unit`: pixels per unit of length, by default half of the longer side.
    - `empty`: a function `(key, shape, dtype)` that draws the points of an image which is zero everywhere, such as
        `wide_normal`; by default such an image is an error.

    **Returns:** `(b, n, 2)`, `x` to the right and `y` upwards, in the images' precision.
    """
    if num_points < 1:
        raise ValueError(f"`num_points` must be at least 1, got {num_points}.")
    if (
        not callable(jitter)
        and not is_traced(jitter)
        and not 0 <= float(jitter) < float("inf")
    ):
        raise ValueError(f"`jitter` must be a finite number >= 0, got {jitter}.")
    unit = max(images.shape[1:]) / 2 if unit is None else unit
    if not is_traced(unit) and not 0 < float(unit) < float("inf"):
        raise ValueError(f"`unit` must be a finite number of pixels > 0, got {unit}.")
    if not is_traced(images) and _all_inked(np.asarray(images), must=empty is None):
        empty = None  # not drawn where nothing needs it
    noise, width = (jitter, 1.0) if callable(jitter) else (_uniform, jitter)
    # Split here, where it is compiled once for all sizes.
    keys = jr.split(key, (-(-images.shape[0] // _BLOCK), 3))
    return _images_to_points(images, num_points, noise, empty, width, unit, keys)


def _uniform(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
    return jr.uniform(key, shape, dtype, minval=-1, maxval=1)


@ft.partial(jax.jit, static_argnums=(1, 2, 3))
def _images_to_points(
    images: Array,
    num_points: int,
    noise: Noise,
    empty: Noise | None,
    width: Array,
    unit: Array,
    keys: Array,
) -> Array:
    """One block of images after the other, all of one size, the last one filled up with images that are empty."""
    dtype = (
        images.dtype
        if jnp.issubdtype(images.dtype, jnp.floating)
        else jnp.zeros(()).dtype
    )
    # Half precision has too few numbers between 0 and 1 to choose a pixel by.
    precision = jnp.float32 if dtype.itemsize < 4 else dtype
    to_points = ft.partial(
        _block_to_points, num_points, noise, empty, width, unit, precision
    )
    num, blocks = images.shape[0], len(keys)
    if blocks == 1:
        return to_points((images, keys[0])).astype(dtype)
    size = -(-num // blocks)
    images = jnp.pad(images, ((0, blocks * size - num), (0, 0), (0, 0)))
    points = jax.lax.map(
        to_points, (images.reshape(blocks, size, *images.shape[1:]), keys)
    )
    return points.reshape(blocks * size, num_points, 2)[:num].astype(dtype)


def _block_to_points(
    num_points: int,
    noise: Noise,
    empty: Noise | None,
    width: Array,
    unit: Array,
    dtype: Any,
    block: tuple[Array, Array],
) -> Array:
    images, (pixel_key, jitter_key, empty_key) = block
    num, h, w = images.shape
    row, column = jnp.divmod(
        _choose_pixels(images.reshape(num, -1), num_points, dtype, pixel_key), w
    )
    # Twice the distance from the middle is a whole number.
    centres = 0.5 * jnp.stack(
        [2 * column - (w - 1), (h - 1) - 2 * row], axis=-1
    ).astype(dtype)
    points = (centres + width * noise(jitter_key, (num, num_points, 2), dtype)) / unit
    if empty is None:
        return points
    return jnp.where(
        images.any(axis=(1, 2))[:, None, None],
        points,
        empty(empty_key, points.shape, dtype),
    )


def _choose_pixels(images: Array, num_points: int, dtype: Any, key: PRNGKey) -> Array:
    """Places of pixels with ink, by their intensity; equally likely ones need no search."""
    num, size = images.shape
    inked = jax.vmap(lambda pixels: jnp.flatnonzero(pixels, size=size, fill_value=0))(
        images
    )
    last = jnp.maximum(jnp.count_nonzero(images, axis=1, keepdims=True) - 1, 0)
    if images.dtype == bool:
        rank = jr.bits(key, (num, num_points), jnp.uint32) % (last + 1).astype(
            jnp.uint32
        )
    else:
        there = jnp.arange(size) <= last
        weights = jnp.where(
            there, jnp.take_along_axis(images, inked, axis=1), 0
        ).astype(dtype)
        cdf = jnp.cumsum(weights, axis=1)
        u = jr.uniform(key, (num, num_points), dtype)
        rank = jax.vmap(ft.partial(jnp.searchsorted, side="right"))(
            cdf, u * cdf[:, -1:]
        )
        rank = jnp.minimum(
            rank, last.astype(rank.dtype)
        )  # rounding up to the whole sum would be the place after it
    return jnp.take_along_axis(inked, rank, axis=1)


def _all_inked(images: np.ndarray, *, must: bool) -> bool:
    """Whether every image has ink, which it `must` if so said. Raises a `ValueError` for what is no image."""
    if 0 in images.shape:
        raise ValueError(
            f"`images` is empty, shape {images.shape}; there must be an image with pixels."
        )
    if images.dtype != bool and not (np.isfinite(images).all() and images.min() >= 0):
        raise ValueError(
            "`images` must be finite and not negative; shift or clip the intensities."
        )
    inked = images.any(axis=(1, 2))
    if must and not inked.all():
        raise ValueError(
            f"`images` is zero everywhere in image {np.argmin(inked)} ({np.sum(~inked)} such), which has no "
            "points to draw; remove it, or say by `empty` what to draw."
        )
    return bool(inked.all())
