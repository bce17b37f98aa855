import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import flowkit as fk

from .oracles import (
    compilations,
    mixture_1d,
    mixture_2d,
    mixture_log_prob,
    one_of,
    PATHS,
    PREDICTIONS,
)


TIGHT = dfx.PIDController(rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("x64", "tolerance"), [(True, 1e-5), (False, 1e-3)], ids=["float64", "float32"]
)
def test_gaussian(x64, tolerance):
    """On several paths, which share a program."""
    with jax.enable_x64(x64):
        mean, covariance = np.array([1.3, -0.4]), np.array([[0.5, 0.3], [0.3, 0.4]])
        dtype = jnp.float64 if x64 else jnp.float32
        data = fk.GaussianMixture(
            jnp.asarray(mean[None], dtype), jnp.asarray(covariance[None], dtype)
        )
        paths = ("linear", "cosine", "polynomial")
        velocity = one_of([fk.exact_flow(data, PATHS[path]) for path in paths])
        x = np.array([[0.7, 0.1], [2.0, -1.5], [1.3, -0.4]])
        expected = multivariate_normal(mean, covariance).logpdf(x)
        log_prob = lambda x, number: fk.log_prob(
            velocity, x, number, stepsize_controller=TIGHT
        )
        for number, path in enumerate(paths):
            got = jax.vmap(log_prob, (0, None))(jnp.asarray(x, dtype), number)
            np.testing.assert_allclose(got, expected, atol=tolerance, err_msg=path)


def test_mixture_within_two_millinats():
    with jax.enable_x64(True):
        x = np.linspace(-4.5, 3.5, 33)
        flow = fk.exact_flow(mixture_1d(jnp.float64))
        got = jax.vmap(lambda x: fk.log_prob(flow, x, stepsize_controller=TIGHT))(
            jnp.asarray(x)[:, None]
        )
        np.testing.assert_allclose(got, mixture_log_prob(x), atol=2e-3)


def test_another_source():
    with jax.enable_x64(True):
        source = fk.Normal(jnp.array([0.5, -1.0]), jnp.array([0.7, 1.6]))
        mixture, x = mixture_2d(jnp.float64), jnp.array([0.3, 1.1])
        flow = fk.exact_flow(mixture, source=source)
        got = fk.log_prob(flow, x, source=source, stepsize_controller=TIGHT)
        np.testing.assert_allclose(got, mixture.log_prob(x), atol=1e-4)


class Square(fk.AbstractDistribution):
    """Uniform on the square of side 1."""

    def sample(self, shape, *, key):
        return jr.uniform(key, shape)

    def log_prob(self, x):
        inside = jnp.all((x >= 0) & (x <= 1))
        return jnp.where(inside, 0.0, -jnp.inf)


GROWTH = 0.5


@pytest.mark.parametrize(
    ("source", "shape", "mask"),
    [(Square(), (2,), None), (mixture_2d(), (3, 2), np.array([True, False, True]))],
    ids=["square", "clouds of a mixture"],
)
def test_sources_that_are_not_normal(source, shape, mask, key):
    """dx/dt = a x carries x0 to e^a x0, so that log p1(x) = log p0(x / e^a) - a d."""
    field = lambda t, x, cond, mask=None: GROWTH * x
    options = {"source": source, "num_steps": 4}
    masks = None if mask is None else np.tile(mask, (5, 1))
    values, log_probs = fk.sample_and_log_prob(
        field, shape, num_samples=5, mask=masks, key=key, **options
    )

    valid = np.ones(shape[:-1], bool) if mask is None else mask
    x0 = np.asarray(values)[:, valid] / np.exp(GROWTH)
    size = 2 * np.sum(valid)
    expected = jax.vmap(source.log_prob)(x0) - GROWTH * size
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4)

    score = jax.vmap(lambda x: fk.log_prob(field, x, mask=mask, **options))
    np.testing.assert_allclose(score(values), expected, rtol=1e-4)
    if mask is None:
        # Beyond the edge of the image of the square.
        assert np.all(score(values + np.exp(GROWTH)) == -np.inf)


