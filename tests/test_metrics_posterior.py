"""Calibration of posteriors against closed forms of Gaussians; importance weights; supports."""

import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import flowkit.metrics as metrics


CASES = 2000
SAMPLES = 99
# The 99.9% quantile of the largest distance between a curve and the diagonal.
CRITICAL = 1.95 / CASES**0.5


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conjugate(width=1.0, shift=0.0, d=2):
    """`theta ~ N(0, 1)`, `x ~ N(theta, 0.5^2)`: the truth, `x`, and samples of the posterior.

    The samples are `width` times as wide as they should be, and displaced.
    """
    truth = normal(0, CASES, d)
    x = truth + 0.5 * normal(1, CASES, d)
    std = np.float32(0.2**0.5)
    samples = 0.8 * x + shift + width * std * normal(2, SAMPLES, CASES, d)
    return truth, x, samples.astype(np.float32)


# ---- simulation-based calibration


def test_exact_posteriors_have_uniform_ranks():
    truth, _, samples = conjugate()
    test = metrics.simulation_based_calibration(samples, truth)
    np.testing.assert_array_equal(test.ranks, (samples < truth).sum(0))
    assert test.counts.shape == (2, 20)
    np.testing.assert_array_equal(test.counts.sum(1), CASES)
    np.testing.assert_allclose(test.expected, CASES / 20)
    assert np.all(test.p_values > 1e-3)


@pytest.mark.parametrize(
    ("width", "shift"), [(0.8, 0.0), (1.3, 0.0), (1.0, 0.1)], ids=str
)
def test_wrong_posteriors_do_not(width, shift):
    truth, _, samples = conjugate(width, shift)
    test = metrics.simulation_based_calibration(samples, truth)
    assert np.all(test.p_values < 1e-6)
    ends = test.counts[:, [0, -1]].sum(1)
    middle = test.counts[:, 9:11].sum(1)
    if not shift:
        assert np.all((ends > middle) == (width < 1))


def test_p_values_of_one_parameter_do_not_depend_on_others():
    truth, _, samples = conjugate()
    samples[..., 1] *= 3
    both = metrics.simulation_based_calibration(samples, truth).p_values
    alone = metrics.simulation_based_calibration(samples[..., :1], truth[:, :1])
    assert both[0] == alone.p_values[0] > 1e-3
    assert both[1] < 1e-6


def test_p_values_are_those_of_scipy_and_uniform():
    """Over 300 small studies, with bins of unequal size."""
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(60, 300)).astype(np.float32)
    samples = rng.normal(size=(10, 60, 300)).astype(np.float32)
    test = metrics.simulation_based_calibration(samples, truth, num_bins=4)
    np.testing.assert_allclose(test.expected, 60 * np.array([2, 3, 3, 3]) / 11)

    ranks = (samples < truth).sum(0)
    edges = [0, 2, 5, 8, 11]
    counts = np.stack([np.histogram(ranks[:, i], edges)[0] for i in range(300)])
    np.testing.assert_array_equal(test.counts, counts)
    expected = stats.chisquare(counts, test.expected[None], axis=1).pvalue
    np.testing.assert_allclose(test.p_values, expected, rtol=1e-6)
    # They are discrete, so the test of uniformity only sees gross errors.
    assert stats.kstest(test.p_values, "uniform").pvalue > 1e-3


def test_ties_share_a_case():
    samples = np.tile(np.asarray([-1, 0, 0, 2], np.float32)[:, None, None], (1, 60, 1))
    truth = np.zeros((60, 1), np.float32)
    test = metrics.simulation_based_calibration(samples, truth, num_bins=5)
    np.testing.assert_allclose(test.ranks, 2)
    np.testing.assert_allclose(test.counts, [[0, 20, 20, 20, 0]], rtol=1e-6)


# ---- expected coverage


