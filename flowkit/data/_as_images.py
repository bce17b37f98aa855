"""Arrays of intensities as the images that a model works on."""

import math

import numpy as np
from jaxtyping import Bool, Float, Real
from PIL import Image

from flowkit._checks import as_size
from flowkit._types import AnyArray


def as_images(
    images: Real[AnyArray, "b h w"]
    | Bool[AnyArray, "b h w"]
    | Real[AnyArray, "b h w c"]
    | Bool[AnyArray, "b h w c"],
    side: int | None = None,
    *,
    low: float = -1.0,
) -> Float[np.ndarray, "b _ _ _"]:
    """Intensities in [0, 1] as images in [-1, 1] with an axis of channels, resized.

    Each value becomes `low + (1 - low) * intensity`.

    Images are resized by Pillow with its bilinear filter, one at a time on the host, so
    that only the result takes memory. Nothing is rounded to 8 bits. An image that shrinks
    is smoothed first (the filter is as wide as the pixels of the result); plain
    interpolation would skip pixels, and fine lines would come and go. An image that is not
    square is stretched.

    The 60,000 images of MNIST take 0.2 GB at 28 x 28 pixels, 1 GB at 64 x 64 and 3.9 GB at
    128 x 128. To resize one batch at a time, use this function in a transform:
    `fk.data.batches(images, 64, transform=lambda batch, rng: fk.data.as_images(batch, 128))`.

    **Arguments:**

    - `images`: `(b, h, w)` or `(b, h, w, c)`, in [0, 1], as `load_mnist` and `load_cifar10`
        give them, or booleans.
    - `side`: the height and width to resize to; `None` keeps the size.
    - `low`: the value of an intensity of 0, below 1. The value of 1 is always 1.

    **Returns:** float32 `(b, side, side, c)`, where `c` is 1 for gray images.

    **Raises:** `ValueError` for integers and values outside [0, 1]: divide bytes by 255.
    """
    intensities = np.asarray(images)
    _check(intensities)
    if not -math.inf < low < 1:
        raise ValueError(f"`low` must be a finite number below 1, got {low}.")

    if intensities.ndim == 3:
        intensities = intensities[..., None]
    b, h, w, c = intensities.shape
    size = (h, w)
    if side is not None:
        side = as_size("side", side)
        size = (side, side)

    out = np.empty((b, *size, c), np.float32)
    if size == (h, w):
        out[...] = intensities
    else:
        for index in range(b):
            for channel in range(c):
                out[index, ..., channel] = _resized(
                    intensities[index, ..., channel], size
                )

    # In place, because the result may be a large part of the memory.
    out *= np.float32(1 - low)
    out += np.float32(low)
    return out


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Pillow keeps a plane of float32 as it is, in its mode "F".
    picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    h, w = size
    return np.asarray(picture.resize((w, h), Image.Resampling.BILINEAR))


def _check(intensities: np.ndarray) -> None:
    if 0 in intensities.shape:
        raise ValueError(
            f"`images` is empty, shape {intensities.shape}; give at least one image."
        )
    if intensities.dtype == bool:
        return
    if np.issubdtype(intensities.dtype, np.integer):
        raise ValueError(
            f"`images` must be intensities in [0, 1], got {intensities.dtype}; divide "
            "bytes by 255."
        )

    low = intensities.min()
    high = intensities.max()
    # Written so that NaN is refused, too.
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"`images` must be intensities in [0, 1], got {low} to {high}; divide images "
            "of 0 to 255 by 255."
        )