@pytest.mark.parametrize(
    ("path", "prediction"),
    [("linear", "noise"), ("linear", "target"), ("cosine", "target")],
)
def test_cut_predictions_give_the_density_at_the_end(path, prediction):
    """The velocity held over the last or first 1e-3 of time costs less than a millinat, also
    where it comes with samples, and encoding is the inverse of sampling."""
    with jax.enable_x64(True):
        flow = fk.exact_flow(
            mixture_1d(jnp.float64), PATHS[path], prediction=PREDICTIONS[prediction]
        )
        samples = fk.sample_and_log_prob(
            flow, (1,), num_samples=32, key=jr.key(0), stepsize_controller=TIGHT
        )
        values, got = samples
        expected = mixture_log_prob(np.asarray(values)[:, 0])
        np.testing.assert_allclose(got, expected, atol=1e-3)
        assert samples.stats.evaluations.shape == (32,)
        assert len(samples) == 2
        assert samples[1] is samples.log_probs

        one = lambda x: fk.log_prob(flow, x, stepsize_controller=TIGHT)
        np.testing.assert_allclose(jax.vmap(one)(values), expected, atol=1e-3)
        if prediction == "target":
            x0, x1 = (
                jnp.array([[0.4]]),
                fk.sample(flow, (1,), num_samples=1, x0=jnp.array([[0.4]])).values,
            )
            np.testing.assert_allclose(fk.encode(flow, x1[0]), x0[0], atol=1e-4)


def test_second_derivatives_and_forward_mode():
    """The Hessian of the log-density of N(m, s^2) is -1 / s^2; the Jacobian of its code 1 / s."""
    std = jnp.array([0.5, 2.0])
    flow, x = (
        fk.exact_flow(fk.Normal(jnp.array([1.0, -0.5]), std)),
        jnp.array([0.7, 0.2]),
    )
    options = {"solver": fk.RK4(), "num_steps": 10}
    log_prob = lambda x: fk.log_prob(flow, x, adjoint=dfx.DirectAdjoint(), **options)
    np.testing.assert_allclose(
        jax.hessian(log_prob)(x), jnp.diag(-1 / std**2), atol=2e-2
    )

    forward = {"adjoint": dfx.ForwardMode(), **options}
    jvp = lambda fn, x: jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]
    np.testing.assert_allclose(
        jvp(lambda x: fk.encode(flow, x, **forward), x), 1 / std, rtol=1e-2
    )
    moved = lambda x0: fk.sample(flow, (2,), num_samples=1, x0=x0, **forward).values
    np.testing.assert_allclose(jvp(moved, x[None])[0], std, rtol=1e-2)
    scored = lambda width: fk.sample_and_log_prob(
        fk.exact_flow(fk.Normal(0.0, width)),
        (2,),
        num_samples=1,
        key=jr.key(0),
        **forward,
    )
    # log p of s z is -2 log s + constant in two dimensions.
    np.testing.assert_allclose(
        jvp(lambda s: scored(s).log_probs, jnp.array(0.5)), -4.0, rtol=1e-2
    )
    with pytest.raises(ValueError, match="`adjoint=diffrax.ForwardMode"):
        jvp(lambda x: fk.encode(flow, x, **options), x)


def test_finite_data_have_no_density(key):
    source = fk.Empirical(jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="`source` is finite data"):
        fk.log_prob(lambda t, x, cond: x, jnp.zeros(2), source=source)


class Swirl(eqx.Module):
    """A smooth nonlinear field with off-diagonal derivatives."""

    weight: jax.Array

    def __call__(self, t, x, cond):
        return jnp.tanh(jnp.ravel(x) @ self.weight + t).reshape(x.shape)


def test_hutchinson_is_unbiased(key):
    """Within 3 standard errors over 1000 repeats, for one and for several probes."""
    field = Swirl(jr.normal(key, (4, 4)))
    x = jnp.array([0.3, -0.5, 0.8, 0.1])
    exact = fk.log_prob(field, x, stepsize_controller=TIGHT)
    for num_probes in (1, 4):
        estimate = lambda key, n=num_probes: fk.log_prob(
            field, x, key=key, num_probes=n, stepsize_controller=TIGHT
        )
        draws = np.asarray(jax.vmap(estimate)(jr.split(jr.key(num_probes), 1000)))
        assert draws.std() > 0.05
        assert abs(draws.mean() - exact) < 3 * draws.std() / np.sqrt(1000)


def test_rademacher_probes_have_their_variance(key):
    """One probe at a frozen linear field: variance 2 (|S|_F^2 - sum S_ii^2), S the
    symmetric part."""
    matrix = jr.normal(key, (3, 3))
    field = lambda t, x, cond: matrix @ x
    draws = np.asarray(
        jax.vmap(lambda key: fk.log_prob(field, jnp.zeros(3), key=key))(
            jr.split(jr.key(1), 2000)
        )
    )
    symmetric = np.asarray(matrix + matrix.T) / 2
    expected = 2 * (np.sum(symmetric**2) - np.sum(np.diag(symmetric) ** 2))
    assert draws.var() == pytest.approx(float(expected), rel=0.15)
    exact = fk.log_prob(field, jnp.zeros(3))
    assert abs(draws.mean() - exact) < 4 * np.sqrt(expected / 2000)


