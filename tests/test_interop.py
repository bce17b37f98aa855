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


def test_densities_for_every_batch():
    cond = jr.normal(jr.key(0), (3, 2))
    flow = fk.interop.numpyro(around_cond, (2,), cond=cond, batch_ndim=1, **GRID)
    assert isinstance(flow, dist.TransformedDistribution)
    assert (flow.batch_shape, flow.event_shape) == ((3,), (2,))
    assert flow.support.event_dim == 1

    values = flow.sample(jr.key(1), (4,))
    assert values.shape == (4, 3, 2)
    expected = st.norm.logpdf(values, cond, STD).sum(-1)
    np.testing.assert_allclose(flow.log_prob(values), expected, atol=1e-3)

    one = lambda value, cond: fk.log_prob(around_cond, value, cond, **GRID)
    same = jax.vmap(one)(values[0], cond)
    np.testing.assert_allclose(flow.log_prob(values[0]), same, rtol=1e-6)
    # One value for all conditions.
    shared = flow.log_prob(values[0, 0])
    np.testing.assert_allclose(shared[0], same[0], rtol=1e-6)
    assert shared.shape == (3,)


def test_transform_by_autodiff():
    """A flow is a map: its inverse, and the determinant of its Jacobian."""
    source = fk.Normal(jnp.array([0.5, -1.0]), 0.8)
    exact = fk.exact_flow(mixture_2d(), source=source)
    flow = fk.interop.numpyro(exact, (2,), source=source, **GRID)
    (transform,) = flow.transforms
    x0 = source.sample((3, 2), key=jr.key(2))
    x1 = transform(x0)
    starts = fk.sample(exact, (2,), num_samples=3, x0=x0, **GRID).values
    np.testing.assert_allclose(x1, starts, rtol=1e-6)
    np.testing.assert_allclose(transform.inv(x1), x0, atol=2e-3)

    jacobians = jax.vmap(jax.jacrev(transform))(x0)
    expected = jnp.linalg.slogdet(jacobians)[1]
    found = transform.log_abs_det_jacobian(x0, x1)
    np.testing.assert_allclose(found, expected, atol=5e-3)

    # NumPyro's own sum of the two, which wrappers of it use.
    plain = dist.TransformedDistribution(flow.base_dist, transform)
    np.testing.assert_allclose(plain.log_prob(x1), flow.log_prob(x1), atol=1e-5)


def test_samples_start_at_the_source():
    flow = fk.interop.numpyro(fk.exact_flow(mixture_2d()), (2,), **GRID)
    values = flow.sample(jr.key(3), (5,))
    x0 = fk.Normal().sample((5, 2), key=jr.key(3))
    np.testing.assert_array_equal(values, flow.transforms[0](x0))
    np.testing.assert_array_equal(values, flow.sample(jr.PRNGKey(3), (5,)))

    # A pytree, as NumPyro's own distributions are.
    through_jit = jax.jit(lambda flow, value: flow.log_prob(value))
    np.testing.assert_allclose(through_jit(flow, values), flow.log_prob(values))


def moments(mixture):
    weights = jax.nn.softmax(mixture.logits)
    mean = weights @ mixture.means
    squares = jax.vmap(jnp.diag)(mixture.covariances) + mixture.means**2
    return mean, weights @ squares - mean**2


@pytest.mark.parametrize("noise_space", [False, True], ids=["data", "noise"])
def test_posteriors_by_nuts(noise_space):
    """A mixture seen through one of its coordinates: the posterior is a mixture again."""
    mixture = mixture_2d()
    operator = fk.inverse.Matrix(np.array([[1.0, 0.5]], np.float32))
    observed = np.array([0.4], np.float32)
    posterior = fk.inverse.exact_posterior(mixture, operator, observed, noise_std=0.6)
    prior = fk.interop.numpyro(fk.exact_flow(mixture), (2,), **GRID)

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(operator(x), 0.6).to_event(1), obs=observed)

    if noise_space:
        model = numpyro.handlers.reparam(model, config={"x": TransformReparam()})
    mcmc = MCMC(
        NUTS(model, max_tree_depth=4),
        num_warmup=150,
        num_samples=250,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(4))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])

    mean, variance = moments(posterior)
    for found, expected in ((x, mean), ((x - mean) ** 2, variance)):
        error = found.std((0, 1)) / effective_sample_size(found) ** 0.5
        assert np.all(np.abs(found.mean((0, 1)) - expected) < 4 * error)
        # Enough samples for the test to fail.
        assert np.all(error < 0.2 * np.sqrt(variance))


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


def test_solves_that_fail_are_nan():
    flow = fk.interop.numpyro(fk.exact_flow(mixture_2d()), (2,), max_steps=2)
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
