"""Estimates of the trace on known matrices: exact cases, means, variances, standard errors."""

import functools as ft

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowkit as fk
from flowkit.solvers import (
    ExactTrace,
    gaussian,
    Hutchinson,
    HutchPlusPlus,
    orthogonal,
    rademacher,
)


SIZE = 6
MATRIX = np.asarray(jr.normal(jr.key(0), (SIZE, SIZE)))
TRACE = np.trace(MATRIX)
SYMMETRIC = (MATRIX + MATRIX.T) / 2
LIKE = jnp.zeros((2, 3))


def product(matrix, x):
    return (matrix @ x.reshape(-1)).reshape(x.shape)


def estimates(trace, key, matrix=MATRIX):
    probes = trace.draw(LIKE, key=key)
    return trace.estimates(ft.partial(product, matrix), LIKE, probes)


@pytest.mark.parametrize("block_size", [1, 4, 64])
def test_exact_trace_in_blocks(block_size, key):
    found = estimates(ExactTrace(block_size), key)
    np.testing.assert_allclose(found, [TRACE], rtol=1e-5)


VARIANCES = {
    rademacher: 2 * (np.sum(SYMMETRIC**2) - np.sum(np.diag(SYMMETRIC) ** 2)),
    gaussian: 2 * np.sum(SYMMETRIC**2),
}


@pytest.mark.parametrize("probes", VARIANCES)
def test_mean_and_variance_of_a_probe(probes):
    found = np.asarray(estimates(Hutchinson(20_000, probes), jr.key(1)))
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - TRACE) < 4 * error
    # Of a variance, by the fourth moment.
    error = np.std((found - TRACE) ** 2) / np.sqrt(len(found))
    assert abs(found.var() - VARIANCES[probes]) < 4 * error


def over_keys(trace, matrix=MATRIX):
    """Many independent estimates."""
    one = lambda key: jnp.mean(estimates(trace, key, matrix))
    return np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(2), 4000)))


@pytest.mark.parametrize("trace", [Hutchinson(3, orthogonal), HutchPlusPlus(2)])
def test_others_are_unbiased(trace):
    found = over_keys(trace)
    error = found.std() / np.sqrt(len(found))
    assert error > 1e-3
    assert abs(found.mean() - TRACE) < 4 * error


def test_orthogonal_probes_have_less_variance_and_end_exact(key):
    fewer = over_keys(Hutchinson(3, orthogonal)).var()
    # Three independent probes share the variance of one.
    assert fewer < 0.8 * VARIANCES[gaussian] / 3
    found = jnp.mean(estimates(Hutchinson(SIZE, orthogonal), key))
    np.testing.assert_allclose(found, TRACE, rtol=1e-5)


def test_hutch_plus_plus_is_exact_for_few_directions(key):
    low_rank = MATRIX[:, :2] @ MATRIX[:2]
    found = estimates(HutchPlusPlus(2), key, low_rank)
    np.testing.assert_allclose(found, np.trace(low_rank), rtol=1e-4)


def test_hutch_plus_plus_has_a_gradient_where_the_field_is_zero(key):
    """As that of a network at the start. Probes of all directions make it exact."""
    value = lambda matrix: jnp.mean(estimates(HutchPlusPlus(SIZE), key, matrix))
    found = jax.grad(value)(jnp.zeros((SIZE, SIZE)))
    np.testing.assert_allclose(found, np.eye(SIZE), atol=1e-5)


def test_log_probabilities_and_their_standard_error(key):
    """Of a linear field at the origin, where the trace is all that varies."""
    field = lambda t, x, cond: product(jnp.asarray(MATRIX), x)
    exact = fk.log_prob(field, LIKE)
    value, error = fk.log_prob_with_error(field, LIKE, trace=ExactTrace(4), key=key)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    assert error == 0

    one = lambda key: fk.log_prob_with_error(field, LIKE, trace=Hutchinson(8), key=key)
    values, errors = jax.vmap(one)(jr.split(key, 500))
    expected = np.sqrt(VARIANCES[rademacher] / 8)
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2)), expected, rtol=0.1)
    np.testing.assert_allclose(np.std(values - exact), expected, rtol=0.15)


def test_samples_with_another_trace(key):
    flow = fk.exact_flow(fk.Normal(1.0, 0.5))
    options = {"num_samples": 4, "key": key}
    expected = fk.sample_and_log_prob(flow, (2, 3), **options)
    trace = Hutchinson(SIZE, orthogonal)
    found = fk.sample_and_log_prob(flow, (2, 3), trace=trace, **options)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=2e-3)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("`block_size` must be at least 1", lambda: ExactTrace(0)),
        ("`num_probes` must be at least 1", lambda: Hutchinson(0)),
        ("at most 6, the entries", lambda: estimates(HutchPlusPlus(7), jr.key(0))),
        (
            "for orthogonal probes",
            lambda: estimates(Hutchinson(7, orthogonal), jr.key(0)),
        ),
        (
            "`key` is missing",
            lambda: fk.log_prob(lambda t, x, c: x, LIKE, trace=HutchPlusPlus()),
        ),
        (
            "not both",
            lambda: fk.log_prob(
                lambda t, x, c: x,
                LIKE,
                trace=HutchPlusPlus(),
                num_probes=2,
                key=jr.key(0),
            ),
        ),
        (
            "at least two probes",
            lambda: fk.log_prob_with_error(
                lambda t, x, c: x, LIKE, trace=Hutchinson(1), key=jr.key(0)
            ),
        ),
    ],
)
def test_misuse(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_bits_per_dimension_of_uniform_bytes(key):
    """Eight for every byte, whatever the units: the density is 1/2 for each entry."""
    images = jnp.arange(256, dtype=jnp.uint8).reshape(4, 8, 8)
    values = fk.data.dequantize(images, key=key)
    assert np.min(values) >= -1
    assert np.max(values) < 1
    # Nothing of the bytes is lost.
    np.testing.assert_array_equal(np.floor((values + 1) * 128), images)

    log_prob = -64 * np.log(2) * np.ones(4)
    for bin_width in (1 / 128, np.float32(1 / 128)):
        found = fk.metrics.bits_per_dimension(log_prob, 64, bin_width=bin_width)
        np.testing.assert_allclose(found, 8, rtol=1e-6)


def test_the_greatest_byte_stays_below_one():
    images = jnp.full((100_000,), 255, jnp.uint8)
    assert np.max(fk.data.dequantize(images, key=jr.key(0))) < 1


def test_bins_have_a_width():
    with pytest.raises(ValueError, match="`bin_width` must be positive"):
        fk.metrics.bits_per_dimension(jnp.zeros(2), 4, bin_width=0.0)