def test_joint_field_of_a_cloud(key):
    """Points that interact: the divergence is over all entries, against the
    determinant of the map by autodiff."""
    with jax.enable_x64(True):
        field = Swirl(jr.normal(key, (6, 6), jnp.float64))
        x0 = jr.normal(jr.key(1), (3, 2), jnp.float64)
        tight = dfx.PIDController(rtol=1e-9, atol=1e-9)
        flow_map = lambda x: (
            fk.integrate(field, x.reshape(3, 2), stepsize_controller=tight)
            .ys[0]
            .ravel()
        )
        log_det = jnp.linalg.slogdet(jax.jacrev(flow_map)(x0.ravel()))[1]
        x1 = flow_map(x0.ravel()).reshape(3, 2)
        got = fk.log_prob(field, x1, stepsize_controller=tight)
        np.testing.assert_allclose(got, fk.Normal().log_prob(x0) - log_det, atol=1e-6)


def test_masked_points_do_not_count(key):
    """A point-wise flow of clouds: the log-probability is the sum over the valid points."""
    mixture = mixture_2d()
    exact = fk.exact_flow(mixture)

    class PointWise(eqx.Module):
        def __call__(self, t, x, cond, mask=None):
            return exact(t, x)

    x = mixture.sample((5, 2), key=key)
    mask = np.array([True, True, False, True, False])
    got = fk.log_prob(
        fk.Flow(PointWise()), x.at[2].set(jnp.inf), mask=mask, stepsize_controller=TIGHT
    )
    np.testing.assert_allclose(got, mixture.log_prob(x[mask]), atol=5e-3)
    clouds, log_probs = fk.sample_and_log_prob(
        fk.Flow(PointWise()),
        (5, 2),
        num_samples=2,
        key=key,
        mask=np.stack([mask, ~mask]),
        stepsize_controller=TIGHT,
    )
    np.testing.assert_allclose(
        log_probs[0], mixture.log_prob(clouds[0][mask]), atol=5e-3
    )
    np.testing.assert_allclose(
        log_probs[1], mixture.log_prob(clouds[1][~mask]), atol=5e-3
    )


@pytest.mark.parametrize("num_probes", [None, 2])
def test_samples_come_with_their_density(num_probes, key):
    values, log_probs = fk.sample_and_log_prob(
        fk.exact_flow(mixture_1d()),
        (1,),
        num_samples=64,
        key=key,
        num_probes=num_probes,
        stepsize_controller=TIGHT,
    )
    # In one dimension random signs give the exact trace.
    np.testing.assert_allclose(
        log_probs, mixture_log_prob(np.asarray(values)[:, 0]), atol=5e-3
    )


@pytest.mark.slow
def test_a_trained_network_does_not_see_the_batch(key):
    """The same point: bitwise the same at the same batch shape, within the tolerance at another."""
    import optax

    nkey, tkey = jr.split(key)
    flow = fk.Flow(fk.nn.MLP(2, hidden_sizes=(32, 32), key=nkey))
    data = mixture_2d().sample((2048, 2), key=tkey)
    loss = lambda flow, batch, key: fk.flow_matching_loss(flow, batch, key=key)
    state = fk.training.fit(
        loss,
        flow,
        data,
        optimizer=optax.adam(3e-3),
        num_steps=300,
        batch_size=256,
        key=tkey,
        progress=False,
    )
    log_prob = eqx.filter_jit(jax.vmap(lambda x: fk.log_prob(state.model, x)))
    others = jr.normal(key, (31, 2))
    x = jnp.array([[0.4, 0.9]])
    one, other = (
        log_prob(jnp.concatenate([x, others])),
        log_prob(jnp.concatenate([x, 3 * others])),
    )
    assert one[0] == other[0]
    np.testing.assert_allclose(log_prob(x)[0], one[0], atol=1e-3)
    np.testing.assert_allclose(fk.log_prob(state.model, x[0]), one[0], atol=1e-3)


def test_the_second_call_compiles_nothing(key):
    flow = fk.exact_flow(mixture_2d())
    calls = [
        lambda key, tol: fk.log_prob(
            flow,
            np.ones(2, np.float32),
            stepsize_controller=dfx.PIDController(tol, tol),
        ),
        lambda key, tol: fk.log_prob(flow, np.ones(2, np.float32), key=key),
        lambda key, tol: fk.sample_and_log_prob(flow, (2,), num_samples=3, key=key),
    ]
    for call in calls:
        jax.block_until_ready(call(key, 1e-3))
        other = jr.key(2)
        with compilations() as events:
            jax.block_until_ready(call(other, 1e-4))
        assert events == []
