r"""Simulation-based calibration: ranks of the truth among samples of its posterior.

Draw $\theta$ from the prior, $x$ from the simulator given $\theta$, and $n$ samples of
the posterior given $x$. If that posterior is exact, $\theta$ and the samples are
exchangeable, and the rank of $\theta$ among them is uniform over $0, \dots, n$ for each
parameter.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._types import AnyArray, is_traced
from flowkit.metrics._calibration import rank_bounds, rank_histogram
from flowkit.metrics._inputs import check_values


# The usual condition for the chi-square distribution of Pearson's statistic.
LEAST_EXPECTED = 5


class RankTest(NamedTuple):
    """Ranks of the truth, and a test of their uniformity for each parameter.

    - `ranks`: `(cases, d)`, the number of samples below the truth. Where samples equal
        the truth it is the mean of the ranks that the truth could have.
    - `counts`: `(d, bins)`, the number of cases in each bin of ranks, for a bar chart.
    - `expected`: `(bins,)`, the mean of the counts if ranks are uniform.
    - `p_values`: `(d,)`, one for each parameter.
    """

    ranks: Float[Array, "cases d"]
    counts: Float[np.ndarray, "d bins"]
    expected: Float[np.ndarray, " bins"]
    p_values: Float[np.ndarray, " d"]


def simulation_based_calibration(
    samples: Float[AnyArray, "n cases d"],
    truth: Float[AnyArray, "cases d"],
    *,
    num_bins: int | None = None,
) -> RankTest:
    r"""Whether the truth has uniform ranks among the samples of its posterior.

    ```python
    test = fk.metrics.simulation_based_calibration(samples, truth)
    test.p_values  # small values: not calibrated
    ```

    Counts that are high at both ends mean that the samples are too narrow, a hill in the
    middle that they are too wide, and a slope that they are displaced. Uniform ranks are
    necessary but not sufficient: samples of the prior have them, too.

    The test is Pearson's chi-square test of the counts,

    $$\sum_b \frac{(c_b - e_b)^2}{e_b} \sim \chi^2_{\mathrm{bins} - 1}.$$

    It suits ranks because they are discrete. The Kolmogorov-Smirnov test assumes a
    continuous distribution, is too lenient for a discrete one, and is least sensitive at the
    ends, where samples that are too narrow show first. Ties split a case among its possible
    ranks, which makes the test lenient if there are many.

    There is one p-value per parameter. To judge all of them at once, multiply the smallest
    by their number.

    **Arguments:**

    - `samples (n, cases, d)`: samples of the posterior of each case. They must be
        independent; thin the samples of a Markov chain.
    - `truth (cases, d)`: the parameters that each case was simulated with, draws of the prior.
    - `num_bins`: how many bins the `n + 1` ranks are put into, as equal as possible. By
        default there are up to 20, with 10 cases or more in each of them on average, but at
        least 2.

    **Raises:** `ValueError` if uniform ranks would leave fewer than 5 cases in a bin.

    **Reference:** Talts, Betancourt, Simpson, Vehtari & Gelman, *Validating Bayesian
    Inference Algorithms with Simulation-Based Calibration* (2018), arXiv 1804.06788.
    """
    if is_traced(samples, truth):
        raise ValueError(
            "`samples` and `truth` must be known: call `simulation_based_calibration` "
            "outside of `jax.jit` and `jax.vmap`."
        )
    check_values("samples", samples)
    check_values("truth", truth)
    num_ranks = len(samples) + 1
    num_cases = len(truth)
    starts = _bins(num_bins, num_ranks, num_cases)
    sizes = np.diff([*starts, num_ranks])

    expected = num_cases * sizes / num_ranks
    if expected.min() < LEAST_EXPECTED:
        fewer = ", or fewer bins by `num_bins`" if len(starts) > 2 else ""
        raise ValueError(
            f"`truth` holds {num_cases} cases, too few for the test with {len(starts)} bins "
            f"of ranks, which needs {LEAST_EXPECTED} in each; give more cases{fewer}."
        )

    ranks, histograms = _ranks(samples, truth)
    counts = np.add.reduceat(np.asarray(histograms, float), starts, axis=1)
    return RankTest(ranks, counts, expected, _p_values(counts, expected))


def _bins(num_bins: int | None, num_ranks: int, num_cases: int) -> np.ndarray:
    """The first rank of each bin."""
    if num_bins is None:
        num_bins = max(2, min(20, num_ranks, num_cases // 10))
    num_bins = as_size("num_bins", num_bins)
    if not 2 <= num_bins <= num_ranks:
        raise ValueError(
            f"`num_bins` is {num_bins}; with {num_ranks - 1} samples per case there are "
            f"{num_ranks} ranks, so it must be between 2 and {num_ranks}."
        )
    return np.arange(num_bins) * num_ranks // num_bins


@eqx.filter_jit
def _ranks(samples, truth):
    lowest, highest = rank_bounds(samples, truth)
    histograms = jax.vmap(rank_histogram, in_axes=(2, 1))(samples, truth)
    return (lowest + highest) / 2, histograms


def _p_values(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    # Takes half a second to import, and nothing else here needs it.
    from scipy import stats

    statistic = np.sum((counts - expected) ** 2 / expected, axis=1)
    return stats.chi2.sf(statistic, len(expected) - 1)
