"""Toys against closed forms and scikit-learn; digits against their images."""

import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy import stats
from sklearn import datasets

import flowkit as fk
from flowkit import data


NUM = 40_000

# Each sampler with the mean and covariance of its law, by integrals on paper.
PI, BLUR = np.pi, 0.05**2 * np.eye(2)
HALF = 0.5 - 2 / PI
TOYS = {
    data.mixture_1d: ([-0.8], [[3.916]]),
    data.eight_gaussians: ([0, 0], np.eye(2) * (12.5 + 0.1)),
    data.moons: (
        [0.5, 0.25],
        [[0.75, HALF / 2 - 0.125], [HALF / 2 - 0.125, (0.75 + HALF) / 2 - 0.0625]]
        + BLUR,
    ),
    data.circles: ([0, 0], np.eye(2) * 0.625 / 2 + BLUR),
    data.s_curve: (
        [0, 0],
        [[0.5, -1 / (3 * PI)], [-1 / (3 * PI), 1.5 + 4 / (3 * PI)]] + BLUR,
    ),
    data.spiral: (
        [0, 0],
        [[1.51 + PI**-2 / 4, -0.75 / PI], [-0.75 / PI, 1.51 - PI**-2 / 4]],
    ),
    data.pinwheel: ([0, 0], np.eye(2) * 2 * (1 + 0.3**2 + 0.1**2)),
    data.checkerboard: ([0, 0], [[16 / 3, 1], [1, 16 / 3]]),
}
SCIKIT = {
    data.moons: lambda num: datasets.make_moons(num, noise=0.05, random_state=0)[0],
    data.circles: lambda num: datasets.make_circles(
        num, noise=0.05, factor=0.5, random_state=0
    )[0],
    data.s_curve: lambda num: datasets.make_s_curve(num, noise=0.05, random_state=0)[0][
        :, [0, 2]
    ],
}
each_toy = pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)


@pytest.fixture
def compilations():
    """Counts programs that XLA compiles."""
    count = []

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            count.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


@each_toy
def test_toys_keep_the_contract(toy, key, compilations):
    points = toy(NUM, key=key)
    assert points.shape == (NUM, len(TOYS[toy][0]))
    assert points.dtype == jnp.float32
    assert jnp.isfinite(points).all()
    compilations.clear()
    again = toy(NUM, key=key)
    assert not compilations
    assert np.array_equal(points, again)
    assert not np.array_equal(points, toy(NUM, key=jr.fold_in(key, 1)))


@each_toy
def test_toys_have_their_moments(toy, key):
    mean, covariance = TOYS[toy]
    centred = np.asarray(toy(NUM, key=key), np.float64) - mean
    for moment, exact in (
        (centred, 0),
        (centred[:, :, None] * centred[:, None, :], covariance),
    ):
        errors = moment.std(axis=0) / np.sqrt(len(moment))
        assert np.all(np.abs(moment.mean(axis=0) - exact) < 5 * errors)


@pytest.mark.parametrize("toy", SCIKIT, ids=lambda toy: toy.__name__)
def test_toys_are_the_sets_of_scikit_learn(toy, key):
    """Both axes and two diagonals have the same law (two-sample Kolmogorov-Smirnov)."""
    ours, theirs = np.asarray(toy(NUM, key=key)), SCIKIT[toy](NUM)
    for direction in ([1, 0], [0, 1], [1, 1], [1, -2]):
        assert stats.kstest(ours @ direction, theirs @ direction).pvalue > 1e-4


def test_mixture_1d_is_its_exact_density(key):
    points = np.asarray(data.mixture_1d(NUM, key=key))[:, 0]
    means, stds, weights = data.MIXTURE_1D
    cdf = lambda x: stats.norm.cdf((x[:, None] - means[:, 0]) / stds[:, 0]) @ weights
    assert cdf(np.zeros(1)) == pytest.approx(0.695782, abs=1e-6)
    assert stats.kstest(points, cdf).pvalue > 1e-4
    assert float(
        fk.GaussianMixture(*data.MIXTURE_1D).log_prob(jnp.array([-2.0]))
    ) == pytest.approx(-1.052470, abs=1e-5)


