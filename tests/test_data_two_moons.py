"""The two-moons task: its simulator, and its exact posterior against integrals on a grid."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import flowkit as fk
from flowkit import data


# All moons within the prior; two moons that touch; moons cut off by an edge, by a corner,
# and at a center that lies on an edge.
OBSERVATIONS = {
    "inside": [-0.3, 0.2],
    "touching": [0.28, -0.1],
    "edge": [-0.35, 0.75],
    "corner": [-1.0, 0.05],
    "center": [-0.25, 2**0.5 - 0.5],
}


def observation(name):
    return np.asarray(OBSERVATIONS[name], np.float32)


def grid(rows=1217, columns=1400):
    """The middles of equal cells that fill the prior, and their area.

    The cells are no squares: the ends of the moons, where the density jumps, are on
    diagonals of the prior.
    """
    first, second = ((2 * np.arange(num) + 1) / num - 1 for num in (rows, columns))
    points = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)
    return points.astype(np.float32), 4 / len(points)


@jax.jit
def densities(parameters, observation):
    log_prob = lambda theta: data.two_moons_log_posterior(theta, observation)
    return jnp.exp(jax.vmap(log_prob)(parameters))


@jax.jit
def draws(observation, key):
    return data.two_moons_posterior(observation, 20_000, key=key)


def noise_of(parameters, observation):
    """The angle and the radius with which the simulator turns one into the other."""
    s = parameters.sum(-1) / 2**0.5
    t = (parameters[..., 1] - parameters[..., 0]) / 2**0.5
    u = observation[..., 0] - 0.25 + np.abs(s)
    v = observation[..., 1] - t
    return np.arctan2(v, u), np.hypot(u, v)


def test_simulator(key):
    parameters, observations = (
        np.asarray(x, float) for x in data.two_moons(20_000, key=key)
    )
    for column in parameters.T:
        assert stats.kstest(column, "uniform", args=(-1, 2)).pvalue > 1e-3

    angle, radius = noise_of(parameters, observations)
    assert stats.kstest(angle, "uniform", args=(-np.pi / 2, np.pi)).pvalue > 1e-3
    assert stats.kstest(radius, "norm", args=(0.1, 0.01)).pvalue > 1e-3
    assert abs(np.corrcoef(angle, radius)[0, 1]) < 4 / 20_000**0.5


def test_simulator_of_one_example(key):
    theta = np.asarray([0.3, -0.7], np.float32)
    x = data.two_moons_simulate(theta, key=key)
    assert x.shape == (2,)
    angle, radius = noise_of(theta, np.asarray(x))
    assert abs(angle) < np.pi / 2
    assert abs(radius - 0.1) < 0.06


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_density_integrates_to_one(name):
    points, area = grid()
    density = np.asarray(densities(points, observation(name)), float)
    assert np.all(density >= 0)
    assert density.sum() * area == pytest.approx(1, abs=1e-3)


def test_density_is_the_likelihood_by_finite_differences():
    """The prior is constant, so the posterior is proportional to how often the simulator
    gives `x`: to the area of the noise, in probability, of a small square around it."""
    center = observation("inside")
    theta = np.asarray([[0.318, 0.601], [0.345, 0.509], [-0.626, -0.276]])
    size = 1e-4
    corners = size * (np.stack(np.meshgrid([0, 1], [0, 1]), -1).reshape(-1, 2) - 0.5)

    angle, radius = noise_of(theta[:, None], center + corners)
    probability = stats.norm.cdf(radius, 0.1, 0.01) * np.ones_like(angle)
    # The Jacobian of x -> (angle / pi, probability of the radius), by central differences.
    turn = angle / np.pi
    d_turn = _slopes(turn, size)
    d_probability = _slopes(probability, size)
    area = np.abs(d_turn[0] * d_probability[1] - d_turn[1] * d_probability[0])

    # All of the moons is within the prior, and there are two signs.
    found = densities(theta.astype(np.float32), center)
    np.testing.assert_allclose(found, area / 2, rtol=2e-3)


def _slopes(values, size):
    # Corners are (0, 0), (1, 0), (0, 1), (1, 1).
    first = (values[:, 1] - values[:, 0] + values[:, 3] - values[:, 2]) / (2 * size)
    second = (values[:, 2] - values[:, 0] + values[:, 3] - values[:, 1]) / (2 * size)
    return first, second


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_draws_have_the_density(name, key):
    x = observation(name)
    drawn = np.asarray(draws(x, key), float)
    assert np.all(np.abs(drawn) <= 1)
    angle, radius = noise_of(drawn, x)
    # The simulator gives this observation with a possible noise.
    assert np.all(np.abs(angle) < np.pi / 2 + 1e-4)
    assert np.all(np.abs(radius - 0.1) < 0.06)

    points, area = grid()
    density = np.asarray(densities(points, x), float) * area
    points = points.astype(float)
    for moment in (
        lambda p: p[:, 0],
        lambda p: p[:, 1],
        lambda p: p[:, 0] * p[:, 1],
        lambda p: np.sum(p**2, 1),
        lambda p: np.sign(p.sum(1)),
        lambda p: np.abs(noise_of(p, x)[0]) < 0.5,
    ):
        values = moment(drawn).astype(float)
        expected = np.sum(density * moment(points)) / density.sum()
        error = np.std(values) / len(values) ** 0.5
        assert abs(values.mean() - expected) < 4 * error + 1e-3


def test_all_of_the_moons_within_the_prior(key):
    x = observation("inside")
    angle, radius = noise_of(np.asarray(draws(x, key), float), x.astype(float))
    assert stats.kstest(angle, "uniform", args=(-np.pi / 2, np.pi)).pvalue > 1e-3
    assert stats.kstest(radius, "norm", args=(0.1, 0.01)).pvalue > 1e-3


def test_calibrated_over_the_prior(key):
    """Over all observations: edges, corners, and moons that touch."""
    data_key, key = jr.split(key)
    truth, observations = data.two_moons(500, key=data_key)
    posterior = lambda x, key: data.two_moons_posterior(x, 59, key=key)
    sample = jax.jit(jax.vmap(posterior, out_axes=1))
    samples = sample(observations, jr.split(key, 500))
    test = fk.metrics.simulation_based_calibration(samples, truth)
    assert np.all(test.p_values > 1e-3)
    # Any function of the observation will do.
    coverage = fk.metrics.tarp_coverage(samples, truth, references=observations)
    assert coverage.deviation < 1.95 / 500**0.5


def test_outside_of_the_prior():
    assert densities(np.asarray([[1.01, 0.0]], np.float32), observation("edge")) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda x: data.two_moons_posterior(x, 5, key=jr.key(0)),
        lambda x: data.two_moons_log_posterior(np.zeros(2, np.float32), x),
    ],
)
def test_impossible_observations(call):
    for x in ([5.0, 5.0], [0.0, 2.0], [-2.0, 0.0], [np.nan, 0.0]):
        with pytest.raises(ValueError, match="`observation` is .*two_moons_simulate"):
            call(np.asarray(x, np.float32))


def test_impossible_observations_that_are_traced(key):
    posterior = lambda x: data.two_moons_posterior(x, 5, key=key)
    x = np.asarray([[5.0, 5.0], OBSERVATIONS["inside"]], np.float32)
    drawn = jax.jit(jax.vmap(posterior))(x)
    assert np.all(np.isnan(drawn[0]))
    assert np.all(np.isfinite(drawn[1]))
