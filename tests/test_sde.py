"""Stochastic sampling: exact marginals, and the moments of Euler's steps by recursion."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import flowkit as fk
from flowkit._solve.sde import _grid
from flowkit.solvers import (
    ConstantNoise,
    DecreasingNoise,
    DiffusionNoise,
    LinearNoise,
    SigmaNoise,
    SineNoise,
)

from .oracles import compilations, MEANS, mixture_1d, STDS, WEIGHTS


ALPHA, SIGMA = np.sin(0.3 * np.pi), np.cos(0.3 * np.pi)

# What they are on the cosine path at t = 0.6, by the table of the docs.
VALUES = {
    SigmaNoise: SIGMA,
    ConstantNoise: 1,
    LinearNoise: 0.4,
    SineNoise: np.sin(0.6 * np.pi) ** 2,
    DecreasingNoise: 0.25 * (np.cos(0.6 * np.pi) + 1) ** 2,
    DiffusionNoise: 0.5 * np.pi * SIGMA / ALPHA,
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_noise_scales(kind):
    found = kind(3.0)(fk.CosinePath(), 0.6)
    np.testing.assert_allclose(found, 3 * VALUES[kind], rtol=1e-5)


NOISE_SCALES = {
    "diffusion": DiffusionNoise(),
    "function": lambda path, t: jnp.cos(t) * path.sigma(t),
}


def mixture_cdf(x):
    return stats.norm.cdf((x[:, None] - MEANS) / STDS) @ WEIGHTS


@pytest.mark.parametrize("name", NOISE_SCALES)
def test_every_noise_scale_has_the_marginal_of_the_data(name):
    flow = fk.exact_flow(mixture_1d(), fk.CosinePath())
    samples = fk.sample_sde(
        flow,
        (1,),
        num_samples=2000,
        key=jr.key(1),
        noise_scale=NOISE_SCALES[name],
        solver=dfx.ShARK(),
        num_steps=150,
    )
    assert stats.kstest(np.asarray(samples)[:, 0], mixture_cdf).pvalue > 0.01


def euler_moments(flow, mean, std, noise_scale, num_steps):
    """Mean and variance after Euler-Maruyama steps for one-dimensional Gaussian data."""
    times = np.arange(num_steps) / num_steps
    found_mean, found_variance = 0.0, 1.0
    h = 1 / num_steps
    for t in times:
        sigma = 1 - t
        variance = sigma**2 + (t * std) ** 2
        # The velocity is linear, and the score is that of a normal distribution.
        slope = (t * std**2 - sigma) / variance
        w = noise_scale * sigma * (t < times[-1])
        center = t * mean
        rate = slope - w / variance
        found_mean += h * (mean + rate * (found_mean - center))
        found_variance = (1 + h * rate) ** 2 * found_variance + 2 * w * h
    return found_mean, found_variance


def test_euler_steps_have_the_moments_of_their_recursion():
    flow = fk.exact_flow(fk.Normal(1.5, 0.5))
    samples = fk.sample_sde(
        flow,
        (1,),
        num_samples=20_000,
        key=jr.key(2),
        noise_scale=SigmaNoise(3.0),
        num_steps=8,
    )
    mean, variance = euler_moments(flow, 1.5, 0.5, 3.0, 8)
    # Far from the exact moments, so that the test sees the steps.
    assert abs(variance - 0.25) > 0.03

    error = np.sqrt(variance / len(samples))
    assert abs(np.mean(samples) - mean) < 4 * error
    error = variance * np.sqrt(2 / len(samples))
    assert abs(np.var(samples) - variance) < 4 * error


def test_other_normal_sources():
    source = fk.Normal(jnp.array([1.0, -2.0]), jnp.array([0.5, 2.0]))
    flow = fk.exact_flow(fk.Normal(jnp.array([0.0, 1.0]), 0.5), source=source)
    samples = fk.sample_sde(
        flow,
        (2,),
        num_samples=5000,
        key=jr.key(3),
        source=source,
        solver=dfx.ShARK(),
        num_steps=50,
    )
    error = 0.5 / np.sqrt(len(samples))
    np.testing.assert_allclose(np.mean(samples, axis=0), [0, 1], atol=4 * error)
    error = 0.5 / np.sqrt(2 * len(samples))
    np.testing.assert_allclose(np.std(samples, axis=0), 0.5, atol=4 * error)


def test_without_noise_it_is_the_ode(key):
    flow = fk.exact_flow(mixture_1d())
    options = {"solver": dfx.Euler(), "num_steps": 10}
    found = fk.sample_sde(
        flow, (1,), num_samples=5, key=key, noise_scale=SigmaNoise(0.0), **options
    )
    start_key, _ = jr.split(key)
    x0 = fk.Normal().sample((5, 1), key=start_key)
    expected = fk.sample(flow, (1,), num_samples=5, x0=x0, **options).values
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradients_see_the_same_path(key):
    """The pathwise derivative with respect to the mean of Gaussian data is 1 at every sample."""

    def total(mean):
        flow = fk.exact_flow(fk.Normal(mean, 0.5))
        options = {"num_samples": 5, "num_steps": 40, "key": key}
        return jnp.sum(fk.sample_sde(flow, (1,), **options))

    mean = jnp.array(1.0)
    step = 0.1
    # Samples are linear in the mean.
    slope = (total(mean + step) - total(mean - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(mean), slope, rtol=1e-3)
    np.testing.assert_allclose(slope, 5, rtol=0.1)


def test_masks_conditions_and_units(key):
    """Clouds of one class each, in their units; points that are masked are zero."""

    def network(t, x, cond, mask=None):
        # The velocity of points that are all at `cond`.
        return (cond - x) / jnp.maximum(1 - t, 1e-3)

    flow = fk.Standardized(fk.Flow(network), jnp.array([1.0, 2.0]), 3.0)
    mask = jnp.array([[True, True, False]] * 2)
    cond = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    options = {"num_samples": 2, "num_steps": 20, "key": key}
    samples = fk.sample_sde(flow, (3, 2), cond=cond, mask=mask, **options)
    expected = np.asarray(cond * 3 + jnp.array([1.0, 2.0]))[:, None]
    np.testing.assert_allclose(
        samples[:, :2], expected + np.zeros((2, 2, 2)), atol=1e-4
    )
    assert not np.any(samples[:, 2])


def test_another_amount_of_noise_compiles_nothing(key):
    flow = fk.exact_flow(fk.Normal(1.5, 0.5))
    options = {"num_samples": 5, "num_steps": 8, "key": key}
    fk.sample_sde(flow, (1,), noise_scale=SigmaNoise(1.0), **options)
    with compilations() as names:
        fk.sample_sde(flow, (1,), noise_scale=SigmaNoise(0.5), **options)
    assert not names


def test_no_step_calls_python(key):
    flow = fk.exact_flow(fk.Normal(1.5, 0.5))
    options = {"num_samples": 5, "num_steps": 8, "throw": False}
    draw = lambda key: fk.sample_sde(flow, (1,), key=key, **options)
    assert "callback" not in str(jax.make_jaxpr(draw)(key))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("`source` must be a `fk.Normal`", {"source": mixture_1d()}),
        ("`solver` Tsit5 does not solve stochastic", {"solver": dfx.Tsit5()}),
        ("`num_steps` must be at least 3", {"num_steps": 2}),
        ("`last_step` must be above 0", {"last_step": 0.0}),
        ("`noise_scale` is the class SigmaNoise", {"noise_scale": SigmaNoise}),
    ],
)
def test_misuse(key, message, options):
    flow = fk.exact_flow(mixture_1d())
    with pytest.raises(ValueError, match=message):
        fk.sample_sde(flow, (1,), num_samples=2, key=key, **options)


@pytest.mark.parametrize(
    ("num_steps", "length"), [(500, 0.002), (1000, 0.001), (3000, 0.001)]
)
def test_the_last_step_is_one_that_the_network_knows(num_steps, length):
    """A target network has no velocity in the last thousandth of the time."""
    flow = fk.Flow(lambda t, x, cond: x, prediction=fk.Target())
    times = _grid(flow, num_steps, None)
    assert len(times) == num_steps
    np.testing.assert_allclose(1 - times[-1], length, rtol=1e-6)


def test_a_field_without_a_path_is_refused(key):
    with pytest.raises(ValueError, match="`flow` must be a `fk.Flow`"):
        fk.sample_sde(lambda t, x, cond: x, (1,), num_samples=2, key=key)


def test_a_negative_scale_is_refused():
    with pytest.raises(ValueError, match="`scale` must not be negative"):
        SigmaNoise(-1.0)


def test_a_velocity_that_is_not_finite_is_an_error(key):
    flow = fk.Flow(lambda t, x, cond: x / (t - t))
    with pytest.raises(Exception, match="NaN or infinite"):
        jax.block_until_ready(fk.sample_sde(flow, (1,), num_samples=2, key=key))
