import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.scipy.special import digamma, gammaln, multigammaln as log_gamma_d
from scipy.special import multigammaln  # pyright: ignore
from sklearn.mixture import BayesianGaussianMixture

import flowkit.nn as nn
from flowkit.nn._sets.variational_mixture import (
    cholesky_factor,
    damped,
    expected_log_det,
    expected_log_joint,
    point_weight,
    prior_mixture,
    target,
)

from .helpers import call, KEY


CENTERS = np.array([[-1.0, 0.0], [1.0, 0.5], [0.0, 1.5]])
SPREAD = np.array([[0.2, 0.1], [0.0, 0.1]])


def evidence_bound(mixture, prior, points, weight):
    """Bishop, section 10.2.2, with the best responsibilities: the data minus two divergences.

    Those of Dirichlet distributions, and of normal-Wishart distributions component by
    component: `E KL(normal)` given the precisions, plus `KL(Wishart)`.
    """
    size = points.shape[1]
    factor = cholesky_factor(mixture)
    prior_factor = cholesky_factor(prior)
    log_det = expected_log_det(mixture, factor)
    evidence = jax.nn.logsumexp(expected_log_joint(mixture, points), axis=1)

    a = mixture.concentration
    b = prior.concentration
    log_beta = lambda c: jnp.sum(gammaln(c)) - gammaln(jnp.sum(c))
    mean_log_weight = digamma(a) - digamma(jnp.sum(a))
    of_weights = log_beta(b) - log_beta(a) + jnp.sum((a - b) * mean_log_weight)

    solve = lambda right: jax.lax.linalg.triangular_solve(
        factor, right, left_side=True, lower=True
    )
    shift = jnp.sum(solve((mixture.mean - prior.mean)[..., None]) ** 2, axis=(1, 2))
    ratio = prior.mean_precision / mixture.mean_precision
    of_means = size * (ratio - 1 - jnp.log(ratio))
    of_means = of_means + prior.mean_precision * mixture.degrees * shift

    def log_wishart_constant(mixture, factor):
        diagonal = jnp.diagonal(factor, axis1=1, axis2=2)
        log_scale = 2 * jnp.sum(jnp.log(diagonal), axis=1) - size * np.log(2)
        half = mixture.degrees / 2
        return half * log_scale - jax.vmap(lambda h: log_gamma_d(h, size))(half)

    trace = jnp.sum(solve(prior_factor) ** 2, axis=(1, 2))
    of_precisions = (mixture.degrees - prior.degrees) * log_det
    of_precisions = of_precisions + mixture.degrees * (trace - size)
    constants = log_wishart_constant(mixture, factor)
    constants = constants - log_wishart_constant(prior, prior_factor)
    of_components = 0.5 * (of_means + of_precisions) + constants
    return jnp.sum(weight * evidence) - of_weights - jnp.sum(of_components)


def blobs(sizes=(20, 35, 45)):
    labels = np.repeat(np.arange(3), sizes)
    points = np.asarray(jr.normal(KEY, (sum(sizes), 2))) @ SPREAD + CENTERS[labels]
    return points.astype(np.float32)


def test_fixed_point_is_that_of_scikit_learn():
    points, num, scale = blobs(), 3, 0.3
    centered = points - points.mean(0)
    reference = BayesianGaussianMixture(
        n_components=num,
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=1 / num,
        mean_precision_prior=1.0,
        mean_prior=np.zeros(2),
        degrees_of_freedom_prior=4.0,
        covariance_prior=4 * scale**2 / num * np.eye(2),
        reg_covar=0,
        tol=1e-10,
        max_iter=2000,
        random_state=0,
    ).fit(centered.astype(np.float64))
    featurizer = nn.GMMFeaturizer(2, num_components=num, scale=scale, num_steps=100)
    weights, means, covariances, valid = call(featurizer.components, points)
    order = np.argsort(-reference.weights_)
    assert np.all(valid)
    np.testing.assert_allclose(weights, reference.weights_[order], atol=1e-4)
    np.testing.assert_allclose(
        means, reference.means_[order] + points.mean(0), atol=1e-4
    )
    np.testing.assert_allclose(covariances, reference.covariances_[order], atol=1e-4)


