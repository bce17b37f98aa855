"""Similarity of images, features of sets of them, and their record over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from numpy.lib.stride_tricks import sliding_window_view

import flowkit.metrics as metrics


def uniform(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


X = uniform(0, 17, 13, 3)
Y = np.clip(X + 0.3 * uniform(1, 17, 13, 3) - 0.1, 0, 1)
WINDOWS = [metrics.GaussianWindow(), metrics.UniformWindow()]


def brute_ssim(x, y, weights, correction, data_range):
    """The definition: every window on its own, with moments around its own mean."""
    size = len(weights)
    values = []
    for a, b in zip(np.moveaxis(x, -1, 0), np.moveaxis(y, -1, 0), strict=True):
        a = sliding_window_view(a.astype(float), (size, size))
        b = sliding_window_view(b.astype(float), (size, size))
        mean_a = np.sum(weights * a, (2, 3), keepdims=True)
        mean_b = np.sum(weights * b, (2, 3), keepdims=True)
        var_a = correction * np.sum(weights * (a - mean_a) ** 2, (2, 3))
        var_b = correction * np.sum(weights * (b - mean_b) ** 2, (2, 3))
        covariance = np.sum(weights * (a - mean_a) * (b - mean_b), (2, 3))
        mean_a, mean_b = mean_a[..., 0, 0], mean_b[..., 0, 0]
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        above = (2 * mean_a * mean_b + c1) * (2 * correction * covariance + c2)
        below = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
        values.append(above / below)
    return np.mean(values)


def gaussian_weights():
    square = np.sum(np.square(np.mgrid[-5:6, -5:6]), axis=0)
    weights = np.exp(-square / (2 * 1.5**2))
    return weights / weights.sum()


# ---- psnr and ssim


def test_psnr():
    x = np.zeros((17, 13, 3), np.float32)
    # The square of 0.1 is 0.01, and the log of 100 in base 10 is 2.
    assert metrics.psnr(x, x + np.float32(0.1)) == pytest.approx(20, abs=1e-4)
    assert metrics.psnr(x, x) == np.inf
    expected = 10 * np.log10(4 / np.mean(np.square(X.astype(float) - Y)))
    assert metrics.psnr(X, Y, data_range=2.0) == pytest.approx(expected, abs=1e-4)


def test_ssim_is_its_definition():
    cases = [
        (WINDOWS[0], gaussian_weights(), 1),
        (WINDOWS[1], np.full((7, 7), 1 / 49), 49 / 48),
    ]
    for window, weights, correction in cases:
        for data_range in (1.0, 0.2):
            found = metrics.ssim(X, Y, data_range=data_range, window=window)
            expected = brute_ssim(X, Y, weights, correction, data_range)
            assert found == pytest.approx(expected, abs=1e-5)
            assert 0.05 < expected < 0.97


@pytest.mark.parametrize("window", WINDOWS)
def test_ssim_of_equal_and_of_constant_images(window):
    ones = np.ones((17, 13, 3), np.float32)
    assert metrics.ssim(X, X, window=window) == pytest.approx(1, abs=1e-6)
    for a, b in ((0.2, 0.7), (0.0, 1.0), (0.9, 0.9)):
        found = metrics.ssim(np.float32(a) * ones, np.float32(b) * ones, window=window)
        expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
        # The rounding of a mean of hundreds of equal values.
        assert found == pytest.approx(expected, abs=5e-6)


def test_images_are_vmapped_and_differentiated():
    pairs = np.stack([X, Y]), np.stack([Y, Y])
    found = jax.vmap(metrics.ssim)(*pairs)
    np.testing.assert_allclose(found, [metrics.ssim(X, Y), 1], atol=1e-6)
    # Equal images are the maximum.
    gradient = jax.grad(lambda y: metrics.ssim(X, y))(jnp.asarray(X))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert metrics.ssim(X.astype(jnp.bfloat16), Y).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.psnr(X, Y, data_range=0.0), "`data_range` is 0.0"),
        (lambda: metrics.psnr(X, np.full_like(X, np.nan)), "`y` holds values"),
        (lambda: metrics.ssim(X[:10], Y[:10]), "`window` has size 11"),
        (
            lambda: metrics.ssim(X, Y, window=metrics.GaussianWindow(std=0.0)),
            "`window` must have a positive `std`",
        ),
        (
            lambda: metrics.ssim(X, Y, window=metrics.UniformWindow(1)),
            "`window` has size 1",
        ),
        (
            lambda: metrics.frechet_distance(X[:1], X, jnp.ravel),
            "`x` holds one example",
        ),
        (
            lambda: metrics.frechet_distance(X, X, lambda x: x),
            r"`features` gives shape \(13, 3\)",
        ),
        (
            lambda: metrics.frechet_distance(X, X, lambda x: jnp.log(-1 - x[0])),
            "`features` gives values that are not finite",
        ),
        (
            lambda: metrics.frechet_distance(X, X, jnp.ravel, block=0),
            "`block` must be at least 1",
        ),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- the Frechet distance


def features(image):
    """Five numbers of an image `(3, 2)`, far from zero."""
    flat = jnp.ravel(image)
    return 30 + jnp.sin(flat[:5]) * flat[1:]


def brute_frechet(a, b):
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(cov_a @ cov_b))
    shift = np.sum(np.square(a.mean(0) - b.mean(0)))
    return shift + np.trace(cov_a + cov_b - 2 * root)


def numpy_features(images):
    flat = np.asarray(images, float).reshape(len(images), -1)
    return 30 + np.sin(flat[:, :5]) * flat[:, 1:]


def test_frechet_distance_is_its_definition():
    x, y = uniform(2, 53, 3, 2), 1.4 * uniform(3, 40, 3, 2)
    expected = brute_frechet(numpy_features(x), numpy_features(y))
    # Blocks that divide the sets, that do not, and that are larger than them.
    for block in (10, 64):
        found = metrics.frechet_distance(x, y, features, block=block)
        assert found == pytest.approx(expected, rel=1e-4)
    assert metrics.frechet_distance(x, x, features, block=10) < 1e-6


def test_frechet_distance_of_fewer_examples_than_features():
    x, y = uniform(2, 4, 3, 2), uniform(3, 4, 3, 2)
    shift = np.sum(np.square(numpy_features(x).mean(0) - numpy_features(y).mean(0)))
    found = metrics.frechet_distance(x, y, features)
    assert np.isfinite(found)
    assert found > shift


def test_frechet_distance_of_features_far_from_zero():
    """Means are resolved far below the distance of float32 numbers, which is 1e-3 there."""
    x = uniform(2, 4000, 2)
    far = lambda example: example + 1e4
    found = metrics.frechet_distance(x, x + np.float32(0.01), far)
    assert found == pytest.approx(2 * 0.01**2, rel=0.02)


# ---- the record


def test_tracker():
    empty = metrics.Tracker()
    first = empty.add(mse=np.asarray([1.0, 2.0], np.float32), ssim=None)
    second = first.add(mse=jnp.asarray([6.0], jnp.bfloat16), mae=3, psnr=np.inf)
    assert second.means() == {"mse": 3, "mae": 3, "psnr": np.inf}
    assert second.stds()["mse"] == pytest.approx(np.std([1, 2, 6]))
    assert np.isnan(second.stds()["psnr"])
    assert second.counts() == {"mse": 3, "mae": 1, "psnr": 1}
    assert first.means() == {"mse": 1.5}
    assert empty.means() == {}
    assert empty.add(mse=np.zeros(0)).means() == {}

    header, line, *_ = str(second).splitlines()
    assert header.split() == ["metric", "mean", "std", "count"]
    assert line.split() == ["mse", "3", "2.16", "3"]
