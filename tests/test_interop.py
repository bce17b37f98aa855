"""A flow in NumPyro: densities by closed forms, posteriors in standard errors."""

import sys

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Trace_ELBO
from numpyro.infer.reparam import TransformReparam

import flowkit as fk

from .oracles import mixture_2d


GRID: dict = {"solver": fk.RK4(), "num_steps": 8}
STD = 0.5


@pytest.fixture(autouse=True)
def standard_promotion():
    """NumPyro mixes types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def around_cond(t, x, cond):
    """The exact flow of N(cond, STD^2)."""
    return fk.exact_flow(fk.Normal(cond, STD))(t, x)


def turning(t, x, cond):
    """A field whose coordinates depend on each other."""
    return jnp.sin(2 * x[::-1]) + t * x


def test_densities_for_every_batch():
    cond = jr.normal(jr.key(0), (3, 2))
    flow = fk.interop.numpyro(around_cond, (2,), cond=cond, batch_ndim=1, **GRID)
    assert issubclass(type(flow), dist.TransformedDistribution)
    assert (flow.batch_shape, flow.event_shape) == ((3,), (2,))
    assert flow.support.event_dim == 1

    values = jnp.asarray(flow.sample(jr.key(1), (4,)))
    assert values.shape == (4, 3, 2)
    expected = st.norm.logpdf(values, cond, STD).sum(-1)
    found = np.asarray(flow.log_prob(values))
    np.testing.assert_allclose(found, expected, atol=1e-3)

    one = fk.log_prob(around_cond, values[2, 1], cond[1], **GRID)
    np.testing.assert_allclose(found[2, 1], one, rtol=1e-6)
    # One value for all conditions.
    shared = values[:, :1]
    expected = st.norm.logpdf(shared, cond, STD).sum(-1)
    np.testing.assert_allclose(flow.log_prob(shared), expected, atol=1e-3)

    # A batch of one, for many values.
    options = {"cond": cond[:1], "batch_ndim": 1, **GRID}
    one = fk.interop.numpyro(around_cond, (2,), **options).expand((4,))
    expected = st.norm.logpdf(values[:, 0], cond[0], STD).sum(-1)
    np.testing.assert_allclose(one.log_prob(values[:, 0]), expected, atol=1e-3)


def test_transform_by_autodiff():
    """A flow is a map: its inverse, and the determinant of its Jacobian."""
    source = fk.Normal(jnp.array([0.5, -1.0]), 0.8)
    flow = fk.interop.numpyro(turning, (2,), source=source, **GRID)
    (transform,) = flow.transforms
    x0 = flow.base_dist.sample(jr.key(2))
    np.testing.assert_array_equal(x0, source.sample((2,), key=jr.key(2)))
    x1 = transform(x0)
    np.testing.assert_allclose(transform.inv(x1), x0, atol=2e-3)

    expected = jnp.linalg.slogdet(jax.jacrev(transform)(x0))[1]
    found = transform.log_abs_det_jacobian(x0, x1)
    np.testing.assert_allclose(found, expected, atol=2e-3)

    # NumPyro's own sum of the two, which wrappers of it use.
    plain = dist.TransformedDistribution(flow.base_dist, transform)
    np.testing.assert_allclose(plain.log_prob(x1), flow.log_prob(x1), atol=1e-4)


def test_keys_and_pytrees():
    flow = fk.interop.numpyro(turning, (2,), **GRID)
    values = flow.sample(jr.key(3), (3,))
    np.testing.assert_array_equal(values, flow.sample(jr.PRNGKey(3), (3,)))

    # An argument of compiled functions, as NumPyro's own distributions are.
    through_jit = jax.jit(lambda flow, value: flow.log_prob(value))
    expected = flow.log_prob(values)
    np.testing.assert_allclose(through_jit(flow, values), expected, rtol=1e-6)


def moments(mixture):
    weights = jax.nn.softmax(mixture.logits)
    mean = weights @ mixture.means
    squares = jax.vmap(jnp.diag)(mixture.covariances) + mixture.means**2
    return mean, weights @ squares - mean**2


@pytest.mark.parametrize("noise_space", [False, True], ids=["data", "noise"])
def test_posteriors_by_nuts(noise_space):
    """A prior seen through a sum of its coordinates, moved in its own space or in that of its
    noise: the posterior of a Gaussian mixture is one again."""
    mean, stds = np.array([[0.5, -1.0], [0.7, 1.2]], np.float32)
    if noise_space:
        mixture = mixture_2d()
        flow = fk.exact_flow(mixture)
    else:
        mixture = fk.GaussianMixture(mean[None], stds[None])
        flow = fk.exact_flow(fk.Normal(mean, stds))
    reparam = {"x": TransformReparam()} if noise_space else {}
    operator = fk.inverse.Matrix(np.array([[1.0, 0.5]], np.float32))
    observed = np.array([0.4], np.float32)

    def model():
        x = numpyro.sample("x", fk.interop.numpyro(flow, (2,), **GRID))
        numpyro.sample("y", dist.Normal(operator(x), 0.6).to_event(1), obs=observed)

    kernel = NUTS(numpyro.handlers.reparam(model, config=reparam), max_tree_depth=3)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=600, progress_bar=False)
    mcmc.run(jr.key(4))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])

    exact = fk.inverse.exact_posterior(mixture, operator, observed, noise_std=0.6)
    mean, variance = moments(exact)
    for found, expected in ((x, mean), ((x - mean) ** 2, variance)):
        error = found.std((0, 1)) / effective_sample_size(found) ** 0.5
        assert np.all(np.abs(found.mean((0, 1)) - expected) < 4 * error)
        # Small enough for the test to fail.
        assert np.all(error < 0.15 * np.maximum(variance, np.sqrt(variance)))


def test_the_exact_posterior_as_a_guide():
    """Every particle of the evidence bound is then the evidence itself."""
    y = jnp.array([0.7, -1.2])

    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1).to_event(1))
        numpyro.sample("y", dist.Normal(z, STD).to_event(1), obs=y)

    posterior = fk.Normal(y / (1 + STD**2), STD / (1 + STD**2) ** 0.5)

    def guide():
        flow = fk.exact_flow(posterior)
        numpyro.sample("z", fk.interop.numpyro(flow, (2,), **GRID))

    bound = -Trace_ELBO(num_particles=4).loss(jr.key(5), {}, model, guide)
    evidence = st.norm.logpdf(y, 0, (1 + STD**2) ** 0.5).sum()
    np.testing.assert_allclose(bound, evidence, atol=2e-3)


def test_fixed_probes_estimate_the_density():
    """Of a flow with independent coordinates, random signs give the exact trace."""
    exact = fk.exact_flow(fk.Normal(1.0, STD))
    options = {"key": jr.key(6), "num_probes": 2, **GRID}
    flow = fk.interop.numpyro(exact, (3,), **options)
    value = jnp.array([[0.3, 1.0, 1.8]])
    expected = st.norm.logpdf(value, 1.0, STD).sum(-1)
    np.testing.assert_allclose(flow.log_prob(value), expected, atol=1e-3)


def test_a_grid_serves_both_directions():
    times = jnp.linspace(0, 1, 9) ** 2
    on = lambda times: {"solver": fk.RK4(), "stepsize_controller": dfx.StepTo(times)}
    flow = fk.interop.numpyro(turning, (2,), **on(times))
    x0 = flow.base_dist.sample(jr.key(8))
    (transform,) = flow.transforms
    x1 = transform(x0)
    expected = fk.sample(turning, (2,), num_samples=1, x0=x0[None], **on(times))
    np.testing.assert_allclose(x1, expected.values[0], rtol=1e-5)

    back = on(times[::-1])
    expected = fk.encode(turning, x1, **back)
    np.testing.assert_allclose(transform.inv(x1), expected, rtol=1e-5)
    expected = fk.log_prob(turning, x1, **back)
    through_jit = jax.jit(lambda flow, x1: flow.log_prob(x1))
    for log_prob in (flow.log_prob(x1), through_jit(flow, x1)):
        np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


def test_solves_that_fail_are_nan():
    flow = fk.interop.numpyro(turning, (2,), max_steps=2)
    assert np.all(np.isnan(flow.sample(jr.key(7), (3,))))
    assert np.isnan(flow.log_prob(jnp.ones(2)))


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"batch_ndim": 1}, "`cond` must hold arrays that share 1 leading axes"),
        ({"batch_ndim": 2, "cond": np.ones(3)}, "share 2 leading axes"),
        (
            {"batch_ndim": 1, "cond": (np.ones((3, 2)), np.ones((4, 2)))},
            r"got shapes \[\(3, 2\), \(4, 2\)\]",
        ),
        ({"solver": dfx.Euler()}, "no error estimate"),
        ({"stepsize_controller": dfx.StepTo(jnp.array([1.0, 0.0]))}, "give `times"),
        ({"num_probes": 4}, "`num_probes` must be at least 1, and needs a `key`"),
        ({"num_probes": 0, "key": jr.key(0)}, "`num_probes` must be at least 1"),
    ],
)
def test_wrong_use(options, fragment):
    with pytest.raises(ValueError, match=fragment):
        fk.interop.numpyro(around_cond, (2,), **options)


def test_values_of_another_shape():
    flow = fk.interop.numpyro(around_cond, (2,), cond=jnp.zeros(2), **GRID)
    for shape in ((3,), (4, 1), ()):
        with pytest.raises(ValueError, match="must end in the event shape"):
            flow.log_prob(jnp.zeros(shape))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "flowkit.interop._flow_distribution", False)
    monkeypatch.setitem(sys.modules, "numpyro", None)
    with pytest.raises(ImportError, match=r"flowkit-jax\[numpyro\]"):
        fk.interop.numpyro(around_cond, (2,))
