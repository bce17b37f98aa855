import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import flowkit as fk

from .oracles import mixture_1d, mixture_2d, mixture_log_prob, PATHS, PREDICTIONS


class Plain(fk.AbstractDistribution):
    """A distribution of which no flow is known."""

    def sample(self, shape, *, key):
        return jnp.zeros(shape)

    def log_prob(self, x):
        return jnp.zeros(())


# x, t, then log p_t, data, noise, velocity and score on the linear path, worked out
# from the closed form and
# checked against quadrature; at t = 1 the score column is that of the path, 0 at the point -2.
TABLE = [
    (0, 0, -0.918939, -0.800000, 0, -0.800000, 0),
    (1, 0, -1.418939, -0.800000, 1, -1.800000, -1),
    (-0.5, 0.25, -0.852515, -1.399475, -0.200175, -1.199300, 0.266900),
    (0, 0.5, -1.737345, -0.498552, 0.498552, -0.997104, -0.997104),
    (0.5, 0.5, -1.771008, 1.312522, -0.312522, 1.625043, 0.625043),
    (0, 0.75, -3.402132, -0.219061, 0.657184, -0.876245, -2.628735),
    (1, 0.75, -1.928782, 1.489387, -0.468160, 1.957547, 1.872640),
    (-2, 1, -1.052470, -2, 0, -2, 0),
]


@pytest.mark.parametrize(
    ("x", "t", "log_p", "data", "noise", "velocity", "score"), TABLE
)
def test_mixture_table(x, t, log_p, data, noise, velocity, score):
    with jax.enable_x64(True):
        mixture, x = mixture_1d(jnp.float64), jnp.array([float(x)])
        flow, p_t = fk.exact_flow(mixture), fk.marginal(mixture, fk.LinearPath(), t)
        got = (
            flow(t, x),
            flow.predict(fk.Target(), t, x),
            flow.predict(fk.Noise(), t, x),
            p_t.score(x),
        )
        np.testing.assert_allclose(p_t.log_prob(x), log_p, atol=5e-7)
        expected = np.array([velocity, data, noise, score])[:, None]
        # The last row's score is that of the data themselves, (m - x) / s^2 = 0 at the first mean.
        np.testing.assert_allclose(got, expected, atol=5e-7)


@pytest.mark.parametrize(
    ("x", "t", "slope"), [(0, 0, -1), (0, 0.5, 5.105084), (0.5, 0.5, 2.763563)]
)
def test_mixture_slopes(x, t, slope):
    with jax.enable_x64(True):
        flow = fk.exact_flow(mixture_1d(jnp.float64))
        derivative = jax.jacfwd(lambda x: flow(t, x))(jnp.array([float(x)]))
        np.testing.assert_allclose(derivative, [[slope]], atol=5e-7)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_continuity_equation(path):
    """d/dt log p + div v + v . score = 0, with log p, its derivatives and the
    divergence by autodiff; for a standard source and another one."""
    with jax.enable_x64(True):
        mixture = mixture_2d(jnp.float64)

        @jax.jit
        def residual(moments, t, x):
            source = fk.Normal(*moments)
            flow = fk.exact_flow(mixture, path, source=source)
            law = lambda t: fk.marginal(mixture, path, t, source=source)
            change, score = jax.grad(lambda t, x: law(t).log_prob(x), (0, 1))(t, x)
            divergence = jnp.trace(jax.jacfwd(lambda x: flow(t, x))(x))
            return change + divergence + flow(t, x) @ score

        for moments in ([[0.0, 0.0], [1.0, 1.0]], [[0.5, -1.0], [0.7, 1.6]]):
            for t in (0.2, 0.7):
                for x in ([0.3, -0.4], [-1.0, 2.0]):
                    assert abs(residual(np.array(moments), t, np.array(x))) < 1e-8


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "noise", "target"])
def test_closed_forms_agree_with_conversions(path, prediction):
    """Each prediction has its own closed form; the conversion of the velocity is
    another way to it."""
    with jax.enable_x64(True):
        mixture, x = mixture_2d(jnp.float64), jnp.array([0.3, 1.2])
        velocity = fk.exact_flow(mixture, path)
        direct = fk.exact_flow(mixture, path, prediction=PREDICTIONS[prediction])
        for t in (0.1, 0.6, 0.95):
            value = velocity.predict(PREDICTIONS[prediction], t, x)
            np.testing.assert_allclose(
                direct.network(jnp.asarray(t), x), value, atol=1e-10
            )


