"""Flows along other paths: the exact flow of the other path, and the same samples."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import norm

import flowkit as fk

from .oracles import mixture_2d, PATHS, PREDICTIONS


@pytest.mark.parametrize("before", ["linear", "user-given", "polynomial"])
@pytest.mark.parametrize("after", ["cosine", "linear"])
def test_it_is_the_exact_flow_of_the_other_path(before, after):
    with jax.enable_x64(True):
        mixture = mixture_2d(jnp.float64)
        found = fk.on_path(fk.exact_flow(mixture, PATHS[before]), PATHS[after])
        expected = fk.exact_flow(mixture, PATHS[after])
        xs = jr.normal(jr.key(0), (20, 2), jnp.float64)
        ts = jnp.linspace(0.01, 1, 20)
        values = [
            jax.vmap(lambda t, x, f=f: f(t, x))(ts, xs) for f in (found, expected)
        ]
        np.testing.assert_allclose(*values, atol=1e-7)


@pytest.mark.parametrize("prediction", ["noise", "target", "score"])
def test_other_predictions(prediction):
    mixture = mixture_2d()
    predicted = {"prediction": PREDICTIONS[prediction]}
    flow = fk.on_path(fk.exact_flow(mixture, **predicted), fk.CosinePath())
    expected = fk.exact_flow(mixture, fk.CosinePath(), **predicted)
    x = jnp.array([0.3, -1.2])
    np.testing.assert_allclose(flow(0.6, x), expected(0.6, x), rtol=1e-4)
    assert flow.t_end == expected.t_end


def test_a_path_that_stands_still_at_its_start():
    """A velocity along it says nothing about the data there, and yet errors stay in bounds."""
    exact = fk.exact_flow(fk.Normal(1.3, 0.5), fk.PolynomialPath(3))
    flow = fk.Flow(lambda t, x, cond: exact(t, x) + 0.01, fk.PolynomialPath(3))
    x = jnp.array([0.7])
    start = fk.on_path(exact, fk.LinearPath())(0.0, x)
    np.testing.assert_allclose(start, 1.3 - x, atol=2e-3)
    seen = fk.on_path(flow, fk.LinearPath())
    np.testing.assert_allclose(seen(0.0, x) - start, 0.01 / 0.03, rtol=0.2)

    options = {"solver": fk.RK4(), "num_steps": 10}
    end = fk.integrate(seen, x, **options).ys[-1]
    np.testing.assert_allclose(end, 1.3 + 0.5 * x, atol=0.02)
    expected = norm.logpdf(end, 1.3, 0.5).sum()
    np.testing.assert_allclose(fk.log_prob(seen, end, **options), expected, atol=0.05)


def test_samples_and_units_stay(key):
    flow = fk.Standardized(fk.exact_flow(mixture_2d()), jnp.array([1.0, 2.0]), 3.0)
    curved = fk.on_path(flow, fk.CosinePath())
    options = {"num_samples": 20, "key": key}
    expected = fk.sample(flow, (2,), **options).values
    found = fk.sample(curved, (2,), **options).values
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("name", PATHS)
def test_the_time_of_a_ratio(name):
    path = PATHS[name]
    t = jnp.linspace(0.02, 0.98, 9)
    ratio = jax.vmap(lambda t: path.time_of(2 * path.alpha(t), 2 * path.sigma(t)))
    np.testing.assert_allclose(ratio(t), t, atol=1e-5)
    slopes = jax.vmap(jax.grad(lambda t: path.time_of(path.alpha(t), path.sigma(t))))
    np.testing.assert_allclose(slopes(t), 1, rtol=1e-3)


def test_a_field_without_a_path_is_refused():
    with pytest.raises(ValueError, match="`flow` must be a `fk.Flow`"):
        fk.on_path(lambda t, x, cond: x, fk.CosinePath())


@pytest.mark.parametrize("paths", [(0.2, 0.0), (0.0, 0.2)])
def test_another_end_is_refused(paths):
    trained, path = (fk.LinearPath(sigma_min=sigma) for sigma in paths)
    flow = fk.exact_flow(mixture_2d(), trained)
    with pytest.raises(
        ValueError, match="`path` ends with 0.* of noise for one of data"
    ):
        fk.on_path(flow, path)
