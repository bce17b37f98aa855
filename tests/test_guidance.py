"""Guidance: against the Gaussian in which it is exact, and against its definition for
every prediction."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk


def shifted(t, x, cond):
    """The exact velocity of N(cond, 0.5^2), which is affine in the mean: guided by
    zero it is that of scale * cond."""
    mean = jnp.zeros_like(x) if cond is None else cond
    return fk.exact_flow(fk.Normal(mean, 0.5))(t, x)


@pytest.mark.parametrize("scale", [0.0, np.float32(1), jnp.array(3.0)])
def test_a_shifted_gaussian_is_shifted_by_the_scale(scale, key):
    flow, cond = fk.guided(fk.Flow(shifted), scale), jnp.array([1.0, -0.5])
    for t in (0.0, 0.4, 1.0):
        x = jr.normal(key, (2,))
        np.testing.assert_allclose(
            flow(t, x, cond), shifted(t, x, scale * cond), atol=1e-5
        )
    options = {"num_samples": 4, "cond_axes": None, "key": key}
    samples = fk.sample(flow, (2,), cond=cond, **options)
    expected = fk.sample(fk.Flow(shifted), (2,), cond=scale * cond, **options)
    np.testing.assert_allclose(samples.values, expected.values, atol=1e-4)


@pytest.mark.parametrize("prediction", [fk.Velocity(), fk.Noise(), fk.Target()])
def test_every_prediction_is_guided_alike(prediction, key):
    """The velocity of a guided network is the extrapolation of the velocities, and
    so is its score."""
    network = lambda t, x, cond: jnp.sin(x + t) + cond["shift"] * x
    flow = fk.Flow(network, fk.CosinePath(), prediction)
    cond, null = {"shift": jnp.array(0.7)}, {"shift": jnp.array(-0.2)}
    x = jr.normal(key, (3,))
    for target in (fk.Velocity(), fk.Score()):
        with_cond, without = (flow.predict(target, 0.3, x, c) for c in (cond, null))
        guided = fk.guided(flow, 1.8, null=null)
        assert isinstance(guided, fk.Flow)
        value = guided.predict(target, 0.3, x, cond)
        np.testing.assert_allclose(
            value, without + 1.8 * (with_cond - without), rtol=1e-4
        )


def test_outside_its_interval_the_flow_is_as_it_was(key):
    flow, cond, x = fk.Flow(shifted), jnp.ones(2), jr.normal(key, (2,))
    part = fk.guided(flow, 3.0, interval=(0.2, 0.6))
    for t, scale in ((0.1, 1.0), (0.2, 3.0), (0.6, 3.0), (0.7, 1.0)):
        np.testing.assert_allclose(
            part(t, x, cond), shifted(t, x, scale * cond), atol=1e-5
        )


def test_masks_and_keys_reach_the_network(key):
    def network(t, x, cond, mask=None, key=None):
        return x + cond + jnp.sum(mask, dtype=x.dtype) + jr.uniform(key)

    mask, x = jnp.array([True, False]), jnp.ones((2, 2))
    value = fk.guided(fk.Flow(network), 2.0)(0.5, x, jnp.ones(2), mask=mask, key=key)
    np.testing.assert_allclose(value, [[4 + jr.uniform(key)] * 2, [0, 0]], rtol=1e-6)


def test_conditions_are_dropped_whole_and_as_often_as_said(key):
    num = 10_000
    cond = {"class": jax.nn.one_hot(jnp.arange(num) % 3, 3), "size": jnp.full(num, 2.0)}
    dropped = fk.drop_condition(cond, 0.3, key=key)
    gone = np.asarray(dropped["size"]) == 0
    np.testing.assert_array_equal(
        dropped["class"], np.where(gone[:, None], 0, cond["class"])
    )
    assert abs(gone.mean() - 0.3) < 3 * np.sqrt(0.3 * 0.7 / num)
    null = {"class": np.ones(3), "size": 7}
    assert set(np.unique(fk.drop_condition(cond, 0.3, null=null, key=key)["size"])) == {
        2.0,
        7.0,
    }


def test_integer_labels_say_which_one_stands_for_none(key):
    """Class 0 is a class: it is neither taken for the dropped ones nor left without guidance."""
    labels = jnp.arange(3000) % 3
    with pytest.raises(ValueError, match="`null` is missing"):
        fk.drop_condition(labels, 0.5, key=key)
    dropped = np.asarray(fk.drop_condition(labels, 0.5, null=3, key=key))
    kept = dropped != 3
    np.testing.assert_array_equal(dropped[kept], labels[kept])
    assert abs(kept.mean() - 0.5) < 3 * 0.5 / np.sqrt(3000)

    means = jnp.array([1.0, 2.0, 3.0, 0.0])
    flow = fk.Flow(lambda t, x, cond: shifted(t, x, means[cond]))
    with pytest.raises(ValueError, match="`null` is missing"):
        fk.guided(flow, 3.0)(0.5, jnp.ones(1), jnp.array(0))
    guided = fk.guided(flow, 3.0, null=3)
    options = {"num_samples": 2, "cond_axes": None, "key": key, "num_steps": 20}
    for label in (0, 2):
        got = fk.sample(guided, (1,), cond=label, **options).values
        expected = fk.sample(fk.Flow(shifted), (1,), cond=3 * means[label], **options)
        np.testing.assert_allclose(got, expected.values, atol=1e-4)


def field(t, x, cond):
    """The coordinates that are asked for, and the mean of what was observed, 0 for nothing."""
    known = jnp.where(cond.mask[:, None], cond.values, 0)
    return cond.query_coords + jnp.mean(known, axis=0)[None]


@pytest.mark.parametrize("null", [None, fk.nn.Observed.as_null])
def test_fields_without_a_condition_are_asked_at_the_same_coordinates(null, key):
    queries, coords, values = jr.uniform(key, (3, 40, 5, 2))
    cond = fk.nn.Observed(queries, coords, values, jnp.ones((40, 5), bool))
    dropped = fk.drop_condition(cond, 0.5, null=null, key=key)
    gone = ~np.asarray(dropped.mask)
    np.testing.assert_array_equal(gone.all(axis=1), gone.any(axis=1))
    assert 5 < gone[:, 0].sum() < 35
    for name in ("query_coords", "coords", "values"):
        np.testing.assert_array_equal(getattr(dropped, name), getattr(cond, name))

    one = jax.tree.map(lambda leaf: leaf[0], cond)
    guided = fk.guided(fk.Flow(field), 3.0, null=null)(0.5, queries[0], one)
    expected = queries[0] + 3.0 * jnp.mean(values[0], axis=0)[None]
    np.testing.assert_allclose(guided, expected, rtol=1e-5)


def test_a_flow_with_units_is_guided_inside_them():
    flow, cond = fk.Standardized(fk.Flow(shifted), 10.0, 2.0), jnp.array([1.0, -0.5])
    options = {"num_samples": 3, "cond_axes": None, "x0": jnp.ones((3, 2))}
    got = fk.sample(fk.guided(flow, 3.0), (2,), cond=cond, **options).values
    inner = fk.sample(fk.guided(flow.flow, 3.0), (2,), cond=cond, **options).values
    np.testing.assert_allclose(got, 10.0 + 2.0 * inner, rtol=1e-5)


def test_wrong_use(key):
    flow = fk.Flow(shifted)
    with pytest.raises(ValueError, match="`interval` must be two times"):
        fk.guided(flow, 2.0, interval=(0.6, 0.2))
    with pytest.raises(ValueError, match="must have the head"):
        fk.guided(fk.Flow(shifted, head=fk.MixtureHead(2)), 2.0)
    with pytest.raises(ValueError, match="`cond` is missing"):
        fk.guided(flow, 2.0)(0.5, jnp.ones(2))
    with pytest.raises(ValueError, match=r"`probability` must be in \[0, 1\]"):
        fk.drop_condition(jnp.ones((3, 2)), 1.5, key=key)
    with pytest.raises(ValueError, match="`cond` holds no arrays"):
        fk.drop_condition(None, key=key)
    for cond in (3, jnp.array(3.0)):
        with pytest.raises(ValueError, match="`cond` must be a batch.* but holds"):
            fk.drop_condition(cond, key=key)
    with pytest.raises(ValueError, match="`null` is missing: `cond` holds booleans"):
        fk.drop_condition(jnp.ones((3, 2), bool), key=key)
    classes = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"`null` must be .* \(3,\), got \(4, 3\)"):
        fk.drop_condition(classes, null=0 * classes, key=key)
    for null in (-1, 300, 0.5, np.array(-1)):
        with pytest.raises(ValueError, match="`null` is .* type of `cond`, uint8"):
            fk.drop_condition(np.arange(3, dtype=np.uint8), null=null, key=key)
    with pytest.raises(ValueError, match="`cond` is missing"):
        fk.guided(flow, 2.0)(0.5, jnp.ones(2), {})
    cond = {"class": jnp.ones(3), "size": jnp.ones(())}
    with pytest.raises(ValueError, match="`null` must be the condition of one"):
        fk.guided(flow, 2.0, null=0.0)(0.5, jnp.ones(2), cond)
    seen = fk.nn.Observed(*jnp.ones((3, 4, 5, 2)))
    with pytest.raises(ValueError, match="`mask` is missing"):
        fk.drop_condition(seen, key=key)


def test_a_weaker_model_is_led_away_from(key):
    """For Gaussians of one width the guided flow is that of the extrapolated mean."""
    flow = fk.exact_flow(fk.Normal(1.0, 0.5))
    weaker = fk.exact_flow(fk.Normal(0.6, 0.5))
    guided = fk.guidance.autoguided(flow, weaker, 2.5, interval=(0.2, 0.9))
    x = jr.normal(key, (3,))
    for t, mean in ((0.1, 1.0), (0.5, 1.6), (0.95, 1.0)):
        expected = fk.exact_flow(fk.Normal(mean, 0.5))(t, x)
        np.testing.assert_allclose(guided(t, x), expected, atol=1e-5)


def test_conditions_compose(key):
    """Affine velocities add up: the mean is the weighted sum of the conditions."""
    scales = (1.5, -0.5)
    flow = fk.guidance.composed(fk.Flow(shifted), scales)
    conds = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    x = jr.normal(key, (2,))
    expected = shifted(0.4, x, 1.5 * conds[0] - 0.5 * conds[1])
    np.testing.assert_allclose(flow(0.4, x, conds), expected, atol=1e-5)

    one = fk.guidance.composed(fk.Flow(shifted), [3.0])
    expected = fk.guided(fk.Flow(shifted), 3.0)(0.4, x, conds[0])
    np.testing.assert_allclose(one(0.4, x, conds[:1]), expected, atol=1e-6)


def test_units_stay_outside(key):
    """Standardized velocities are extrapolated, and data keep their mean and deviation."""
    exact = lambda mean: fk.exact_flow(fk.Normal(mean, 0.5))
    x = jr.normal(key, (2,))
    pairs = {
        "weaker": (
            fk.guidance.autoguided(
                fk.Standardized(exact(1.0), 10.0, 2.0),
                fk.Standardized(exact(0.6), 10.0, 2.0),
                2.5,
            ),
            fk.guidance.autoguided(exact(1.0), exact(0.6), np.float32(2.5)),
            None,
        ),
        "composed": (
            fk.guidance.composed(
                fk.Standardized(fk.Flow(shifted), 10.0, 2.0), [1.5, -0.5]
            ),
            fk.guidance.composed(fk.Flow(shifted), np.array([1.5, -0.5])),
            jnp.array([[1.0, 2.0], [0.5, -1.0]]),
        ),
    }
    for standardized, bare, cond in pairs.values():
        np.testing.assert_array_equal(
            standardized(0.4, x, cond), bare(0.4, x, cond), strict=True
        )
        units = standardized.shift.value, standardized.scale.value
        np.testing.assert_array_equal(units, [10.0, 2.0])


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (
            lambda flow: fk.guidance.autoguided(
                flow, fk.Flow(shifted, fk.CosinePath()), 2.0
            ),
            "`weaker` must have the path",
        ),
        (
            lambda flow: fk.guidance.autoguided(
                flow, fk.Flow(shifted, prediction=fk.Noise()), 2.0
            ),
            "`weaker` must have the path",
        ),
        (
            lambda flow: fk.guidance.autoguided(fk.Standardized(flow, 1, 2), flow, 2.0),
            "`weaker` must be in the units",
        ),
        (
            lambda flow: fk.guidance.autoguided(
                fk.Standardized(flow, 1, 2), fk.Standardized(flow, 0, 2), 2.0
            ),
            "`weaker` must be in the units",
        ),
        (
            lambda flow: fk.guidance.autoguided(flow, flow, 2.0, interval=(0.5, 2)),
            "interval",
        ),
        (lambda flow: fk.guidance.composed(flow, []), "`scales` must hold"),
        (
            lambda flow: fk.guidance.composed(flow, [1.0, 2.0])(
                0.5, jnp.zeros(2), jnp.zeros((3, 2))
            ),
            "`cond`",
        ),
        (
            lambda flow: fk.guidance.composed(flow, [1.0])(0.5, jnp.zeros(2)),
            "`cond` is missing",
        ),
        (
            lambda flow: fk.guidance.composed(flow, [1.0])(0.5, jnp.zeros(2), {}),
            "`cond` is missing",
        ),
    ],
)
def test_misuse_of_weaker_models_and_compositions(call, fragment):
    with pytest.raises(ValueError, match=fragment):
        call(fk.Flow(shifted))
