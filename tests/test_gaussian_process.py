"""The Gaussian process over pixels, against NumPy in float64 and its own covariances."""

import os
import subprocess
import sys

import jax
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk
from flowkit.inverse import GaussianProcess

from .oracles import rounded_products


PROCESS = GaussianProcess(0.3)


def matern(x, y, length_scale=0.3):
    distances = np.linalg.norm(x[:, None] - y[None], axis=-1)
    scaled = np.sqrt(3) * distances / length_scale
    return (1 + scaled) * np.exp(-scaled)


@pytest.fixture(scope="module")
def problem():
    """Twelve observations of two channels, and five queries."""
    rng = np.random.default_rng(0)
    coords = rng.uniform(size=(12, 2)).astype(np.float32)
    queries = rng.uniform(size=(5, 2)).astype(np.float32)
    values = rng.normal(size=(12, 2)).astype(np.float32) + np.float32(3)
    return coords, values, queries


def moments(coords, values, queries, nugget=1e-4):
    """Mean, scales, and covariance for scale 1 at the queries, in float64."""
    coords, values, queries = (np.asarray(a, float) for a in (coords, values, queries))
    covariance = matern(coords, coords) + nugget * np.eye(len(coords))
    inverse = np.linalg.inv(covariance)
    ones = np.ones(len(coords))
    constant = ones @ inverse @ values / (ones @ inverse @ ones)
    rest = values - constant
    scale = np.sqrt(np.sum(rest * (inverse @ rest), axis=0) / len(coords))
    across = matern(queries, coords)
    mean = constant + across @ inverse @ rest
    return mean, scale, matern(queries, queries) - across @ inverse @ across.T


def test_constant_and_scale_maximize_the_likelihood(problem):
    """The oracle of the other tests: no other constant or scale is more likely."""
    coords, values, _ = (np.asarray(a, float) for a in problem)
    covariance = matern(coords, coords) + 1e-4 * np.eye(len(coords))
    inverse = np.linalg.inv(covariance)
    ones = np.ones(len(coords))
    constant = (ones @ inverse @ values / (ones @ inverse @ ones))[0]
    _, scales, _ = moments(*problem)

    def log_likelihood(constant, scale):
        rest = values[:, 0] - constant
        return -len(coords) * np.log(scale) - rest @ inverse @ rest / (2 * scale**2)

    best = log_likelihood(constant, scales[0])
    for change in (0.99, 1.01):
        assert log_likelihood(constant * change, scales[0]) < best
        assert log_likelihood(constant, scales[0] * change) < best


def test_mean(problem):
    expected, _, _ = moments(*problem)
    np.testing.assert_allclose(PROCESS.mean(*problem), expected, atol=2e-3)

    # The values themselves, where they were observed, up to the nugget.
    coords, values, _ = problem
    np.testing.assert_allclose(PROCESS.mean(coords, values, coords), values, atol=0.02)


def test_samples_have_the_covariance_of_the_posterior(problem):
    draw = lambda key: PROCESS.sample(*problem, key=key)[0]
    # The nugget of the queries is part of a draw.
    check_moments(draw, moments(*problem), slack=2e-4)


@pytest.mark.parametrize("nugget", [1e-4, 0.5])
def test_images_have_the_covariance_of_the_posterior(nugget):
    """Three pixels of an image of 3 x 4 are observed, without noise or with a lot of it."""
    process = GaussianProcess(0.3, nugget)
    coords = np.asarray(fk.data.pixel_coords(3, 4))
    seen = coords[[1, 6, 8]]
    values = np.asarray([[0.2, 1.0], [0.9, -1.0], [0.4, 2.0]], np.float32)
    draw = lambda key: process.sample_image(seen, values, 3, 4, key=key)[0]
    # The torus is finite.
    check_moments(draw, moments(seen, values, coords, nugget), slack=2e-3)


def test_draws_come_with_their_mean(problem):
    _, mean = PROCESS.sample(*problem, key=jr.key(0))
    np.testing.assert_allclose(mean, PROCESS.mean(*problem), atol=1e-5)

    coords, values, _ = problem
    pixels = fk.data.pixel_coords(3, 4)
    _, mean = PROCESS.sample_image(coords, values, 3, 4, key=jr.key(0))
    np.testing.assert_allclose(mean, PROCESS.mean(coords, values, pixels), atol=1e-5)


def check_moments(draw, expected, *, slack):
    """Mean and covariance of 4,000 samples, within 5 standard errors."""
    mean, scale, covariance = expected
    number = 4000
    samples = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(1), number)))
    variances = np.maximum(np.diag(covariance), 0)
    errors = np.sqrt((np.outer(variances, variances) + covariance**2) / number)
    for channel in range(2):
        of_channel = (samples[..., channel] - mean[:, channel]) / scale[channel]
        error = np.sqrt(variances / number)
        assert np.all(np.abs(of_channel.mean(0)) < 5 * error + slack)
        assert np.all(np.abs(np.cov(of_channel.T) - covariance) < 5 * errors + slack)


