"""The handwritten digits that scikit-learn ships, as images and as point clouds."""

import jax.random as jr
import numpy as np

from flowkit._types import Number, PRNGKey
from flowkit.data._images import Images, images_to_points
from flowkit.data._sets import PointSets, Split
from flowkit.data._split import train_test_split


def load_digits(*, test_fraction: Number = 0.1, seed: int = 0) -> Split:
    """The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn.

    They are shuffled and split by class. The same seed gives the same split. Nothing is
    downloaded.

    **Reference:** Optical recognition of handwritten digits, E. Alpaydin and C. Kaynak, UCI
    machine learning repository, 1998.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "`load_digits` reads the digits of scikit-learn: "
            '`pip install "flowkit-jax[data]"`.'
        ) from error
    pixels, labels = datasets.load_digits(return_X_y=True)

    # Their unit is 1/16.
    intensities = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    images = Images(intensities, labels.astype(np.int32))
    return train_test_split(
        images, test_fraction=test_fraction, seed=seed, stratify=images.labels
    )


def digits(
    num_points: int = 64,
    *,
    draws: int = 1,
    jitter: float = 0.5,
    test_fraction: Number = 0.1,
    seed: int = 0,
    key: PRNGKey,
) -> Split:
    """`load_digits` as clouds of `num_points` points by `images_to_points`, with labels.

    **Arguments:**

    - `num_points`: the number of points per cloud, `n`.
    - `draws`: the number of independent clouds of each image. They are ordered draw by
        draw: `points.reshape(draws, images, n, 2)` has the draws of one image along the
        first axis. With `draws=2` the distance between the two draws of a test image is the
        floor of every reconstruction error.
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


def _clouds(
    images: Images, num_points: int, draws: int, jitter: float, key: PRNGKey
) -> PointSets:
    repeated = np.tile(images.images, (draws, 1, 1))
    points = images_to_points(repeated, num_points, jitter=jitter, key=key)
    return PointSets(np.asarray(points), labels=np.tile(images.labels, draws))