def test_tarp_of_exact_posteriors_is_the_diagonal(key):
    truth, x, samples = conjugate()
    random = metrics.tarp_coverage(samples, truth, key=key)
    assert random.levels.shape == random.coverage.shape == (SAMPLES + 2,)
    np.testing.assert_allclose(random.levels, np.linspace(0, 1, SAMPLES + 2), atol=1e-6)
    assert random.coverage[0] == 0
    assert random.coverage[-1] == 1
    assert random.deviation < CRITICAL
    # Points that know the observation, too.
    assert metrics.tarp_coverage(samples, truth, references=x).deviation < CRITICAL


def test_tarp_is_a_double_loop(key):
    truth, _, samples = conjugate()
    samples, truth = samples[:9, :50], truth[:50] * np.float32([1, 10])
    references = normal(4, 50, 2)
    found = metrics.tarp_coverage(samples, truth, references=references)

    unit = truth.std(0)
    distance = lambda x: np.sum(((x - references) / unit) ** 2, -1)
    ranks = (distance(samples) < distance(truth)).sum(0)
    # At the level j / 10 of ten places, a truth is inside with fewer than j of the samples.
    expected = [np.mean(ranks < j) for j in range(11)]
    np.testing.assert_allclose(found.coverage, expected, atol=1e-6)
    assert found.deviation == pytest.approx(
        np.max(np.abs(expected - np.arange(11) / 10)), abs=1e-6
    )


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_tarp_of_gaussians(width):
    """Squared distances from a fixed point have a noncentral chi-square distribution."""
    truth = normal(5, CASES, 2).astype(float)
    # Units of exactly one.
    truth = ((truth - truth.mean(0)) / truth.std(0)).astype(np.float32)
    samples = np.float32(width) * normal(6, 499, CASES, 2)
    references = normal(7, CASES, 2)
    found = metrics.tarp_coverage(samples, truth, references=references)

    places = [50, 150, 250, 350, 450]
    levels = np.asarray(found.levels)[places]
    squared = np.sum(references.astype(float) ** 2, 1)[:, None]
    radii = width**2 * stats.ncx2.ppf(levels, 2, squared / width**2)
    expected = stats.ncx2.cdf(radii, 2, squared).mean(0)
    # A smooth curve, seen through the ranks of 499 samples, moves by less than 0.005.
    error = 4 * np.sqrt(expected * (1 - expected) / CASES) + 0.005
    coverage = np.asarray(found.coverage)[places]
    assert np.all(np.abs(coverage - expected) < error)
    assert (found.deviation > 3 * CRITICAL) == (width != 1)
    # As the docstring has it.
    assert width == 1 or (coverage[-1] > levels[-1]) == (width > 1)


def test_tarp_with_references_that_see_tells_the_prior_apart(key):
    truth, x, _ = conjugate()
    prior = normal(8, SAMPLES, CASES, 2)
    assert metrics.tarp_coverage(prior, truth, key=key).deviation < CRITICAL
    seeing = metrics.tarp_coverage(prior, truth, references=x)
    assert seeing.deviation > 5 * CRITICAL


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_highest_density_coverage_of_gaussians(d, width):
    """The regions are balls, with chi-square probabilities."""
    truth = normal(9, CASES, d)
    samples = np.float32(width) * normal(10, 499, CASES, d)
    log_prob = lambda x: stats.norm.logpdf(x, scale=width).sum(-1).astype(np.float32)
    found = metrics.highest_density_coverage(log_prob(samples), log_prob(truth))

    places = [50, 150, 250, 350, 450]
    levels = np.asarray(found.levels)[places]
    expected = stats.chi2.cdf(width**2 * stats.chi2.ppf(levels, d), d)
    error = 4 * np.sqrt(expected * (1 - expected) / CASES) + 0.005
    coverage = np.asarray(found.coverage)[places]
    assert np.all(np.abs(coverage - expected) < error)
    assert (found.deviation > 3 * CRITICAL) == (width != 1)
    assert width == 1 or np.all((coverage > levels) == (width > 1))