def test_draws_on_a_grid_have_the_covariance_of_the_process():
    number = 4000
    draw = jax.jit(jax.vmap(lambda key: PROCESS.draw_image(4, 5, 1, key=key)))
    draws = np.asarray(draw(jr.split(jr.key(2), number)))[..., 0]
    coords = np.asarray(fk.data.pixel_coords(4, 5), float)
    covariance = matern(coords, coords)

    errors = np.sqrt((1 + covariance**2) / number)
    assert np.all(np.abs(draws.mean(0)) < 5 / np.sqrt(number))
    assert np.all(np.abs(np.cov(draws.T) - covariance) < 5 * errors)


@pytest.mark.parametrize(
    ("length_scale", "bound"), [(0.3, 1e-4), (0.5, 3e-3), (1.0, 0.04)]
)
def test_the_torus_is_large_enough(length_scale, bound):
    """The covariance of a draw is the inverse transform of its power."""
    process = GaussianProcess(length_scale)
    found = np.fft.ifft2(np.asarray(process._power(32, 32), float)).real[:32, :32]
    coords = np.asarray(fk.data.pixel_coords(32, 32), float)
    expected = matern(coords[:1], coords, length_scale).reshape(32, 32)
    assert np.max(np.abs(found - expected)) < bound


@pytest.mark.parametrize("number", [1, 12])
def test_equal_values_leave_a_little_doubt(number, problem):
    """Their likeliest scale is 0, and so is that of a single one."""
    coords, _, queries = problem
    coords = coords[:number]
    values = np.full((number, 2), 0.25, np.float32)
    sample = lambda values, key: PROCESS.sample(coords, values, queries, key=key)[0]
    _, _, covariance = moments(coords, values, queries)
    expected = (np.full((5, 2), 0.25), np.full(2, 1e-3), covariance)
    check_moments(lambda key: sample(values, key), expected, slack=1e-3)

    # All values together move all draws by as much.
    gradient = jax.grad(lambda values: sample(values, jr.key(0)).sum())(values)
    assert gradient.sum() == pytest.approx(5 * 2, rel=1e-2)


def test_single_precision_among_doubles(problem):
    with jax.enable_x64(True):
        found = [
            PROCESS.mean(*problem),
            *PROCESS.sample(*problem, key=jr.key(0)),
            *PROCESS.sample_image(*problem[:2], 4, 4, key=jr.key(0)),
        ]
    assert {str(array.dtype) for array in found} == {"float32"}


def test_products_keep_their_digits(problem):
    sample = lambda key: PROCESS.sample(*problem, key=key)
    assert not rounded_products(sample, jr.key(0))


def test_misuse():
    with pytest.raises(ValueError, match="`length_scale` must be positive"):
        GaussianProcess(0.0)
    with pytest.raises(ValueError, match="`h` must be"):
        PROCESS.draw_image(0, 4, 1, key=jr.key(0))


@pytest.mark.parametrize("name", ["mean", "sample", "sample_image"])
def test_nothing_observed_is_refused(name, problem):
    coords, values, queries = problem
    method = getattr(PROCESS, name)
    where = (4, 4) if name == "sample_image" else (queries,)
    keys = {} if name == "mean" else {"key": jr.key(0)}
    with pytest.raises(ValueError, match='`coords` is empty.*start="noise"'):
        method(coords[:0], values[:0], *where, **keys)


def test_gradients_of_a_batch_are_differences():
    """In coordinates and values, of problems that are solved one after another."""
    rng = np.random.default_rng(3)
    problems = [rng.uniform(size=(2, 6, 2)) for _ in range(2)]
    queries = rng.uniform(size=(5, 2))
    with jax.enable_x64(True):
        wave = lambda *seen: jax.numpy.sin(PROCESS.mean(*seen, queries)).sum()
        gradients = jax.jit(jax.vmap(jax.grad(wave, argnums=(0, 1))))(*problems)
        values = jax.jit(jax.vmap(wave))

        for i, gradient in enumerate(gradients):
            direction = rng.normal(size=problems[i].shape)
            moved = lambda h, i=i, d=direction: [
                problem + h * d if j == i else problem
                for j, problem in enumerate(problems)
            ]
            change = (values(*moved(1e-5)) - values(*moved(-1e-5))) / 2e-5
            expected = np.sum(gradient * direction, axis=(1, 2))
            np.testing.assert_allclose(change, expected, rtol=1e-5)


def test_images_on_two_devices_end():
    """A factorization beside another part of the program would wait forever.

    In a process of its own, which can be ended.
    """
    program = """
import jax, jax.random as jr, numpy as np, flowkit as fk
from jax.sharding import NamedSharding, PartitionSpec
mesh = fk.training.data_mesh()
assert mesh.size == 2
images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
pixels = fk.data.sparse_pixels(images, output_ratio=0, key=jr.key(1))
rows = PartitionSpec("data")
seen = jax.device_put(
    (pixels.input_coords, pixels.input_values), NamedSharding(mesh, rows)
)
queries = fk.data.pixel_coords(32, 32)
process = fk.inverse.GaussianProcess(0.3)
mean = jax.vmap(lambda *seen: process.mean(*seen, queries))
options = {"mesh": mesh, "in_specs": rows, "out_specs": rows, "check_vma": False}
compiled = jax.jit(jax.shard_map(mean, **options))
for _ in range(20):
    values = compiled(*seen)
    assert np.isfinite(np.asarray(values)).all()
"""
    # What the suite compiles, without optimization, never waits.
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=os.environ | flags, timeout=120, check=True)
