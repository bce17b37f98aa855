"""Images as point clouds, and the handwritten digits that scikit-learn ships."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from flowkit._types import AnyArray, is_traced, PRNGKey, Scalar
from flowkit.data._sets import PointSets, Split
from flowkit.data._split import train_test_split


class Images(NamedTuple):
    """Grey images with what they show.

    - `images`: `(b, h, w)`, intensities in `[0, 1]`, row 0 at the top.
    - `labels`: `(b,)`, integers.
    """

    images: Float[np.ndarray, "b h w"]
    labels: Int[np.ndarray, " b"]


def load_digits(*, test_fraction: float = 0.1, seed: int = 0) -> Split:
    """The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn, shuffled and split by class.

    The same seed gives the same split. Nothing is downloaded.

    **Reference:** Optical recognition of handwritten digits, E. Alpaydin and C. Kaynak, UCI machine learning
    repository, 1998.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            '`load_digits` reads the digits of scikit-learn: `pip install "flowkit-jax[data]"`.'
        ) from error
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = Images((pixels.reshape(-1, 8, 8) / 16).astype(np.float32), labels.astype(np.int32))
    return train_test_split(images, test_fraction=test_fraction, seed=seed, stratify=images.labels)


def digits(
    num_points: int = 64,
    *,
    draws: int = 1,
    jitter: float = 0.5,
    test_fraction: float = 0.1,
    seed: int = 0,
    key: PRNGKey,
) -> Split:
    """`load_digits` as clouds of `num_points` points by `images_to_points`, with labels.

    **Arguments:**

    - `draws`: how many independent clouds of each image. Draw by draw: `points.reshape(draws, images, n, 2)`
        has the draws of one image along the first axis. With `draws=2` the distance between the two draws of
        a test image is the floor of every reconstruction error.
    - `jitter`: half the width of the blur, in pixels.
    - `test_fraction`, `seed`: the split, which does not depend on the key.

    **Returns:** `Split(train, test)` of `PointSets` without a mask.
    """
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1, got {draws}.")
    split = load_digits(test_fraction=test_fraction, seed=seed)
    train_key, test_key = jr.split(key)
    return Split(
        _clouds(split.train, num_points, draws, jitter, train_key),
        _clouds(split.test, num_points, draws, jitter, test_key),
    )


def _clouds(images: Images, num_points: int, draws: int, jitter: float, key: PRNGKey) -> PointSets:
    repeated = np.tile(images.images, (draws, 1, 1))
    points = images_to_points(repeated, num_points, jitter=jitter, key=key)
    return PointSets(np.asarray(points), labels=np.tile(images.labels, draws))


def images_to_points(
    images: Real[AnyArray, "b h w"] | Bool[AnyArray, "b h w"],
    num_points: int,
    *,
    jitter: Scalar = 0.5,
    key: PRNGKey,
) -> Float[Array, "b {num_points} 2"]:
    """Draws points from images, as if each were a density: dark paper is empty, ink is likely.

    Pixels are chosen with replacement with probability proportional to their intensity, then moved by a
    uniform jitter. Row 0 is up. The image's longer side spans `[-1, 1]`, so that with the default jitter,
    which fills the pixel, every coordinate lies within.

    Call it again with another key for an independent draw of the same images. For equally likely pixels above
    a threshold, hand over `images > threshold`.

    **Arguments:**

    - `images`: `(b, h, w)`, not negative, in any unit; integers and booleans too.
    - `num_points`: points per image, `n`.
    - `jitter`: half the width of the blur, in pixels; 0 gives the centres.

    **Returns:** `(b, n, 2)`, `x` to the right and `y` upwards, in the images' precision.
    """
    if num_points < 1:
        raise ValueError(f"`num_points` must be at least 1, got {num_points}.")
    if not is_traced(jitter) and not 0 <= float(jitter) < float("inf"):
        raise ValueError(f"`jitter` must be a finite number >= 0, got {jitter}.")
    if not is_traced(images):
        _check_images(np.asarray(images))
    return _images_to_points(images, num_points, jitter, key)


@ft.partial(jax.jit, static_argnums=1)
def _images_to_points(images: Array, num_points: int, jitter: Array, key: PRNGKey) -> Array:
    dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.zeros(()).dtype
    # Half precision has too few numbers between 0 and 1 to choose a pixel by.
    images = jnp.asarray(images, jnp.float32 if dtype.itemsize < 4 else dtype)
    keys = jr.split(key, images.shape[0])
    points = jax.vmap(lambda image, key: _image_to_points(image, num_points, jitter, key))(images, keys)
    return points.astype(dtype)


def _image_to_points(image: Array, num_points: int, jitter: Array, key: PRNGKey) -> Array:
    pixel_key, jitter_key = jr.split(key)
    height, width = image.shape
    # Ascending order puts empty pixels first, where the cumulative sum is exactly zero: no rounding can choose them.
    order = jnp.argsort(image.ravel())
    cdf = jnp.cumsum(image.ravel()[order])
    u = jr.uniform(pixel_key, (num_points,), image.dtype)
    row, column = jnp.divmod(order[jnp.searchsorted(cdf, u * cdf[-1], side="right")], width)
    # Twice the distance from the middle is a whole number.
    centres = 0.5 * jnp.stack([2 * column - (width - 1), (height - 1) - 2 * row], axis=-1).astype(image.dtype)
    offsets = jr.uniform(jitter_key, (num_points, 2), image.dtype, minval=-1, maxval=1)
    return (centres + jitter * offsets) * (2 / max(height, width))


def _check_images(images: np.ndarray) -> None:
    if 0 in images.shape:
        raise ValueError(f"`images` is empty, shape {images.shape}; there must be an image with pixels.")
    if not np.isfinite(images).all() or (images < 0).any():
        raise ValueError("`images` must be finite and not negative; shift or clip the intensities.")
    if not (inked := images.any(axis=(1, 2))).all():
        raise ValueError(
            f"`images` is zero everywhere in image {np.argmin(inked)} ({np.sum(~inked)} such), which has no "
            "points to draw; remove it."
        )