def test_one_gaussian_is_a_mixture_with_one_component():
    with jax.enable_x64(True):
        mean, std = 1.3, 0.5
        mixture = fk.GaussianMixture(jnp.array([[mean]]), jnp.array([std]))
        x = jnp.array([0.7])
        for t in (0.0, 0.4, 1.0):
            variance = (1 - t) ** 2 + t**2 * std**2
            expected = mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)
            np.testing.assert_allclose(
                fk.exact_flow(mixture)(t, x), expected, atol=1e-12
            )
            np.testing.assert_allclose(
                fk.exact_flow(fk.Normal(mean, std))(t, x), expected, atol=1e-12
            )


def test_finite_data_by_brute_force(key):
    with jax.enable_x64(True):
        data = jr.normal(key, (5, 2, 3), jnp.float64)
        flow = fk.exact_flow(fk.Empirical(data))
        x, t = jnp.full((2, 3), 0.3), 0.6
        log_weights = (
            -0.5
            * np.sum((np.asarray(x) - t * np.asarray(data)) ** 2, axis=(1, 2))
            / (1 - t) ** 2
        )
        weights = np.exp(log_weights - log_weights.max())
        mean = np.tensordot(weights / weights.sum(), data, axes=1)
        np.testing.assert_allclose(flow.predict(fk.Target(), t, x), mean, atol=1e-12)
        np.testing.assert_allclose(flow(t, x), (mean - x) / (1 - t), atol=1e-12)


def test_finite_data_at_its_end_is_finite():
    """The named exception: on a datum at t = 1 the noise is not determined; the data are."""
    data = jnp.array([[0.0, 1.0], [2.0, 3.0]])
    flow = fk.exact_flow(fk.Empirical(data), prediction=fk.Target())
    np.testing.assert_array_equal(flow.predict(fk.Target(), 1.0, data[1]), data[1])
    assert np.all(np.isfinite(flow(1.0, data[1])))


def test_marginal_of_finite_data():
    with jax.enable_x64(True):
        data = jnp.array([[0.0, 1.0], [2.0, 3.0]])
        p_t = fk.marginal(fk.Empirical(data), fk.LinearPath(), 0.5)
        x = np.array([0.2, 0.9])
        densities = [
            multivariate_normal(0.5 * row, 0.25 * np.eye(2)).pdf(x)
            for row in np.asarray(data)
        ]
        np.testing.assert_allclose(p_t.log_prob(x), np.log(np.mean(densities)))


def test_distributions_against_scipy(key):
    with jax.enable_x64(True):
        mixture = mixture_2d(jnp.float64)
        x = jr.normal(key, (4, 2), jnp.float64)
        mean, covariance = np.asarray(mixture.means), np.asarray(mixture.covariances)
        density = sum(
            weight * multivariate_normal(mean[k], covariance[k]).pdf(np.asarray(x))
            for k, weight in enumerate(np.asarray(mixture.weights))
        )
        np.testing.assert_allclose(
            mixture.log_prob(x), np.sum(np.log(density)), rtol=1e-12
        )
        log_prob = mixture_1d(jnp.float64).log_prob(jnp.array([0.4]))
        np.testing.assert_allclose(log_prob, mixture_log_prob(0.4), rtol=1e-12)
        normal = fk.Normal(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0]))
        expected = (
            multivariate_normal([1.0, -1.0], np.diag([0.25, 4.0]))
            .logpdf(np.asarray(x))
            .sum()
        )
        np.testing.assert_allclose(normal.log_prob(x), expected, rtol=1e-12)