@pytest.mark.parametrize(("d", "num", "n"), [(2, 4, 100), (3, 2, 300), (4, 3, 2)])
def test_no_step_lowers_the_evidence_bound(d, num, n):
    rows = np.asarray(jr.normal(KEY, (n, d)), np.float64) * np.arange(1, d + 1) * 0.4
    rows[: n // 2, 0] += 3
    with jax.enable_x64(True):
        points = jnp.asarray(rows)
        prior = prior_mixture(num, d, 0.3, jnp.dtype("float64"))
        weight = point_weight(points, None, num)

        @jax.jit
        def path(mixture):
            def step(mixture, _):
                responsibilities = jax.nn.softmax(
                    expected_log_joint(mixture, points), axis=1
                )
                new = damped(
                    mixture, target(prior, points, responsibilities, weight), 0.5
                )
                return new, evidence_bound(mixture, prior, points, weight)

            return jax.lax.scan(step, mixture, length=30)[1]

        bounds = np.asarray(
            path(prior._replace(mean=points[nn.farthest_points(points, num)]))
        )
    assert np.all(np.diff(bounds) >= -1e-9 * np.abs(bounds).max())
    assert bounds[-1] > bounds[0] + 1


def test_evidence_bound_of_one_component_is_the_evidence():
    # With one component the posterior is a normal-Wishart distribution and the bound is
    # tight: Bishop, exercise 10.20. The evidence is the ratio of the constants of
    # posterior and prior.
    points, d = np.asarray(jr.normal(KEY, (30, 3)), np.float64), 3
    with jax.enable_x64(True):
        prior = prior_mixture(1, d, 0.3, jnp.dtype("float64"))
        best = target(prior, jnp.asarray(points), jnp.ones((30, 1)), jnp.ones(()))
        bound = float(evidence_bound(best, prior, jnp.asarray(points), jnp.ones(())))
        nu, nu0, beta, beta0 = (
            float(x[0])
            for x in (
                best.degrees,
                prior.degrees,
                best.mean_precision,
                prior.mean_precision,
            )
        )
        matrix, matrix0 = (
            np.asarray(best.inverse_scale[0]),
            np.asarray(prior.inverse_scale[0]),
        )
    log_det = lambda m: np.linalg.slogdet(m)[1]
    evidence = (
        multigammaln(nu / 2, d)
        - multigammaln(nu0 / 2, d)
        + nu0 / 2 * log_det(matrix0)
        - nu / 2 * log_det(matrix)
    )
    evidence += d / 2 * np.log(beta0 / beta) - 30 * d / 2 * np.log(np.pi)
    assert abs(bound - evidence) < 1e-3  # the jitter of 1e-6 on the matrices


def test_one_component_is_the_mean_and_the_axes():
    # Closed form: around the mean the posterior mean is the mean, and W^-1 is W0^-1 plus
    # the sum of squares.
    points = (
        np.asarray(jr.normal(KEY, (30, 3))) * np.array([0.2, 1.0, 3.0], np.float32) + 5
    )
    rows = np.asarray(call(nn.GMMFeaturizer(3, num_components=1, num_steps=60), points))
    centered = points - points.mean(0)
    covariance = (5 * 0.09 * np.eye(3) + centered.T @ centered) / (5 + 30)
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(rows[0], points.mean(0), rtol=1e-4)
    axes = rows[1:4] - rows[0]
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), np.sqrt(values), rtol=1e-3)
    np.testing.assert_allclose(
        np.abs(np.sum(axes * vectors.T, axis=1)), np.sqrt(values), rtol=1e-3
    )
    np.testing.assert_allclose(rows[4:] - rows[0], -axes, atol=1e-4)
    assert np.all(axes[np.arange(3), np.abs(axes).argmax(1)] > 0)


def test_points_count_at_most_forty_for_each_component():
    points = np.tile(blobs(), (10, 1))
    featurizer = nn.GMMFeaturizer(2, num_components=1, num_steps=60)
    centered = points - points.mean(0)
    expected = (4 * 0.09 * np.eye(2) + 40 * np.cov(centered.T, bias=True)) / 44
    np.testing.assert_allclose(
        call(featurizer.components, points).covariances[0], expected, rtol=1e-3
    )


def test_mixture_moves_with_the_cloud():
    featurizer = nn.GMMFeaturizer(2, num_components=4)
    shift = np.array([100.0, -50.0], np.float32)
    rows, moved = (
        np.asarray(call(featurizer, blobs())),
        np.asarray(call(featurizer, blobs() + shift)),
    )
    there = np.any(rows != 0, axis=1)
    np.testing.assert_allclose(moved[there], rows[there] + shift, atol=1e-3)


def test_mixture_of_a_large_cloud_is_finite():
    featurizer = nn.GMMFeaturizer(2)
    assert np.all(np.isfinite(call(featurizer, 1e3 * blobs())))


def test_mixture_is_a_constant_unless_told_otherwise():
    total = lambda featurizer: jax.grad(lambda points: jnp.sum(featurizer(points) ** 2))
    assert not np.any(call(total(nn.GMMFeaturizer(2, num_components=2)), blobs()))
    gradient = call(
        total(nn.GMMFeaturizer(2, num_components=2, stop_gradient=False)), blobs()
    )
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 0}, "`num_components` must be at least 1"),
        ({"rate": 0.0}, r"`rate` must be in \(0, 1\]"),
    ],
)
def test_featurizer_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        nn.GMMFeaturizer(2, **options)
