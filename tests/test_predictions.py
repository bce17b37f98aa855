from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jaxtyping import TypeCheckError

import flowkit as fk

from .oracles import mixture_1d, mixture_2d, PATHS, PREDICTIONS


PAIRS = [(a, b) for a in PREDICTIONS for b in PREDICTIONS]
ENDS = [
    0.0,
    float(np.nextafter(np.float32(0), np.float32(1))),
    float(np.nextafter(np.float32(1), np.float32(0))),
    1.0,
]


def pair(key, dtype=jnp.float32):
    x0key, x1key = jr.split(key)
    return jr.normal(x0key, (3,), dtype), 2 + jr.normal(x1key, (3,), dtype)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversion_recovers_the_pair(path, source, target, key):
    """At any point of the path every prediction of a known pair is known."""
    with jax.enable_x64(True):
        x0, x1 = pair(key, jnp.float64)
        for t in (0.05, 0.95):
            c = path.coefficients(t)
            x_t = path.interpolate(t, x0, x1)
            value = PREDICTIONS[source].evaluate(c, x0, x1)
            expected = PREDICTIONS[target].evaluate(c, x0, x1)
            got = fk.convert(
                value,
                t,
                x_t,
                path,
                source=PREDICTIONS[source],
                target=PREDICTIONS[target],
            )
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_linear_path_table(key):
    """The conversions of a velocity on the linear path, written out."""
    with jax.enable_x64(True):
        x0, x1 = pair(key, jnp.float64)
        t = 0.3
        x, v = t * x1 + (1 - t) * x0, x1 - x0
        to = lambda target: fk.convert(
            v, t, x, fk.LinearPath(), source=fk.Velocity(), target=target
        )
        np.testing.assert_allclose(to(fk.Target()), x + (1 - t) * v)
        np.testing.assert_allclose(to(fk.Noise()), x - t * v)
        np.testing.assert_allclose(to(fk.Score()), (t * v - x) / (1 - t))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("t", ENDS)
def test_conversions_and_their_gradients_are_finite_at_the_ends(
    path, source, target, t
):
    value, x = jnp.array([0.3, -1.0]), jnp.array([1.0, 2.0])
    convert = lambda value, x: fk.convert(
        value, t, x, path, source=PREDICTIONS[source], target=PREDICTIONS[target]
    )
    assert np.all(np.isfinite(convert(value, x)))
    gradients = jax.grad(lambda *args: jnp.sum(convert(*args) ** 2), argnums=(0, 1))(
        value, x
    )
    # The score of a point at sigma = 1e-5 is large, and its square overflows nothing but float32.
    assert np.all(np.isfinite(gradients[0]))
    assert np.all(np.isfinite(gradients[1]))


@pytest.mark.parametrize("t", ENDS)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_velocity_is_exact_on_the_closed_interval(name, t):
    """From a velocity, data and noise follow exactly at both ends and one float away from them."""
    with jax.enable_x64(True):
        flow = fk.exact_flow(mixture_1d(jnp.float64), PATHS[name])
        means = fk.exact_flow(
            mixture_1d(jnp.float64), PATHS[name], prediction=fk.Target()
        )
        noises = fk.exact_flow(
            mixture_1d(jnp.float64), PATHS[name], prediction=fk.Noise()
        )
        for x in (-2.0, 0.3, 1.9):
            x = jnp.array([x])
            np.testing.assert_allclose(
                flow.predict(fk.Target(), t, x),
                means.network(jnp.asarray(t), x),
                atol=1e-12,
            )
            np.testing.assert_allclose(
                flow.predict(fk.Noise(), t, x),
                noises.network(jnp.asarray(t), x),
                atol=1e-12,
            )


@given(t=st.floats(0, 1, width=32), x=st.floats(-4, 4, width=32))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_prediction_gives_the_same_flow(t, x):
    """Velocities of noise and target networks are those of the exact one, up to the
    documented cut of 1e-3."""
    t, x = np.float32(t), np.array([x], np.float32)
    velocities = [_velocity(name, t, x) for name in ("velocity", "noise", "target")]
    assert np.all(np.isfinite(velocities))
    if 1e-3 <= t <= 1 - 1e-3:
        # float32 in x over a division by 1e-3
        np.testing.assert_allclose(velocities[1:], [velocities[0]] * 2, atol=4e-3)


