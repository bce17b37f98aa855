"""Scores of posterior samples against closed forms, double loops and calibrated samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import flowkit.metrics as metrics

from .oracles import rounded_products


ENTRIES = 4000


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def crps_of_normal(mean, std, truth):
    """Gneiting & Raftery (2007), equation 21, with the sign of a score that is minimized."""
    z = (truth - mean) / std
    inside = z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z)
    return std * (inside - 1 / np.sqrt(np.pi))


def within(values, expected, errors=4):
    """Independent values whose mean is as expected, to some standard errors."""
    values = np.asarray(values, float)
    standard_error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - expected) < errors * standard_error
    return standard_error


# ---- the score


def test_crps_is_the_double_loop():
    samples, truth = normal(0, 7, 5, 4) + 100, normal(1, 5, 4) + 100
    exact = samples.astype(float)
    pairs = np.abs(exact[:, None] - exact[None]).sum((0, 1)) / (2 * 7 * 6)
    expected = np.abs(exact - truth).mean(0) - pairs
    found = metrics.crps(samples, truth)
    np.testing.assert_allclose(found, expected, atol=2e-6)

    vmapped = jax.vmap(metrics.crps, in_axes=(1, 0))(samples, truth)
    np.testing.assert_allclose(vmapped, expected, atol=2e-6)
    assert not rounded_products(metrics.crps, samples, truth)


@pytest.mark.parametrize("num", [2, 5])
def test_crps_is_unbiased(num):
    """For few samples, too, for which the usual estimator is far above the closed form."""
    mean, std, truth = 0.3, 1.7, 1.1
    samples = mean + std * normal(2, num, ENTRIES)
    found = metrics.crps(samples, np.full(ENTRIES, truth, np.float32))
    expected = crps_of_normal(mean, std, truth)
    standard_error = within(found, expected)

    # What dividing by the square of the number of samples would add.
    bias = std / np.sqrt(np.pi) / num
    assert bias > 10 * standard_error


def test_crps_prefers_the_true_distribution():
    truth, draws = normal(3, ENTRIES), normal(4, 5, ENTRIES)
    scores = {
        std: np.asarray(metrics.crps(np.float32(std) * draws, truth))
        for std in (0.5, 1.0, 1.5)
    }
    for std in (0.5, 1.5):
        gap = scores[std] - scores[1.0]
        assert gap.mean() > 4 * gap.std() / np.sqrt(ENTRIES)
    # The expectation over the truth as well: E|X - Y| - E|X - X'| / 2.
    within(scores[1.0], 1 / np.sqrt(np.pi))


# ---- coverage


def test_coverage_of_whole_intervals():
    """At the levels of order statistics it is the fraction between two of them."""
    samples, truth = normal(5, 9, 300), normal(6, 300)
    ordered = np.sort(samples, axis=0)
    for j in (1, 2, 4):
        inside = (ordered[j - 1] <= truth) & (truth <= ordered[9 - j])
        level = (10 - 2 * j) / 10
        found = metrics.interval_coverage(samples, truth, level)
        assert found == pytest.approx(inside.mean(), abs=1e-5)
    assert metrics.interval_coverage(samples, truth, np.float32(level)) == found


def test_coverage_between_them_is_interpolated():
    samples, truth = normal(5, 9, 300), normal(6, 300)
    narrow, middle, wide = (
        float(metrics.interval_coverage(samples, truth, level))
        for level in (0.6, 0.65, 0.8)
    )
    assert middle == pytest.approx(0.75 * narrow + 0.25 * wide, abs=1e-5)


@pytest.mark.parametrize(("num", "level"), [(19, 0.9), (24, 0.9), (8, 0.05), (9, 0.5)])
def test_coverage_of_calibrated_samples(num, level):
    """Exactly the level: on average over all ranks, and in a sample."""
    samples = np.arange(1, num + 1, dtype=np.float32)
    every = np.arange(num + 1, dtype=np.float32) + np.float32(0.5)
    tiled = np.tile(samples[:, None], num + 1)
    assert metrics.interval_coverage(tiled, every, level) == pytest.approx(level, 1e-4)

    # A skewed distribution, for which interpolated quantiles would be off.
    samples, truth = np.exp(2 * normal(7, num, ENTRIES)), np.exp(2 * normal(8, ENTRIES))
    found = metrics.interval_coverage(samples, truth, level)
    # The weights lie in [0, 1], so no variance is larger than that of a coin.
    assert abs(found - level) < 4 * np.sqrt(level * (1 - level) / ENTRIES)


def test_coverage_of_wrong_samples():
    truth = normal(8, ENTRIES)
    narrow = metrics.interval_coverage(np.float32(0.5) * normal(7, 19, ENTRIES), truth)
    displaced = metrics.interval_coverage(10 + normal(7, 19, ENTRIES), truth)
    assert 0.5 < narrow < 0.7
    assert displaced == 0


def test_ties_count_as_the_mean_over_their_ranks():
    truth = np.zeros(1, np.float32)
    samples = np.asarray([-1, 0, 0, 0, 2], np.float32)[:, None]
    # Of the ranks 1 to 4 those from 2 to 3 lie within the middle third.
    assert metrics.interval_coverage(samples, truth, 1 / 3) == pytest.approx(0.5)
    expected = [0, 0.25, 0.25, 0.25, 0.25, 0]
    np.testing.assert_allclose(metrics.rank_histogram(samples, truth), expected)


# ---- ranks


def test_ranks_are_counted():
    samples, truth = normal(9, 6, 50, 3), normal(10, 50, 3)
    ranks = (samples < truth).sum(0).reshape(-1)
    expected = np.bincount(ranks, minlength=7)
    np.testing.assert_array_equal(metrics.rank_histogram(samples, truth), expected)


def test_ranks_of_calibrated_samples_are_uniform():
    samples, truth = normal(7, 19, ENTRIES), normal(8, ENTRIES)
    counts = np.asarray(metrics.rank_histogram(samples, truth))
    assert counts.sum() == ENTRIES
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    narrow = np.asarray(metrics.rank_histogram(samples * np.float32(0.8), truth))
    assert scipy.stats.chisquare(narrow).pvalue < 1e-6
    assert narrow[[0, -1]].min() > narrow[9:11].max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: metrics.crps(x[:1], x[0]),
            "`samples` holds one sample per entry",
        ),
        (
            lambda x: metrics.crps(x, np.full_like(x[0], np.inf)),
            "`truth` holds values that are not finite",
        ),
        (
            lambda x: metrics.interval_coverage(x[:18], x[0]),
            "`level` 0.9 needs at least 19",
        ),
        (lambda x: metrics.interval_coverage(x, x[0], 1.0), "`level` is 1.0"),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(0, 19, 3))
    assert jnp.isfinite(metrics.interval_coverage(normal(0, 19, 3), normal(1, 3)))
