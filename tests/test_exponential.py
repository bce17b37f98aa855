"""Exponential multistep methods: exact linear parts and orders; grids of time."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowkit as fk
from flowkit.solvers import (
    edm_grid,
    Exponential,
    power_grid,
    shifted_grid,
)

from .oracles import mixture_1d


PREDICTIONS = {"target": fk.Target(), "noise": fk.Noise()}
MEAN, STD = 1.5, 0.5


def gaussian_map(path, s, t, x):
    """The flow map of Gaussian data: points keep their place within the marginal."""

    def moments(t):
        c = path.coefficients(t)
        return c.alpha * MEAN, jnp.sqrt((c.alpha * STD) ** 2 + c.sigma**2)

    (mean_s, std_s), (mean_t, std_t) = moments(s), moments(t)
    return mean_t + std_t * (x - mean_s) / std_s


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("ends", [(0.1, 0.9), (0.9, 0.1)], ids=["forward", "backward"])
def test_order(name, number, ends):
    """Half the step: a part `2 ** -order` of the error, on a curved path."""
    path = fk.CosinePath()
    with jax.enable_x64(True):
        flow = fk.exact_flow(fk.Normal(MEAN, STD), path, prediction=PREDICTIONS[name])
        x0 = jnp.array([-1.0, 0.3, 2.0])
        # Away from both ends of the path, where the order is that of the polynomial alone.
        s, t = ends
        solver = Exponential(number, path, PREDICTIONS[name])
        errors = []
        for num_steps in (120, 240):
            options = {"t0": s, "t1": t, "solver": solver, "num_steps": num_steps}
            found = fk.integrate(flow, x0, **options).ys[-1]
            errors.append(float(jnp.max(jnp.abs(found - gaussian_map(path, s, t, x0)))))
        assert np.log2(errors[0] / errors[1]) > number - 0.25


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_single_datum_is_reached_in_any_number_of_steps(key, number):
    """Its prediction stands still, so that every method is exact."""
    path = fk.CosinePath()
    point = jnp.array([0.7, -2.0])
    flow = fk.Flow(lambda t, x, cond: point, path, fk.Target())
    solver = Exponential(number, path, fk.Target())
    options = {"num_samples": 4, "num_steps": 3, "key": key}
    samples = fk.sample(flow, (2,), solver=solver, **options)
    np.testing.assert_allclose(samples.values, np.tile(point, (4, 1)), atol=1e-5)
    assert samples.stats.evaluations.tolist() == [5 if number == 3 else 3] * 4


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_codes(name, number):
    """The whole way back."""
    flow = fk.exact_flow(fk.Normal(MEAN, STD), prediction=PREDICTIONS[name])
    x1 = jnp.array([1.0, 1.3, 2.5])
    solver = Exponential(number, flow.path, flow.prediction)
    code = fk.encode(flow, x1, solver=solver, num_steps=200)
    np.testing.assert_allclose(code, (x1 - MEAN) / STD, atol=0.02)


def test_one_value_is_ddim(key):
    """A step of DDIM goes to alpha x1 + sigma x0, the predictions of the last point."""
    path = fk.CosinePath()
    flow = fk.exact_flow(mixture_1d(), path)
    x0 = fk.Normal().sample((5, 1), key=key)
    times = [0.0, 0.4, 0.9]
    x = x0
    for s, t in zip(times[:-1], times[1:], strict=True):
        data = jax.vmap(lambda x, s=s: flow.predict(fk.Target(), s, x))(x)
        noise = jax.vmap(lambda x, s=s: flow.predict(fk.Noise(), s, x))(x)
        c = path.coefficients(t)
        x = c.alpha * data + c.sigma * noise

    grid = dfx.StepTo(jnp.array(times))
    solver = Exponential(1, path)
    move = lambda x: fk.integrate(
        flow, x, t1=0.9, solver=solver, stepsize_controller=grid
    )
    np.testing.assert_allclose(eqx.filter_vmap(move)(x0).ys[:, -1], x, atol=1e-5)


def test_misuse(key):
    with pytest.raises(ValueError, match="`num_values` must be 1, 2 or 3"):
        Exponential(4)
    with pytest.raises(ValueError, match="`prediction` must be `fk.Target"):
        Exponential(2, prediction=fk.Velocity())

    flow = fk.exact_flow(mixture_1d(), prediction=fk.Target())
    options = {"num_samples": 2, "num_steps": 3, "solver": Exponential(), "key": key}
    with pytest.raises(ValueError, match="moves samples alone"):
        fk.sample_and_log_prob(flow, (1,), **options)


def test_grids():
    np.testing.assert_allclose(shifted_grid(4, 1.0), [0, 0.25, 0.5, 0.75, 1])
    # 3 u / (1 + 2 u) at u = 1/2.
    np.testing.assert_allclose(shifted_grid(2, 3.0), [0, 0.75, 1])
    np.testing.assert_allclose(power_grid(2, end=0.8), [0, 0.2, 0.8], rtol=1e-6)

    times = np.asarray(edm_grid(18))
    assert times.shape == (19,)
    assert (times[0], times[-1]) == (0, 1)
    assert np.all(np.diff(times) > 0)
    # The noise levels of the paper, whose roots are evenly spaced.
    roots = ((1 - times[1:-1]) / times[1:-1]) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots, 2), 0, atol=1e-4)
    np.testing.assert_allclose((1 - times[-2]) / times[-2], 0.002, rtol=1e-3)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("`shift` must be positive", lambda: shifted_grid(4, 0.0)),
        ("`power` must be positive", lambda: power_grid(4, -1.0)),
        ("`num_steps` must be at least 2", lambda: edm_grid(1)),
        ("`sigma_min` must be positive", lambda: edm_grid(4, sigma_min=100.0)),
        ("`end` must be in", lambda: power_grid(4, end=2.0)),
    ],
)
def test_misuse_of_grids(message, make):
    with pytest.raises(ValueError, match=message):
        make()