def test_a_truth_of_no_density_is_outside_of_all_regions():
    sample_log_probs = np.zeros((3, 2), np.float32)
    truth_log_probs = np.asarray([-np.inf, 1.0], np.float32)
    found = metrics.highest_density_coverage(sample_log_probs, truth_log_probs)
    np.testing.assert_allclose(found.coverage, [0, 0.5, 0.5, 0.5, 1])


# ---- two samples


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_classifier_finds_the_best_accuracy(shift, key):
    """Between N(0, 1) and N(shift, 1) the threshold shift / 2 is best."""
    x = normal(11, 600, 1) + np.float32(shift)
    test = metrics.classifier_two_sample(x, normal(12, 600, 1), key=key)
    assert test.values.shape == (5,)
    assert test.mean == pytest.approx(test.values.mean())
    error = np.std(test.values) / np.sqrt(4)
    assert test.standard_error == pytest.approx(error)
    assert abs(test.mean - stats.norm.cdf(shift / 2)) < 4 * max(error, 0.01)


def test_classifier_is_that_of_the_benchmark(monkeypatch, key):
    """Points in units of the reference, which comes second; sizes by the dimension."""
    calls = []

    def score(classifier, points, labels, cv):
        calls.append((classifier, points, labels, cv))
        return np.asarray([0.5, 0.6])

    monkeypatch.setattr("sklearn.model_selection.cross_val_score", score)
    x, y = normal(13, 50, 3), 5 + 2 * normal(14, 50, 3)
    test = metrics.classifier_two_sample(x, y, folds=2, key=key)
    assert test.mean == pytest.approx(0.55)
    assert test.standard_error == pytest.approx(0.05)
    metrics.classifier_two_sample(x, y, folds=2, key=jr.key(1))

    (classifier, points, labels, parts), (other, *_) = calls
    assert classifier.hidden_layer_sizes == (30, 30)
    assert (classifier.activation, classifier.solver) == ("relu", "adam")
    assert classifier.random_state == parts.random_state != other.random_state
    assert (parts.n_splits, parts.shuffle) == (2, True)
    np.testing.assert_allclose(points[labels == 1].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(points[labels == 1].std(0, ddof=1), 1, rtol=1e-6)
    scaled = (x - y.mean(0)) / y.std(0, ddof=1)
    np.testing.assert_allclose(points[labels == 0], scaled, rtol=1e-4)


def test_classifier_names_the_extra(monkeypatch, key):
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    with pytest.raises(ImportError, match=r"flowkit-jax\[data\]"):
        metrics.classifier_two_sample(normal(0, 9, 2), normal(1, 9, 2), key=key)


# ---- importance weights


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 1, 1, 1], 4), ([1, 0, 0, 0], 1), ([2, 2, 0, 0], 2), ([3, 1, 0, 0], 1.6)],
)
def test_effective_sample_size(weights, expected):
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.asarray(weights, np.float32))
    # Neither scale nor range matters.
    for shift in (0, 500, -500):
        size = metrics.effective_sample_size(log_weights + np.float32(shift))
        assert size == pytest.approx(expected, rel=1e-4)
        normalized = metrics.normalized_log_weights(log_weights + np.float32(shift))
        total = np.sum(weights)
        np.testing.assert_allclose(np.exp(normalized), np.divide(weights, total), 1e-4)


def test_effective_sample_size_of_a_gaussian():
    """From N(0, s^2) to N(0, 1) it is `sqrt(2 s^2 - 1) / s^2` of the number."""
    std = 1.5
    x = std * normal(15, 100_000).astype(float)
    log_weights = stats.norm.logpdf(x) - stats.norm.logpdf(x, scale=std)
    log_weights = log_weights.astype(np.float32)
    fraction = jax.jit(metrics.effective_sample_size)(log_weights) / len(x)
    assert fraction == pytest.approx(np.sqrt(2 * std**2 - 1) / std**2, rel=0.01)
    weights = np.exp(metrics.normalized_log_weights(log_weights))
    assert weights @ x**2 == pytest.approx(1, abs=0.02)