@pytest.mark.parametrize("num", [1, 10, 500])
def test_mixture_1d_with_exact_counts(num, key):
    points = data.mixture_1d(num, exact_counts=True, key=key)
    shuffled = data.mixture_1d(num, exact_counts=True, key=jr.fold_in(key, 1))
    # A point beyond 0 belongs to the other component by chance only: 0.6% and 0.04% of them.
    assert abs(int(jnp.sum(points < 0)) - int(0.7 * num)) <= 0.03 * num + 1
    assert num == 1 or not jnp.array_equal(points < 0, shuffled < 0)


def test_eight_gaussians_is_its_mixture(key):
    means, stds, weights = data.eight_gaussians_mixture(radius=3.0, std=0.2)
    points = np.asarray(data.eight_gaussians(NUM, radius=3.0, std=0.2, key=key))
    distance = np.linalg.norm(points[:, None] - means, axis=-1)
    nearest = distance.argmin(axis=1)
    assert (
        stats.chisquare(np.bincount(nearest, minlength=8), NUM * weights).pvalue > 1e-4
    )
    assert (
        stats.kstest(distance.min(axis=1) / stds[0, 0], stats.rayleigh.cdf).pvalue
        > 1e-4
    )


def test_checkerboard_is_uniform_on_its_squares(key):
    points = np.asarray(data.checkerboard(NUM, key=key))
    column, row = np.floor((points.T + 4) / 2).astype(int)
    assert np.all((column + row) % 2 == 0)
    assert np.abs(points).max() <= 4
    assert (
        stats.chisquare(np.unique(4 * column + row, return_counts=True)[1]).pvalue
        > 1e-4
    )
    for axis in ((points + 4) % 2).T:
        assert stats.kstest(axis / 2, "uniform").pvalue > 1e-4


def test_spiral_without_noise_lies_on_its_arms(key):
    x, y = np.asarray(data.spiral(NUM, noise=0.0, key=key), np.float64).T
    radius = np.hypot(x, y)
    turns = (
        np.arctan2(y, x) - np.pi * radius
    ) / np.pi  # whole on the arms, both parities by chance
    assert np.abs(turns - np.round(turns)).max() < 1e-4
    assert stats.binomtest(int(np.sum(np.round(turns) % 2)), NUM).pvalue > 1e-4
    assert stats.kstest(radius / 3, "uniform").pvalue > 1e-4


def test_pinwheel_unwinds_into_gaussians(key):
    points = np.asarray(
        data.pinwheel(NUM, num_arms=3, radial_std=0.1, tangential_std=0.05, key=key),
        np.float64,
    )
    z = (points[:, 0] + 1j * points[:, 1]) / 2
    arms = np.exp(-2j * np.pi * np.arange(3) / 3)
    # The shear depends on x, which the modulus gives up to the small y: undo it with the
    # arm that fits best.
    straight = z[:, None] * np.exp(-0.25j * np.exp(np.abs(z)))[:, None] * arms
    best = straight[np.arange(NUM), np.abs(np.angle(straight)).argmin(axis=1)]
    assert stats.kstest((best.real - 1) / 0.1, "norm").pvalue > 1e-4
    assert stats.kstest(best.imag / 0.05, "norm").pvalue > 1e-3