@eqx.filter_jit
def _velocity(name, t, x):
    return fk.exact_flow(mixture_1d(), prediction=PREDICTIONS[name])(t, x)


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
def test_predict_its_own_prediction_is_the_network(prediction):
    network = lambda t, x, cond: 2 * x
    flow = fk.Flow(network, prediction=prediction)
    x = jnp.array([1.0, 2.0])
    for t in (0.0, 0.5, 1.0):
        np.testing.assert_array_equal(flow.predict(prediction, t, x), 2 * x)


def test_polynomial_path_at_its_start():
    """The named exception: at t = 0 the velocity is 0 whatever the data, so the data
    are not determined by it."""
    flow = fk.exact_flow(mixture_2d(), fk.PolynomialPath(2))
    x = jnp.array([0.5, -0.5])
    np.testing.assert_array_equal(flow(0.0, x), jnp.zeros(2))
    assert np.all(np.isfinite(flow.predict(fk.Target(), 0.0, x)))


def test_wrong_use():
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="`value` must have the shape"):
        fk.convert(
            jnp.ones(3),
            0.5,
            x,
            fk.LinearPath(),
            source=fk.Velocity(),
            target=fk.Score(),
        )
    with pytest.raises(TypeCheckError, match="prediction"):
        fk.Flow(lambda t, x, cond: x, prediction="velocity")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`t` must be in"):
        fk.Flow(lambda t, x, cond: x)(1.5, x)
    with pytest.raises(ValueError, match="`network` must return the shape"):
        fk.Flow(lambda t, x, cond: x[:1])(0.5, x)
    with pytest.raises(ValueError, match="does not take one"):
        fk.Flow(lambda t, x, cond: x)(0.5, jnp.ones((2, 3)), mask=np.ones(2, bool))
    with pytest.raises(ValueError, match="`mask` must have shape"):
        fk.Flow(lambda t, x, cond, mask=None: x)(
            0.5, jnp.ones((2, 3)), mask=np.ones(3, bool)
        )
    with pytest.raises(TypeCheckError):
        fk.Flow(lambda t, x, cond: x)(0.5, jnp.ones(2, jnp.int32))


def test_keywords_are_handed_to_networks_that_have_them(key):
    seen = {}

    def network(t, x, cond, mask=None, key=None):
        seen.update(mask=mask, key=key)
        return x

    flow = fk.Flow(network)
    mask = np.array([True, False])
    out = flow(0.5, jnp.ones((2, 3)), mask=mask, key=key)
    assert seen["mask"] is mask
    assert seen["key"] is key
    np.testing.assert_array_equal(out[1], jnp.zeros(3))


def test_a_prediction_with_parameters(key):
    """Two of one class are told apart by their values."""

    class Mixed(fk.AbstractPrediction):
        weight: float
        singular_start: ClassVar[bool] = True
        singular_end: ClassVar[bool] = False

        def row(self, c):
            return jnp.full_like(c.alpha, self.weight), jnp.ones_like(c.alpha)

    x0, x1 = pair(key)
    x_t = fk.LinearPath().interpolate(0.4, x0, x1)
    got = fk.convert(
        3 * x1 + x0, 0.4, x_t, fk.LinearPath(), source=Mixed(3.0), target=Mixed(0.5)
    )
    np.testing.assert_allclose(got, 0.5 * x1 + x0, rtol=1e-5)


def test_integers_are_numbers(key):
    assert float(fk.Normal(0, 1).log_prob(jnp.zeros(1))) == pytest.approx(
        -0.918939, abs=1e-6
    )
    assert fk.Normal(np.float32(0.5), 1).sample((3,), key=key).shape == (3,)
    assert fk.LogitNormal(0, 1)(4, key=key).shape == (4,)
    assert fk.LinearPath(sigma_min=0).sigma_min == 0
    assert fk.GaussianMixture(jnp.zeros((2, 3)), 1).covariances.shape == (2, 3, 3)


@pytest.mark.parametrize("source", ["velocity", "target"])
@pytest.mark.parametrize("target", ["noise", "score"])
def test_conversions_at_the_end_of_a_path_that_ends_in_noise(source, target, key):
    """Nothing is divided by 0 there. 1e-5 earlier there is a tenth more noise."""
    with jax.enable_x64(True):
        path = fk.LinearPath(sigma_min=1e-4)
        x0, x1 = pair(key, jnp.float64)
        c = path.coefficients(1.0)
        kinds = {"source": PREDICTIONS[source], "target": PREDICTIONS[target]}
        value = kinds["source"].evaluate(c, x0, x1)
        x = path.interpolate(1.0, x0, x1)
        got = fk.convert(value, 1.0, x, path, **kinds)
        np.testing.assert_allclose(got, kinds["target"].evaluate(c, x0, x1), rtol=1e-9)