def test_weights_of_half_precision():
    log_weights = jnp.zeros(4096, jnp.float16)
    assert metrics.effective_sample_size(log_weights) == pytest.approx(4096, rel=1e-4)


# ---- supports


def test_restriction_is_rejection():
    samples = normal(16, 4000, 2)
    inside = lambda x: jnp.all(jnp.abs(x) <= 1)
    values, rate = metrics.restrict_to_support(samples, inside)
    keep = np.all(np.abs(samples) <= 1, axis=1)
    np.testing.assert_array_equal(values, samples[keep])
    assert rate == pytest.approx(keep.mean())
    probability = (2 * stats.norm.cdf(1) - 1) ** 2
    error = np.sqrt(probability * (1 - probability) / 4000)
    assert abs(rate - probability) < 4 * error


# ---- wrong use


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: metrics.simulation_based_calibration(x[:, :9], x[0, :9]),
            r"`truth` holds 9 cases, too few for .* 2 bins .*; give more cases\.",
        ),
        (
            lambda x: metrics.simulation_based_calibration(x, x[0], num_bins=9),
            "`truth` holds 40 cases.* or fewer bins by `num_bins`",
        ),
        (
            lambda x: metrics.simulation_based_calibration(x, x[0], num_bins=21),
            "`num_bins` is 21; with 19 samples per case there are 20 ranks",
        ),
        (
            lambda x: metrics.simulation_based_calibration(x, np.nan * x[0]),
            "`truth` holds values that are not finite",
        ),
        (lambda x: metrics.tarp_coverage(x, x[0]), "`key` is missing"),
        (
            lambda x: metrics.tarp_coverage(x[:, :1], x[0, :1], key=jr.key(0)),
            "`truth` holds one case",
        ),
        (
            lambda x: metrics.tarp_coverage(x, x[0] * [0, 1, 1], key=jr.key(0)),
            r"`truth` does not vary in the parameters \[0\]",
        ),
        (
            lambda x: metrics.highest_density_coverage(x[..., 0], np.inf * x[0, :, 0]),
            "`truth_log_probs` holds NaN or plus infinity",
        ),
        (
            lambda x: metrics.classifier_two_sample(x[0], x[1, :9], key=jr.key(0)),
            "`x` holds 40 samples and `y` 9",
        ),
        (
            lambda x: metrics.classifier_two_sample(x[0], x[1], folds=1, key=jr.key(0)),
            "`folds` is 1",
        ),
        (
            lambda x: metrics.classifier_two_sample(x[0], 0 * x[1], key=jr.key(0)),
            r"`y` does not vary in the coordinates \[0, 1, 2\]",
        ),
        (
            lambda x: metrics.effective_sample_size(np.full(3, -np.inf)),
            "`log_weights` are all `-inf`",
        ),
        (
            lambda x: metrics.normalized_log_weights(np.full(3, np.nan)),
            "`log_weights` holds NaN",
        ),
        (
            lambda x: metrics.restrict_to_support(x[0], lambda x: x[0] > 100),
            "`samples` has 40 samples, and none of them is `inside`",
        ),
        (
            lambda x: metrics.restrict_to_support(x[0], lambda x: x > 0),
            r"`inside` must give one boolean .* it gave bool of shape \(3,\)",
        ),
        (
            lambda x: metrics.restrict_to_support(x[0], lambda x: x[0]),
            "`inside` must give one boolean .* it gave float32",
        ),
        (
            lambda x: jax.jit(
                lambda x: metrics.restrict_to_support(x, lambda x: x[0] > 0)
            )(x[0]),
            "`samples` is traced",
        ),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(0, 19, 40, 3))