NORMAL_2D = fk.Normal(
    np.array([1.0, -2.0], np.float32), np.array([0.5, 2.0], np.float32)
)


@pytest.mark.parametrize(
    "distribution", [mixture_2d(), NORMAL_2D], ids=["mixture", "normal"]
)
def test_samples_have_the_moments(distribution, key):
    num = 20_000
    x = np.asarray(distribution.sample((num, 2), key=key))
    if isinstance(distribution, fk.Normal):
        mean, covariance = (
            np.asarray(distribution.mean),
            np.diag(np.asarray(distribution.std) ** 2),
        )
    else:
        weights, means = (
            np.asarray(distribution.weights),
            np.asarray(distribution.means),
        )
        mean = weights @ means
        second = (
            np.asarray(distribution.covariances) + means[:, :, None] * means[:, None, :]
        )
        covariance = np.tensordot(weights, second, axes=1) - np.outer(mean, mean)
    errors = np.sqrt(np.diag(covariance) / num)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * errors)
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert np.all(
        np.abs(products.mean(0) - covariance) < 5 * products.std(0) / np.sqrt(num)
    )


def test_samples_of_wide_mixtures_take_little_memory(key):
    """`m_k + L_k z` by NumPy. A factor for every row would take four times the limit."""
    rng = np.random.default_rng(0)
    num, size = 2000, 64
    means = rng.normal(size=(3, size)).astype(np.float32)
    factors = rng.normal(size=(3, size, size)).astype(np.float32)
    covariances = factors @ factors.swapaxes(1, 2) + np.eye(size, dtype=np.float32)
    mixture = fk.GaussianMixture(means, covariances)

    sample = jax.jit(lambda key: mixture.sample((20, num // 20, size), key=key))
    compiled = sample.lower(key).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < num * size**2

    component_key, noise_key = jr.split(key)
    k = np.asarray(jr.categorical(component_key, mixture.logits, shape=(num,)))
    z = np.asarray(jr.normal(noise_key, (num, size)))
    lower = np.linalg.cholesky(covariances.astype(float))
    expected = means[k] + np.einsum("nij,nj->ni", lower[k], z)
    found = compiled(key).reshape(num, size)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_leading_axes_are_independent_rows(key):
    clouds = mixture_2d().sample((4, 6, 2), key=key)
    assert clouds.shape == (4, 6, 2)
    assert len(np.unique(np.asarray(clouds).reshape(-1, 2), axis=0)) == 24
    data = fk.Empirical(np.arange(5.0, dtype=np.float32)[:, None])
    draws = np.asarray(data.sample((2000, 1), key=key))
    counts = np.unique(draws, return_counts=True)[1]
    assert np.all(np.abs(counts - 400) < 5 * np.sqrt(2000 * 0.2 * 0.8))


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (
            lambda key: fk.GaussianMixture(jnp.ones((2, 3)), jnp.ones((3, 2))),
            "`covariances`",
        ),
        (lambda key: fk.GaussianMixture(jnp.ones(3)), "`means`"),
        (
            lambda key: fk.GaussianMixture(jnp.ones((2, 3)), weights=jnp.ones(3)),
            "`weights`",
        ),
        (
            lambda key: fk.GaussianMixture(
                jnp.ones((2, 3)), weights=jnp.array([1.0, -1.0])
            ),
            "`weights`",
        ),
        (lambda key: fk.Normal(0.0, -1.0), "`std`"),
        (lambda key: fk.Empirical(jnp.zeros((0, 2))), "`data`"),
        (lambda key: mixture_2d().sample((3, 1), key=key), "last axis"),
        (
            lambda key: fk.Empirical(jnp.zeros((3, 2))).sample((4, 3), key=key),
            "`shape`",
        ),
        (
            lambda key: fk.Empirical(jnp.zeros((3, 2))).log_prob(jnp.zeros(2)),
            "no density",
        ),
        (lambda key: fk.marginal(Plain(), fk.LinearPath(), 0.5), "`distribution`"),
        (lambda key: fk.marginal(mixture_1d(), fk.LinearPath(), 1.5), "`t` must be in"),
        (
            lambda key: fk.marginal(
                fk.Empirical(jnp.zeros((3, 2))), fk.LinearPath(), 1.0
            ),
            "`t` must be below 1",
        ),
        (
            lambda key: fk.exact_flow(
                mixture_1d(), source=fk.Normal(1.0, 2.0), prediction=fk.Score()
            ),
            "standard normal",
        ),
        (lambda key: fk.Normal(jnp.zeros(5)).sample((2, 1), key=key), "broadcast"),
        (lambda key: fk.Normal(jnp.zeros(5)).log_prob(jnp.zeros(1)), "broadcast"),
        (
            lambda key: fk.LinearPath().interpolate(2.0, jnp.zeros(1), jnp.zeros(1)),
            "`t` must be in",
        ),
    ],
)
def test_wrong_use(make, fragment, key):
    with pytest.raises(ValueError, match=fragment):
        make(key)


def test_a_mixture_is_made_under_jit():
    make = lambda x: fk.GaussianMixture(
        x[:, None], 1.0, jnp.array([0.5, 0.5])
    ).log_prob(jnp.zeros(1))
    x = jnp.array([-1.0, 2.0])
    np.testing.assert_allclose(jax.jit(make)(x), make(x), rtol=1e-6)


class Point(fk.AbstractExactDistribution):
    """All of the probability in one point: a distribution of a user's own."""

    point: jax.Array

    def sample(self, shape, *, key):
        return jnp.broadcast_to(self.point, shape)

    def log_prob(self, x):
        raise ValueError("a point has no density")

    def posterior(self, source):
        def means(x, alpha, sigma):
            return (x - alpha * self.point) / sigma, self.point

        return means

    def marginal(self, alpha, sigma, source):
        assert isinstance(source, fk.Normal)
        return fk.Normal(alpha * self.point + sigma * source.mean, sigma * source.std)


def test_a_distribution_of_your_own():
    """The only path to a point is straight: v = (m - x) / (1 - t)."""
    point, x, t = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.4]), 0.25
    flow = fk.exact_flow(Point(point))
    np.testing.assert_allclose(flow(t, x), (point - x) / (1 - t), rtol=1e-5)
    p_t = fk.marginal(Point(point), fk.LinearPath(), t)
    expected = multivariate_normal(t * np.asarray(point), (1 - t) ** 2).logpdf(x)
    np.testing.assert_allclose(p_t.log_prob(x), expected, rtol=1e-5)