def test_another_noise_is_not_another_program(key, compilations):
    data.moons(NUM, noise=0.1, key=key)
    compilations.clear()
    data.moons(NUM, noise=0.2, key=key)
    data.moons(NUM, noise=np.float32(0.3), key=key)
    assert len(compilations) <= 1  # a NumPy scalar is another type once


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda key: data.moons(0, key=key), "`num` must be at least 1"),
        (
            lambda key: data.circles(5, noise=-1.0, key=key),
            "`noise` must be a finite number",
        ),
        (lambda key: data.eight_gaussians(5, std=float("nan"), key=key), "`std`"),
        (lambda key: data.pinwheel(5, num_arms=0, key=key), "`num_arms`"),
        (lambda key: data.digits(draws=0, key=key), "`draws`"),
        (lambda key: data.load_digits(test_fraction=1.0), "`test_fraction`"),
        (
            lambda key: data.images_to_points(np.ones((1, 2, 2)), 0, key=key),
            "`num_points`",
        ),
        (
            lambda key: data.images_to_points(
                np.ones((1, 2, 2)), 3, jitter=-1.0, key=key
            ),
            "`jitter`",
        ),
        (
            lambda key: data.images_to_points(np.ones((0, 2, 2)), 3, key=key),
            "`images` is empty",
        ),
        (
            lambda key: data.images_to_points(-np.ones((1, 2, 2)), 3, key=key),
            "not negative",
        ),
        (
            lambda key: data.images_to_points(np.full((1, 2, 2), np.nan), 3, key=key),
            "finite",
        ),
        (
            lambda key: data.images_to_points(
                np.array([[[1.0, 0.0]], [[0.0, 0.0]]]), 3, key=key
            ),
            "zero everywhere in image 1",
        ),
    ],
)
def test_bad_values_are_named(call, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        call(key)


@pytest.mark.parametrize("wrong", [jr.PRNGKey(0), np.zeros(2, np.uint32), 0])
def test_old_keys_are_refused(wrong):
    message = r"`key` must be made by `jax.random.key\(seed\)`.*got (Array|array|0)"
    with pytest.raises(TypeCheckError, match=message):
        data.moons(5, key=wrong)


def test_load_digits_is_whole_stratified_and_repeatable():
    split = data.load_digits(test_fraction=0.2, seed=3)
    again = data.load_digits(test_fraction=0.2, seed=3)
    pixels, target = datasets.load_digits(return_X_y=True)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(again), strict=True)
    )
    assert not np.array_equal(
        split.test.labels, data.load_digits(test_fraction=0.2, seed=4).test.labels
    )
    assert len(split.test.labels) == round(0.2 * 1797)
    share = np.bincount(split.test.labels) / np.bincount(target)
    assert np.all(np.abs(share - 0.2) * np.bincount(target) <= 1)
    images, labels = (np.concatenate(parts) for parts in zip(*split, strict=True))
    rows = lambda images, labels: sorted(
        zip(map(bytes, images.astype(np.uint8)), labels.tolist(), strict=True)
    )
    assert rows(images * 16, labels) == rows(pixels.reshape(-1, 8, 8), target)


def test_load_digits_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"flowkit-jax\[data\]"):
        data.load_digits()


def test_digits_draws_are_independent_draws_of_the_same_images(key):
    sets = data.digits(32, draws=3, seed=1, key=key).test
    images = data.load_digits(seed=1).test
    draws = sets.points.reshape(3, -1, 32, 2)
    assert sets.points.dtype == np.float32
    assert isinstance(sets.points, np.ndarray)
    assert sets.mask is None
    assert np.array_equal(sets.labels, np.tile(images.labels, 3))
    assert not np.isin(draws[0], draws[1]).any(axis=(1, 2)).all()
    for draw in draws:
        column = np.floor((draw[..., 0] + 1) * 4).astype(int)
        row = np.floor((1 - draw[..., 1]) * 4).astype(int)
        assert np.all(
            images.images[np.arange(len(images.images))[:, None], row, column] > 0
        )


def test_images_to_points_follows_the_intensities(key):
    image = np.array([[0.0, 1.0, 0.0, 3.0], [6.0, 0.0, 10.0, 0.0]])
    points = np.asarray(data.images_to_points(image[None], NUM, key=key))[0]
    row, column = (
        np.floor(1 - 2 * points[:, 1]).astype(int),
        np.floor(2 + 2 * points[:, 0]).astype(int),
    )
    counts = np.zeros_like(image)
    np.add.at(counts, (row, column), 1)
    assert np.array_equal(counts > 0, image > 0)
    assert stats.chisquare(counts[image > 0], NUM * image[image > 0] / 20).pvalue > 1e-4
    inside = np.stack([2 + 2 * points[:, 0] - column, 1 - 2 * points[:, 1] - row])
    for axis in inside:
        assert stats.kstest(axis, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(inside)[0, 1]) < 5 / np.sqrt(NUM)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, np.float32])
def test_images_to_points_without_jitter_gives_upright_centres(dtype, key):
    image = np.zeros((1, 3, 3), dtype)
    image[0, 0, 2] = 1
    points = data.images_to_points(image, 5, jitter=0.0, key=key)
    assert points.dtype == (jnp.float16 if dtype == np.float16 else jnp.float32)
    assert np.allclose(points, [2 / 3, 2 / 3], rtol=1e-3)


def test_images_to_points_compiles_once_and_jits(key, compilations):
    images = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
    eager = data.images_to_points(images, 7, key=key)
    compilations.clear()
    assert np.array_equal(eager, data.images_to_points(images, 7, key=key))
    assert not compilations
    assert np.allclose(
        eager,
        jax.jit(lambda images, key: data.images_to_points(images, 7, key=key))(
            images, key
        ),
    )
