"""Inverse problems, against posteriors that are known exactly."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.ndimage as ndi
import scipy.stats as st

import flowkit as fk
from flowkit import inverse
from flowkit.inverse._operators import check_operator
from flowkit.inverse._problem import transition

from .oracles import compilations


MATRIX = inverse.Matrix(np.array([[1.0, 0.5, -1.0]], np.float32))
MIXTURE = fk.GaussianMixture(
    jnp.array([[1.5, 1.0], [-1.0, 0.5], [0.0, -1.5]]), 0.35, jnp.array([0.5, 0.3, 0.2])
)
KERNEL = np.arange(15.0, dtype=np.float32).reshape(3, 5)
OPERATORS = {
    "mask of pixels": (inverse.PixelMask(np.arange(24).reshape(4, 6) % 3 == 0), None),
    "mask of entries": (
        inverse.PixelMask(np.arange(48).reshape(4, 6, 2) % 5 < 2),
        None,
    ),
    "subsample": (inverse.Subsample(2), (2, 3, 2)),
    "blur": (inverse.Blur(KERNEL), None),
    "composed": (
        inverse.Composed(inverse.Blur(KERNEL), inverse.Subsample(2)),
        (2, 3, 2),
    ),
    "any function": (
        inverse.LinearMap(lambda x: jnp.cumsum(x, axis=1)[:2], (4, 6, 2)),
        (2, 6, 2),
    ),
}


def moments(values):
    return np.mean(values, axis=0), np.cov(np.asarray(values, float).T)


@pytest.mark.parametrize(("linear", "shape"), OPERATORS.values(), ids=OPERATORS)
def test_adjoints_are_the_transposes(linear, shape):
    random = np.random.default_rng(0)
    x = random.standard_normal((4, 6, 2), np.float32)
    y = random.standard_normal(shape or x.shape, np.float32)
    assert linear(x).shape == y.shape
    assert linear.in_shape(y.shape) == x.shape
    (expected,) = jax.linear_transpose(linear, x)(y)
    np.testing.assert_allclose(linear.adjoint(y), expected, atol=1e-5)
    check_operator(linear, x.shape, jnp.float32)
    check_operator(linear, x.shape, jnp.bfloat16)


def test_operators_are_what_they_say():
    x = np.random.default_rng(0).standard_normal((6, 8, 1), np.float32)
    blurred = ndi.convolve(x[..., 0], KERNEL, mode="constant")
    np.testing.assert_allclose(inverse.Blur(KERNEL)(x)[..., 0], blurred, rtol=1e-4)
    means = x.reshape(3, 2, 4, 2, 1).mean((1, 3))
    np.testing.assert_allclose(inverse.Subsample(2)(x), means, rtol=1e-5)
    kernel = inverse.gaussian_kernel(7, 1.3)
    assert abs(kernel.sum() - 1) < 1e-6
    np.testing.assert_allclose(kernel[3, 4] / kernel[3, 3], np.exp(-0.5 / 1.69), 1e-5)


def test_exact_posteriors_are_bayes():
    """The density is that of the mixture times that of the noise, up to a constant."""
    linear = inverse.Matrix(np.array([[1.0, -0.5]], np.float32))
    y = np.array([0.7], np.float32)
    posterior = inverse.exact_posterior(MIXTURE, linear, y, noise_std=jnp.array(0.4))
    x = np.random.default_rng(0).standard_normal((50, 2), np.float32)
    prior = jax.vmap(MIXTURE.log_prob)(x)
    noise = st.norm.logpdf(y[0], x @ np.array([1.0, -0.5]), 0.4)
    gaps = np.asarray(jax.vmap(posterior.log_prob)(x)) - prior - noise
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-4)


def test_exact_posteriors_of_little_noise():
    """What was observed varies by its noise alone: `A C A^T` is `s^2 I` to first order."""
    rows = np.random.default_rng(0).standard_normal((3, 6), np.float32)
    mixture = fk.GaussianMixture(rows, 0.5)
    linear = inverse.Matrix(rows[:2])
    y = linear(rows[2])
    posterior = inverse.exact_posterior(mixture, linear, y, noise_std=1e-5)
    roots = rows[:2].astype(float) @ np.asarray(posterior.cholesky, float)
    found = roots @ np.swapaxes(roots, 1, 2)
    np.testing.assert_allclose(1e10 * found, np.tile(np.eye(2), (3, 1, 1)), atol=0.1)
    # The mean of one part explains the observation as it is.
    np.testing.assert_allclose(posterior.means[2], rows[2], atol=1e-5)


@pytest.mark.parametrize(
    ("linear", "observed", "fragment"),
    [
        (
            inverse.Matrix(np.ones((1, 2), np.float32)),
            np.zeros(3),
            "`observed` has shape",
        ),
        (
            inverse.PixelMask(np.ones(2, bool)),
            np.full(2, np.nan),
            "`observed` holds NaN",
        ),
        (inverse.PixelMask(np.ones(3, bool)), np.zeros(3), "those of `mixture` have"),
        (inverse.LinearMap(lambda x: x + 1, (2,)), np.zeros(2), "is not linear"),
    ],
)
def test_misuse_of_exact_posteriors(linear, observed, fragment):
    observed = observed.astype(np.float32)
    with pytest.raises(ValueError, match=fragment):
        inverse.exact_posterior(MIXTURE, linear, observed, noise_std=0.1)


@pytest.mark.parametrize("size", [2, 16])
def test_the_filter_draws_from_the_posterior(size, key):
    """Means and covariances in standard errors of its effective sample size."""
    num = 2000
    rows = np.random.default_rng(1).standard_normal((3, size))
    mixture = fk.GaussianMixture(jnp.asarray(rows, jnp.float32), 0.5)
    linear = inverse.PixelMask(np.arange(size) < max(size // 4, 1))
    observed = linear(0.5 * rows[0].astype(np.float32))
    posterior = inverse.exact_posterior(mixture, linear, observed, noise_std=0.3)
    result = inverse.reconstruct(
        fk.exact_flow(mixture), linear, observed, noise_std=0.3,
        method=inverse.TwistedSMC(400), num_samples=num, key=key,
    )  # fmt: skip
    effective = float(result.effective_sample_size)
    assert 100 < effective < num

    mean, covariance = moments(result.values)
    exact = np.asarray(posterior.sample((200_000, size), key=jr.key(1)), float)
    exact_mean, exact_covariance = moments(exact)
    centered = exact - exact_mean
    products = centered[:, :, None] * centered[:, None]
    error = np.sqrt(np.diag(exact_covariance) / effective)
    assert np.all(np.abs(mean - exact_mean) < 4.5 * error)
    error = np.sqrt(np.var(products, axis=0) / effective)
    assert np.all(np.abs(covariance - exact_covariance) < 4.5 * error)


def test_without_an_observation_the_filter_samples_the_flow(key):
    nothing = inverse.PixelMask(np.zeros(2, bool))
    result = inverse.reconstruct(
        fk.exact_flow(MIXTURE), nothing, np.ones(2, np.float32), noise_std=0.1,
        method=inverse.TwistedSMC(100), num_samples=2000, key=key,
    )  # fmt: skip
    assert float(result.effective_sample_size) == pytest.approx(2000)
    exact = np.asarray(MIXTURE.weights) @ np.asarray(MIXTURE.means)
    error = np.std(result.values, axis=0) / 2000**0.5
    assert np.all(np.abs(result.mean - exact) < 4.5 * error)


def gaussian_posterior(observed, noise_std):
    """Of the standard normal law in three dimensions, given the one row of `MATRIX`."""
    row = np.asarray(MATRIX.matrix, float)
    gain = row.T / (row @ row.T + noise_std**2)
    return (gain @ observed).ravel(), np.eye(3) - gain @ row


@pytest.mark.parametrize("path", [fk.LinearPath(), fk.CosinePath()])
def test_pseudoinverse_guidance_is_exact_for_normal_data(path, key):
    flow = fk.exact_flow(fk.Normal(), path)
    observed = np.array([1.2], np.float32)
    result = inverse.reconstruct(
        flow, MATRIX, observed, noise_std=0.5, method=inverse.PiGDM(300),
        num_samples=4000, key=key,
    )  # fmt: skip
    mean, covariance = moments(result.values)
    exact_mean, exact_covariance = gaussian_posterior(observed, 0.5)
    error = np.sqrt(np.diag(exact_covariance) / 4000)
    assert np.all(np.abs(mean - exact_mean) < 4.5 * error + 0.01)
    np.testing.assert_allclose(covariance, exact_covariance, atol=0.08)
    np.testing.assert_allclose(result.std**2, np.diag(covariance), rtol=1e-3)


def test_guidance_of_the_ode(key):
    """For normal data its velocity is that of the posterior: with the start of the posterior
    it ends there, and from another start the mean is still right where nothing is observed."""
    observed = np.array([1.2], np.float32)
    result = inverse.reconstruct(
        fk.exact_flow(fk.Normal()), MATRIX, observed, noise_std=0.5,
        method=inverse.OTODE(200, t_start=0.01), num_samples=4000, key=key,
    )  # fmt: skip
    mean, covariance = moments(result.values)
    exact_mean, exact_covariance = gaussian_posterior(observed, 0.5)
    error = np.sqrt(np.diag(exact_covariance) / 4000)
    assert np.all(np.abs(mean - exact_mean) < 4.5 * error + 0.01)
    np.testing.assert_allclose(covariance, exact_covariance, atol=0.08)


def test_optimized_noise_is_the_mode(key):
    """The flow of normal data ends where it starts, so the mode is that of the posterior."""
    observed = np.array([1.2], np.float32)
    result = inverse.reconstruct(
        fk.exact_flow(fk.Normal()), MATRIX, observed, noise_std=0.5,
        method=inverse.DFlow(300), num_samples=3, key=key,
    )  # fmt: skip
    expected, _ = gaussian_posterior(observed, 0.5)
    np.testing.assert_allclose(result.values, np.tile(expected, (3, 1)), atol=0.02)


def test_replacement_keeps_what_is_observed(key):
    """For independent entries the others keep their law."""
    mask = inverse.PixelMask(np.array([True, False, True]))
    observed = np.array([0.3, 9.0, -2.0], np.float32)
    result = inverse.reconstruct(
        fk.exact_flow(fk.Normal()), mask, observed, noise_std=0.0,
        method=inverse.RePaint(400, 2), num_samples=2000, key=key,
    )  # fmt: skip
    values = np.asarray(result.values)
    np.testing.assert_allclose(values[:, [0, 2]] - observed[[0, 2]], 0, atol=1e-5)
    assert abs(np.mean(values[:, 1])) < 4.5 / 2000**0.5
    # The standard error of the variance, and what the steps leave out, about 2 pi / 400.
    assert abs(np.var(values[:, 1]) - 1) < 4.5 * (2 / 2000) ** 0.5 + 0.016


@pytest.mark.parametrize(
    "method",
    [
        inverse.PnPFlow(50),
        inverse.DPS(100, 0.3),
        inverse.OTODE(50, solver=dfx.Heun()),
    ],
)
def test_other_methods_explain_the_observation(method, key):
    """Their residual is a small part of that without the observation, 1.5 for this row."""
    observed = np.array([1.2], np.float32)
    result = inverse.reconstruct(
        fk.exact_flow(fk.Normal()), MATRIX, observed, noise_std=0.0, method=method,
        num_samples=200, key=key,
    )  # fmt: skip
    residual = np.asarray(jax.vmap(MATRIX)(result.values)) - observed
    assert np.sqrt(np.mean(residual**2)) < 0.4
    assert np.all(np.isfinite(result.values))


@pytest.mark.parametrize(
    "method",
    [
        lambda number: inverse.DFlow(2, num_steps=2, prior_weight=number),
        lambda number: inverse.DPS(3, number),
        lambda number: inverse.OTODE(3, number),
        lambda number: inverse.PiGDM(3, number),
        lambda number: inverse.PnPFlow(3, 2, number),
    ],
)
def test_another_number_compiles_nothing(method, key):
    flow = fk.exact_flow(fk.Normal())
    call = lambda number: inverse.reconstruct(
        flow, MATRIX, np.ones(1, np.float32), noise_std=0.1, method=method(number),
        num_samples=8, key=key,
    ).values  # fmt: skip
    first = call(0.01)
    with compilations() as events:
        second = call(0.99)
    assert not events
    assert np.max(np.abs(second - first)) > 1e-3


def test_noise_networks_know_the_mean_at_the_start():
    """Where the point is noise alone, the mean of the data is all there is to say."""
    exact = fk.exact_flow(MIXTURE)
    noise = lambda t, x, cond: exact.predict(fk.Noise(), t, x, cond)
    problem = inverse.Problem(
        fk.Flow(noise, prediction=fk.Noise()), MATRIX, jnp.zeros(1), jnp.ones(()),
        None, (2,),
    )  # fmt: skip
    expected = MIXTURE.weights @ MIXTURE.means
    for x in np.array([[0.5, -1.0], [-2.0, 1.5]], np.float32):
        # It is asked at a time of 0.001.
        found = problem.denoised(jnp.zeros(()), x)
        np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize(
    "method", [inverse.PiGDM(3), inverse.DPS(3), inverse.TwistedSMC(3)]
)
def test_single_precision_among_doubles(method, key):
    """Observations of 32 bits keep their type where JAX has 64."""
    mask = inverse.PixelMask(np.array([True, False]))
    options = {"noise_std": 0.1, "method": method, "key": key}
    with jax.enable_x64(True):
        flow = fk.exact_flow(fk.Normal())
        found = inverse.reconstruct(flow, mask, np.ones(2, np.float32), **options)
    assert found.values.dtype == np.float32
    assert np.all(np.isfinite(found.values))


@pytest.mark.parametrize("method", [inverse.PiGDM(5), inverse.TwistedSMC(5)])
def test_squares_of_residuals_in_half_precision(method, key):
    options = {"noise_std": 0.1, "method": method, "key": key}
    y = np.ones((2, 2, 1), np.float16)
    flow = fk.exact_flow(fk.Normal())
    found = inverse.reconstruct(flow, inverse.Subsample(2), y, **options)
    assert found.values.dtype == np.float16
    assert np.all(np.isfinite(found.values))


def test_units_and_conditions(key):
    """A standardized flow reconstructs in the units of its data, given its condition."""

    def network(t, x, cond):
        return fk.exact_flow(fk.Normal(cond, 1.0))(t, x)

    flow = fk.Standardized(
        fk.Flow(network), np.array([10.0, 20.0]), np.array([2.0, 4.0])
    )
    linear = inverse.PixelMask(np.array([True, False]))
    result = inverse.reconstruct(
        flow, linear, np.array([13.0, 0.0], np.float32), np.array([0.5, 1.0]),
        noise_std=1.0, method=inverse.TwistedSMC(100), num_samples=2000, key=key,
    )  # fmt: skip
    # x = (11, 24) + (2, 4) z: the first is N(11, 4) given 13 with variance 1.
    errors = np.array([np.sqrt(0.8), 4.0]) / float(result.effective_sample_size) ** 0.5
    assert np.all(np.abs(result.mean - np.array([12.6, 24.0])) < 4.5 * errors)
    np.testing.assert_allclose(result.std, [np.sqrt(0.8), 4.0], rtol=0.15)


def test_images_and_compiled_once(key):
    flow = fk.exact_flow(fk.Normal(jnp.zeros((4, 4, 1)), 1.0))
    mask = np.arange(16).reshape(4, 4) % 2 == 0
    draw = jax.jit(
        lambda mask, y, key: (
            inverse.reconstruct(
                flow, inverse.PixelMask(mask), y, noise_std=0.1, num_samples=3, key=key
            ).values
        )
    )
    y = np.where(mask[..., None], 1.0, 0.0).astype(np.float32)
    values = np.asarray(draw(mask, y, key))
    assert values.shape == (3, 4, 4, 1)
    # Observed with noise of 0.1, the posterior has the standard deviation 0.0995.
    assert np.all(np.abs(values[:, mask] - 0.99) < 0.6)


class WrongAdjoint(inverse.AbstractOperator):
    def __call__(self, x):
        return 2 * x

    def in_shape(self, observed_shape):
        return observed_shape

    def adjoint(self, y):
        return y


@pytest.mark.parametrize(
    ("linear", "options", "fragment"),
    [
        (WrongAdjoint(), {}, "dot-product test"),
        (inverse.LinearMap(lambda x: x**2, (2,)), {}, "is not linear"),
        (inverse.LinearMap(lambda x: x[:1], (2,)), {}, "`observed` has shape"),
        (inverse.Subsample(2), {}, "must be one image"),
        (inverse.Blur(np.ones((1, 1), np.float32)), {}, "`Blur` takes one image"),
        (inverse.PixelMask(np.ones(3, bool)), {}, "does not fit"),
        (inverse.PixelMask(np.ones(2, bool)), {"noise_std": -1.0}, "`noise_std`"),
        (
            inverse.PixelMask(np.ones(2, bool)),
            {"noise_std": 0.0, "method": inverse.TwistedSMC()},
            "`noise_std` must be positive for `TwistedSMC`",
        ),
        (inverse.PixelMask(np.ones(2, bool)), {"num_samples": 0}, "`num_samples`"),
        (
            inverse.Matrix(np.eye(2, dtype=np.float32)),
            {"method": inverse.RePaint()},
            "must be a `PixelMask`",
        ),
    ],
)
def test_misuse(linear, options, fragment, key):
    arguments = {"noise_std": 0.1, "key": key} | options
    with pytest.raises(ValueError, match=fragment):
        inverse.reconstruct(
            fk.exact_flow(MIXTURE), linear, np.zeros(2, np.float32), **arguments
        )


@pytest.mark.parametrize(
    ("build", "fragment"),
    [
        (lambda: inverse.PiGDM(0), "`num_steps` must be positive"),
        (lambda: inverse.OTODE(t_start=0.0), "`t_start` must lie between"),
        (lambda: inverse.TwistedSMC(resample_below=2.0), "`resample_below`"),
        (lambda: inverse.Blur(np.ones((2, 3), np.float32)), "odd sides"),
        (lambda: inverse.gaussian_kernel(4, 1.0), "`size` must be odd"),
        (lambda: inverse.Composed(), "at least one"),
        (lambda: inverse.Reconstruction(np.ones((1, 2)), None).std, "two samples"),
    ],
)
def test_misuse_of_options(build, fragment):
    with pytest.raises(ValueError, match=fragment):
        build()


def test_steps_keep_the_marginals():
    """With the true data, a step from the law at `t` gives the law at `s`, in closed form."""
    problem = inverse.Problem(
        fk.exact_flow(fk.Normal(), fk.CosinePath()), MATRIX, jnp.zeros(1),
        jnp.ones(()), None, (1,),
    )  # fmt: skip
    times = jnp.array([0.3, 0.5])
    alpha, sigma, _, _ = problem.coefficients(times[0])
    later_alpha, later_sigma, _, _ = problem.coefficients(times[1])
    mean = lambda x: transition(problem, times, x, jnp.array([2.0]))
    of_data, variance = mean(jnp.array([2.0 * alpha]))
    np.testing.assert_allclose(of_data, [2.0 * later_alpha], rtol=1e-5)
    slope = eqx.filter_jacfwd(lambda x: mean(x)[0])(jnp.zeros(1))[0, 0]
    total = (slope * sigma) ** 2 + variance
    np.testing.assert_allclose(total, later_sigma**2, rtol=1e-5)