def test_marginal_of_a_normal():
    with jax.enable_x64(True):
        data = fk.Normal(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0]))
        source = fk.Normal(0.5, jnp.array([1.5, 1.0]))
        p_t = fk.marginal(data, fk.LinearPath(), 0.25, source=source)
        mean = 0.25 * np.array([1.0, -1.0]) + 0.75 * 0.5
        variance = (0.25 * np.array([0.5, 2.0])) ** 2 + (
            0.75 * np.array([1.5, 1.0])
        ) ** 2
        x = np.array([0.2, 0.9])
        expected = multivariate_normal(mean, np.diag(variance)).logpdf(x)
        np.testing.assert_allclose(p_t.log_prob(x), expected, rtol=1e-12)


def test_strict_rank_promotion_and_lists_of_numpy_integers(key):
    means = np.array([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]], np.float32)
    source = fk.Normal(jnp.array([0.5, -1.0]), jnp.array([0.7, 1.6]))
    x = np.array([[0.3, -0.2]], np.float32)
    with jax.numpy_rank_promotion("raise"):
        for data in (fk.GaussianMixture(means, 0.3), source, fk.Empirical(means)):
            flow = fk.exact_flow(data, source=source)
            # One row alone is the row of an array of rows.
            np.testing.assert_allclose(flow(0.3, x)[0], flow(0.3, x[0]), rtol=1e-5)
            assert data.sample([np.int64(5), 2], key=key).shape == (5, 2)
            fk.marginal(data, fk.LinearPath(), 0.5, source=source).log_prob(x)
