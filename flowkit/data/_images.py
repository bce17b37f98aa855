"""Images as point clouds: each image is a density, and points are drawn from its pixels."""

import functools as ft
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from flowkit._types import AnyArray, is_traced, PRNGKey, Scalar, sum_dtype


Noise: TypeAlias = Callable[..., Any]
"""`(key, shape, dtype) -> array`, the signature of `jax.random.normal`."""

_BLOCK = 1024


class Images(NamedTuple):
    """Gray images with what they show.

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
    """Draws points from images as if each were a density: zero is empty, large is likely.

    Pixels are chosen with replacement with probability proportional to their intensity,
    then moved by a jitter. Row 0 is at the top, and the origin is the middle of the image.
    By default the longer side spans `[-1, 1]`, so that with the default jitter, which
    fills the pixel, every coordinate lies within.

    Call it again with another key for an independent draw of the same images. For equally
    likely pixels above a threshold, give `images > threshold`. The memory is bounded,
    since images are worked on in blocks.

    **Arguments:**

    - `images`: `(b, h, w)`, not negative, integers and booleans too. Only the ratios of
        intensities count, so any unit will do.
    - `num_points`: the number of points per image, `n`.
    - `jitter`: half the width of a uniform blur, in pixels, where 0 gives the centers; or
        a function `(key, shape, dtype)` that draws offsets in pixels, such as
        `pixel_normal`. A new function is compiled again.
    - `unit`: the number of pixels per unit of length, by default half of the longer side.
    - `empty`: a function `(key, shape, dtype)` that draws the points of an image which is
        zero everywhere, such as `wide_normal`. By default such an image is an error.

    **Returns:** `(b, n, 2)`, with `x` to the right and `y` upward, in the type of the
    images.
    """
    num_points = operator.index(num_points)
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

    if not is_traced(images):
        images = np.asarray(images)
        if _all_inked(images, must=empty is None):
            # Not drawn where nothing needs it.
            empty = None
        # In JAX's own precision, without its warning about float64.
        images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype), copy=False)
    if callable(jitter):
        jitters = _Jitters(jitter, empty)
        width = 1.0
    else:
        jitters = _Jitters(_uniform, empty)
        width = jitter
    # Split here, where it is compiled once for all sizes.
    keys = jr.split(key, (-(-images.shape[0] // _BLOCK), 3))

    return _images_to_points(images, num_points, jitters, width, unit, keys)


class _Jitters(NamedTuple):
    """What draws the jitter, in pixels, and points for images without ink, if any."""

    noise: Noise
    empty: Noise | None


def _uniform(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
    return jr.uniform(key, shape, dtype, minval=-1, maxval=1)


@ft.partial(jax.jit, static_argnums=(1, 2))
def _images_to_points(
    images: Array,
    num_points: int,
    jitters: _Jitters,
    width: Array,
    unit: Array,
    keys: Array,
) -> Array:
    """One block of images after the other; empty images fill up the last one."""
    dtype = _float_dtype(images)

    def to_points(block: tuple[Array, Array]) -> Array:
        part, part_keys = block
        return _block_to_points(part, num_points, jitters, (width, unit), part_keys)

    num = images.shape[0]
    num_blocks = len(keys)
    if num_blocks == 1:
        return to_points((images, keys[0])).astype(dtype)

    size = -(-num // num_blocks)
    images = jnp.pad(images, ((0, num_blocks * size - num), (0, 0), (0, 0)))
    blocks = images.reshape(num_blocks, size, *images.shape[1:])
    points = jax.lax.map(to_points, (blocks, keys))
    return points.reshape(num_blocks * size, num_points, 2)[:num].astype(dtype)


def _block_to_points(
    images: Array,
    num_points: int,
    jitters: _Jitters,
    lengths: tuple[Array, Array],
    keys: Array,
) -> Array:
    """Points of one block; the lengths are the width of the jitter and the unit."""
    pixel_key, jitter_key, empty_key = keys
    width, unit = lengths
    num, h, w = images.shape
    # Half precision has too few numbers between 0 and 1 to choose a pixel by.
    dtype = sum_dtype(_float_dtype(images))

    pixels = _choose_pixels(images.reshape(num, -1), num_points, dtype, pixel_key)
    row, column = jnp.divmod(pixels, w)
    # Twice the distance from the middle is a whole number.
    doubled = jnp.stack([2 * column - (w - 1), (h - 1) - 2 * row], axis=-1)
    offsets = jitters.noise(jitter_key, (num, num_points, 2), dtype)
    points = (0.5 * doubled.astype(dtype) + width * offsets) / unit
    if jitters.empty is None:
        return points

    inked = images.any(axis=(1, 2))[:, None, None]
    return jnp.where(inked, points, jitters.empty(empty_key, points.shape, dtype))


def _float_dtype(images: Array) -> Any:
    """The type of the points: that of the images, or JAX's own for whole numbers."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.dtype
    return jnp.zeros(()).dtype


def _choose_pixels(images: Array, num_points: int, dtype: Any, key: PRNGKey) -> Array:
    """Places of pixels with ink, with probability proportional to their intensity."""
    num, size = images.shape
    places = ft.partial(jnp.flatnonzero, size=size, fill_value=0)
    inked = jax.vmap(places)(images)
    count = jnp.count_nonzero(images, axis=1, keepdims=True)
    # An image without ink has no last pixel; its points are replaced in the end.
    last = jnp.maximum(count - 1, 0)

    if images.dtype == bool:
        # Equally likely pixels need no search. The bias of the remainder is
        # about one part in five million for an image of MNIST.
        bits = jr.bits(key, (num, num_points), jnp.uint32)
        rank = bits % (last + 1).astype(jnp.uint32)
        return jnp.take_along_axis(inked, rank, axis=1)

    there = jnp.arange(size)[None] <= last
    weights = jnp.where(there, jnp.take_along_axis(images, inked, axis=1), 0)
    cdf = jnp.cumsum(weights.astype(dtype), axis=1)
    u = jr.uniform(key, (num, num_points), dtype)
    rank = jax.vmap(ft.partial(jnp.searchsorted, side="right"))(cdf, u * cdf[:, -1:])
    # A product that rounds up to the whole sum would be the place after the last one.
    rank = jnp.minimum(rank, last.astype(rank.dtype))

    return jnp.take_along_axis(inked, rank, axis=1)


def _all_inked(images: np.ndarray, *, must: bool) -> bool:
    """Whether every image has ink. Raises for invalid images and, if `must`, for blank ones."""
    if 0 in images.shape:
        raise ValueError(
            f"`images` is empty, shape {images.shape}; give at least one image with pixels."
        )
    if images.dtype != bool and not (np.isfinite(images).all() and images.min() >= 0):
        raise ValueError(
            "`images` must be finite and not negative; shift or clip the intensities."
        )

    inked = images.any(axis=(1, 2))
    if must and not inked.all():
        raise ValueError(
            f"`images` is zero everywhere in image {np.argmin(inked)} "
            f"({np.sum(~inked)} such), which has no points to draw; remove it, or give "
            "`empty` to say what to draw."
        )

    return bool(inked.all())
