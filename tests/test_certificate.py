"""Certificates: sound flows have no problems, and broken ones are recognized."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowkit as fk

from .oracles import mixture_2d


NUM_DATA = 3000


@pytest.fixture(scope="module")
def data():
    return mixture_2d().sample((NUM_DATA, 2), key=jr.key(1))


class Field(eqx.Module):
    """One of several velocities: certificates of all of them share their programs."""

    number: jax.Array
    network: fk.nn.MLP

    def __call__(self, t, x, cond):
        trained = lambda t, x: self.network(t, x)
        return jax.lax.switch(self.number, [*FIELDS.values(), trained], t, x)


def exact(t, x):
    return fk.exact_flow(mixture_2d())(t, x)


FIELDS = {
    "exact": exact,
    "wrong sign": lambda t, x: -exact(t, x),
    "noise and data exchanged": lambda t, x: -exact(1 - t, x),
    "without time": lambda t, x: -0.5 * x,
    # The optimal map of a normal distribution onto another one, of spread 3.
    "stretched": lambda t, x: 2 * x / (1 + 2 * t),
}


def flow_of(name, network=None):
    number = jnp.asarray([*FIELDS, "trained"].index(name))
    return fk.Flow(Field(number, untrained() if network is None else network))


def untrained():
    return fk.nn.MLP(2, hidden_sizes=(64, 64), key=jr.key(3))


def certify(flow, **options):
    return fk.certify(flow, (2,), key=jr.key(2), num_samples=32, **options)


def text(certificate):
    return " ".join(certificate.problems)


def test_an_exact_flow_has_no_problems(data):
    certificate = certify(flow_of("exact"), data=data)
    assert certificate.problems == ()
    assert certificate.failed == 0
    assert certificate.log_prob_error == 0
    assert certificate.solver_error < 1e-3
    assert certificate.round_trip_error < 1e-3
    # Three standard errors of the mean of the data, by their spread.
    assert certificate.start_error < 3 / np.sqrt(NUM_DATA)

    table = str(certificate)
    assert table.endswith("No problems.")
    assert "error of the continuity" in table


def test_the_order_of_the_data_does_not_matter(data):
    ordered = data[jnp.argsort(data[:, 0])]
    assert certify(flow_of("exact"), data=ordered).problems == ()


def test_standardized_target_flows_with_their_data_have_no_problems(data):
    mean, std = jnp.array([3.0, -1.0]), jnp.array([0.5, 4.0])
    inner = fk.exact_flow(mixture_2d(), fk.CosinePath(), prediction=fk.Target())
    flow = fk.Standardized(inner, mean, std)
    certificate = certify(flow, data=mean + std * data)
    assert certificate.problems == ()


def test_broken_flows_are_recognized(data):
    """The sign of the velocity, and noise and data exchanged."""
    certificate = certify(flow_of("wrong sign"), data=data)
    # It misses twice of what it does.
    assert certificate.continuity_error == pytest.approx(2, abs=0.1)
    assert "wrong sign" in text(certificate)
    assert "At `t = 0`" in text(certificate)

    exchanged = certify(flow_of("noise and data exchanged"), data=data)
    assert "noise and data are exchanged" in text(exchanged)
    assert "The velocity misses" in text(exchanged)


@eqx.filter_jit
def trained(network, data, num_steps):
    optimizer = optax.adam(3e-3)
    arrays, static = eqx.partition(network, eqx.is_inexact_array)

    def loss(arrays, key):
        batch_key, key = jr.split(key)
        batch = jr.choice(batch_key, data, (256,))
        flow = fk.Flow(eqx.combine(arrays, static))
        return fk.flow_matching_loss(flow, batch, key=key)

    def step(i, carry):
        arrays, state = carry
        gradient = jax.grad(loss)(arrays, jr.fold_in(jr.key(4), i))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(arrays, updates), state

    with jax.numpy_dtype_promotion("standard"):
        start = arrays, optimizer.init(arrays)
        arrays, _ = jax.lax.fori_loop(0, num_steps, step, start)
    return eqx.combine(arrays, static)


def test_training_ends_the_problems(data):
    fresh = mixture_2d().sample((NUM_DATA, 2), key=jr.key(5))
    # The number of steps is an array, so that both share one program.
    train = lambda num_steps: trained(untrained(), data, jnp.asarray(num_steps))
    half = certify(flow_of("trained", train(15)), data=fresh)
    assert "half trained" in text(half)
    assert certify(flow_of("trained", train(2500)), data=fresh).problems == ()


def test_coarse_steps_are_a_problem():
    certificate = certify(flow_of("exact"), solver=dfx.Euler(), num_steps=4)
    assert certificate.evaluations == certificate.most_evaluations == 4
    assert len(certificate.problems) == 1
    assert "too coarse" in text(certificate)


def test_samples_that_do_not_arrive_are_counted():
    certificate = certify(flow_of("exact"), max_steps=9)
    assert 0 < certificate.failed <= 32
    assert "did not arrive" in text(certificate)


def test_a_velocity_without_time_is_a_problem():
    certificate = certify(flow_of("without time"))
    assert "does not depend on the time" in text(certificate)


def test_couplings_have_no_velocity_to_compare_with(data):
    flow = flow_of("stretched")
    data = 3 * jr.normal(jr.key(1), (NUM_DATA, 2))
    assert "independent=False" in text(certify(flow, data=data))
    certificate = certify(flow, data=data, independent=False)
    assert certificate.problems == ()
    assert certificate.continuity_error is None


def test_conditions_and_masks(key):
    """Clouds around a condition, some of whose points are masked and hold nothing."""

    def network(t, x, cond, mask=None):
        data = fk.Normal(cond, 0.5)
        exact = fk.exact_flow(data)
        return exact(t, x)

    cond = jr.normal(key, (500, 1))
    mask = jnp.arange(3) < jnp.arange(500)[:, None] % 3 + 1
    x1 = cond[:, None] + 0.5 * jr.normal(jr.key(6), (500, 3, 1))
    x1 = jnp.where(mask[..., None], x1, jnp.nan)
    certificate = fk.certify(
        fk.Flow(network),
        (3, 1),
        data=x1,
        cond=cond,
        mask=mask,
        num_samples=16,
        key=key,
    )
    assert certificate.problems == ()
    assert certificate.start_error is None


class OfASign(eqx.Module):
    """The exact velocity of N(cond, 0.5^2) for the signs -1 and 1.

    The condition 0 is none, for a network that has seen it, and a number like any other.
    """

    has_seen_none: jax.Array

    def __call__(self, t, x, cond):
        both = fk.exact_flow(fk.GaussianMixture(np.array([[-1.0], [1.0]]), 0.5))
        of_one = fk.exact_flow(fk.Normal(cond, 0.5))
        is_none = self.has_seen_none & (cond == 0)
        return jnp.where(is_none, both(t, x), of_one(t, x))


@pytest.mark.parametrize("has_seen_none", [True, False])
def test_conditions_that_were_never_left_out_are_recognized(has_seen_none, key):
    """The check that guidance asks for before it."""
    sign_key, noise_key = jr.split(jr.key(7))
    signs = jr.rademacher(sign_key, (NUM_DATA, 1), jnp.float32)
    x1 = signs + 0.5 * jr.normal(noise_key, (NUM_DATA, 1))
    certificate = fk.certify(
        fk.Flow(OfASign(jnp.array(has_seen_none))),
        (1,),
        data=x1,
        cond=jnp.zeros(()),
        cond_axes=None,
        num_samples=16,
        key=key,
    )
    if has_seen_none:
        assert certificate.problems == ()
    else:
        assert "The velocity misses" in text(certificate)


def test_misuse(data, key):
    flow = fk.exact_flow(mixture_2d())
    with pytest.raises(ValueError, match="`data` must have rows of the `shape`"):
        fk.certify(flow, (3,), data=data, key=key)
    with pytest.raises(ValueError, match="`cond` must have 3000 rows"):
        fk.certify(flow, (2,), data=data, cond=jnp.zeros(5), key=key)
    with pytest.raises(ValueError, match="`num_samples` must be at least 2"):
        fk.certify(flow, (2,), num_samples=1, key=key)
    with pytest.raises(ValueError, match="`data` must have at least two rows"):
        fk.certify(flow, (2,), data=data[:1], key=key)
