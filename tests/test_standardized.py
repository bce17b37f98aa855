"""Flows that carry the units of their data, against closed forms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy.stats import norm

import flowkit as fk


MEAN, STD = np.array([100.0, -5.0], np.float32), np.array([3.0, 0.01], np.float32)


@pytest.fixture(scope="module")
def flow():
    """The exact flow of N(MEAN, STD^2): that of N(0.5, 0.8^2) in standardized coordinates."""
    return fk.Standardized(fk.exact_flow(fk.Normal(0.5, 0.8)), MEAN, STD)


EXACT = norm(MEAN + 0.5 * STD, 0.8 * STD)
DENSITY = EXACT.logpdf  # pyright: ignore


def test_samples_are_in_the_units_of_the_data(flow, key):
    num = 4000
    x = np.asarray(fk.sample(flow, (2,), num_samples=num, key=key).values)
    assert np.all(np.abs(x.mean(0) - EXACT.mean()) < 4 * EXACT.std() / np.sqrt(num))
    assert np.all(np.abs(x.std(0) / EXACT.std() - 1) < 4 / np.sqrt(2 * num))


def test_densities_and_codes(flow, key):
    x = np.array([102.0, -4.99], np.float32)
    expected = DENSITY(x).sum()
    np.testing.assert_allclose(fk.log_prob(flow, x), expected, atol=1e-3)
    code = (x - EXACT.mean()) / EXACT.std()
    np.testing.assert_allclose(fk.encode(flow, x), code, atol=1e-3)
    values, log_probs = fk.sample_and_log_prob(flow, (2,), num_samples=4, key=key)
    np.testing.assert_allclose(log_probs, DENSITY(values).sum(1), atol=2e-3)


def test_masked_points_have_no_units(key):
    """Three points of which one is masked: it stays zero and does not count."""
    inner = fk.exact_flow(fk.Normal())
    cloud = fk.Standardized(
        fk.Flow(lambda t, x, cond, mask=None: inner(t, x)), MEAN, STD
    )
    mask = np.array([[True, False, True]])
    values, log_probs = fk.sample_and_log_prob(
        cloud, (3, 2), num_samples=1, key=key, mask=mask
    )
    np.testing.assert_array_equal(values[0, 1], [0, 0])
    expected = norm.logpdf(values[mask], MEAN, STD).sum()
    np.testing.assert_allclose(log_probs, [expected], atol=2e-3)
    got = fk.log_prob(cloud, values[0], mask=mask[0])
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_losses_take_data_as_they_are(key):
    x1 = jr.normal(key, (64, 2)) * STD + MEAN
    flow = fk.Standardized.of(fk.Flow(fk.nn.MLP(2, hidden_sizes=(8,), key=key)), x1)
    np.testing.assert_allclose(flow.scale.value, np.std(x1, axis=0), rtol=1e-5)
    standardized = (x1 - np.mean(x1, axis=0)) / np.std(x1, axis=0)
    for loss in (fk.flow_matching_loss, fk.explained_velocity):
        got = jax.tree.leaves(loss(flow, x1, key=key))
        expected = jax.tree.leaves(loss(flow.flow, standardized, key=key))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_a_perfect_flow_with_itself_as_the_floor(flow, key):
    x1 = jr.normal(key, (2000, 2)) * EXACT.std() + EXACT.mean()
    report = fk.explained_velocity(flow, x1, key=key, bins=2, floor=flow)
    np.testing.assert_allclose(report.r2, 1, atol=1e-5)

    # The units of the data are not those in which the flow runs.
    exact = fk.exact_flow(fk.Normal(EXACT.mean(), EXACT.std()))
    other = fk.Standardized(flow.flow, MEAN, 2 * STD)
    for wrong in (exact, other):
        with pytest.raises(ValueError, match="`floor` .*`mean` and `std` of `flow`"):
            fk.explained_velocity(flow, x1, key=key, floor=wrong)
    with pytest.raises(ValueError, match="`floor` is a `fk.Standardized`"):
        fk.explained_velocity(flow.flow, x1, key=key, floor=flow)


def test_training_leaves_the_units_alone(key):
    """Weight decay would shrink them, even where their gradient is zero."""
    flow = fk.Standardized(fk.Flow(fk.nn.MLP(2, hidden_sizes=(8,), key=key)), MEAN, STD)
    x1 = jr.normal(key, (32, 2)) * STD + MEAN
    loss = lambda flow, batch, key: fk.flow_matching_loss(flow, batch, key=key)
    state = fk.training.fit(
        loss,
        flow,
        x1,
        optimizer=optax.adamw(1e-2, weight_decay=0.5),
        num_steps=3,
        batch_size=16,
        key=key,
        progress=False,
    )
    for model in (state.model, state.ema):
        np.testing.assert_array_equal(model.shift.value, MEAN)
        np.testing.assert_array_equal(model.scale.value, STD)
    weights = lambda flow: jax.tree.leaves(flow.flow)[0]
    assert np.any(np.asarray(weights(state.model) != weights(flow)))
    # Samples after training, through the model that the state holds.
    fk.sample(state.model, (2,), num_samples=2, key=key, num_steps=2)


def test_the_moments_of_the_data_are_those_of_valid_points():
    flow = fk.exact_flow(fk.Normal())
    mask = np.array([[True, True, False], [True, False, False]])
    clouds = np.full((2, 3, 2), np.nan, np.float32)
    clouds[mask] = [[1, 10], [2, 40], [6, 10]]
    units = fk.Standardized.of(flow, clouds, mask=mask)
    np.testing.assert_allclose(units.shift.value, [3, 20], rtol=1e-6)
    expected = np.sqrt([14 / 3, 200])
    np.testing.assert_allclose(units.scale.value, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="`x1` holds NaN or infinity"):
        fk.Standardized.of(flow, clouds)

    half = jnp.tile(jnp.array([[3.0], [4.0]], jnp.bfloat16), (2000, 1))
    units = fk.Standardized.of(flow, half)
    np.testing.assert_allclose([units.shift.value, units.scale.value], [[3.5], [0.5]])


def test_wrong_use(flow, key):
    inner = flow.flow
    # The deviation of ten times 0.1 from their rounded mean is not 0.
    constant = np.stack([np.full(10, 0.1), np.arange(10.0)], axis=1)
    with pytest.raises(ValueError, match="`std` must be positive"):
        fk.Standardized.of(inner, constant)
    with pytest.raises(ValueError, match="`std` must be positive"):
        fk.Standardized(inner, 0.0, np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="`mean` must be finite"):
        fk.Standardized(inner, np.nan, 1.0)
    with pytest.raises(ValueError, match="already"):
        fk.Standardized(flow, 0.0, 1.0)
    with pytest.raises(ValueError, match="does not broadcast"):
        fk.sample(flow, (3,), num_samples=1, key=key)
