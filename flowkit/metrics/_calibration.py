r"""Scores of samples of a posterior against the truth that they should surround.

If the truth and the $n$ samples are exchangeable, the number of samples below the truth,
its rank, is uniform over $0, \dots, n$. Give every rank $r$ the piece
$[r, r + 1] / (n + 1)$ of the unit interval: a central interval of probability $p$ then covers
exactly a fraction $p$ of the ranks, where a rank whose piece is only partly covered counts only in
part. Between the probabilities $(n + 1 - 2j) / (n + 1)$ of the intervals from the $j$-th
smallest to the $j$-th largest sample this is linear interpolation.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, Number
from flowkit.metrics._inputs import check_values, nan_if_any, working_dtype


def crps(
    samples: Float[AnyArray, " n *shape"], truth: Float[AnyArray, " *shape"]
) -> Float[Array, " *shape"]:
    r"""The continuous ranked probability score of samples, for every entry of the truth.

    $$\frac1n \sum_i |x_i - y| - \frac{1}{2 n (n - 1)} \sum_{i, j} |x_i - x_j|.$$

    Low is good, and the unit is that of the truth. The expectation is least for samples of
    the true distribution, and does not depend on the number of samples: this is the fair
    score, which is unbiased. A single value may be negative. For one sample per entry
    it is undefined; the absolute error is its counterpart for a point estimate.

    **Arguments:** at least two `samples (n, ...)`, and the `truth (...)`.

    **Reference:** Gneiting & Raftery, *Strictly Proper Scoring Rules, Prediction, and
    Estimation* (2007); Ferro, *Fair scores for ensemble forecasts* (2014).
    """
    _check(samples, truth)
    if len(samples) < 2:
        raise ValueError(
            "`samples` holds one sample per entry; the spread of the score needs at least "
            "two."
        )
    return _crps(samples, truth)


def interval_coverage(
    samples: Float[AnyArray, " n *shape"],
    truth: Float[AnyArray, " *shape"],
    level: Number = 0.9,
) -> Float[Array, ""]:
    r"""The fraction of entries whose truth lies in the central interval of their samples.

    For calibrated samples the expectation is exactly `level`, for any number of them.
    With $n$ samples, the interval from the $j$-th smallest to the $j$-th largest has the
    probability $(n + 1 - 2j) / (n + 1)$. At a level between two of these, a truth that
    lies in the wider interval only counts in part. Less than `level` means that the
    samples are too narrow or displaced, more that they are too wide.

    A truth equal to some of the samples, as among clipped values, counts as the mean over
    all places among them.

    **Arguments:**

    - `samples (n, ...)`, `truth (...)`.
    - `level`: the probability of the interval, in (0, 1).

    **Raises:** `ValueError` for fewer than `(1 + level) / (1 - level)` samples, which
    bound no interval of that probability; 0.9 needs 19.
    """
    _check(samples, truth)
    if not 0 < level < 1:
        raise ValueError(f"`level` is {level}; a probability lies between 0 and 1.")

    # Rounding must not ask for one sample more.
    needed = math.ceil((1 + level) / (1 - level) - 1e-6)
    if len(samples) < needed:
        raise ValueError(
            f"`samples` holds {len(samples)} samples per entry; a central interval of "
            f"`level` {level} needs at least {needed}."
        )
    # An array, since a number would be a constant of the compiled program.
    return _coverage(samples, truth, jnp.asarray(level, working_dtype(samples)))


def rank_histogram(
    samples: Float[AnyArray, " n *shape"], truth: Float[AnyArray, " *shape"]
) -> Float[Array, " n+1"]:
    """How often the truth has each rank among the samples, `(n + 1,)`.

    The rank is the number of samples below the truth. Calibrated samples give equal
    counts on average. A valley in the middle means that samples are too narrow, a hill
    that they are too wide, and a slope that they are displaced.

    Every entry of the truth counts 1. Ties split it evenly among the ranks it could
    have, so the histogram needs no key. Entries of one image depend on each other: for a
    test of uniformity use independent ones, such as one pixel per image.

    **Arguments:** `samples (n, ...)`, `truth (...)`.

    **Reference:** Hamill, *Interpretation of Rank Histograms for Verifying Ensemble
    Forecasts* (2001).
    """
    _check(samples, truth)
    return _rank_histogram(samples, truth)


def _check(samples, truth) -> None:
    check_values("samples", samples)
    check_values("truth", truth)


@eqx.filter_jit
def _crps(samples, truth):
    dtype = working_dtype(samples)
    # The score does not change with the origin, and small numbers keep their digits.
    errors = jnp.asarray(samples, dtype) - jnp.asarray(truth, dtype)[None]
    count = len(errors)

    # In order of size, a sample is the larger one of `i` pairs, and the smaller one of
    # `count - 1 - i`.
    signs = 2 * jnp.arange(count, dtype=dtype) - (count - 1)
    weights = signs / (count * (count - 1))
    ordered = jnp.sort(errors, axis=0)
    # Weights cancel, and some devices would round them to 10 bits or fewer.
    spread = jnp.tensordot(weights, ordered, 1, precision="highest")
    return jnp.mean(jnp.abs(errors), axis=0) - spread


def rank_bounds(
    samples: Float[AnyArray, " n *shape"], truth: Float[AnyArray, " *shape"]
) -> tuple[Float[Array, " *shape"], Float[Array, " *shape"]]:
    """The lowest and the highest rank that the truth may have; they differ by ties.

    NaN among the samples or in the truth, which has no rank, makes them NaN.
    """
    dtype = working_dtype(samples)
    samples = jnp.asarray(samples, dtype)
    truth = jnp.asarray(truth, dtype)[None]
    missing = jnp.any(jnp.isnan(samples) | jnp.isnan(truth), axis=0)
    lowest = jnp.sum(samples < truth, axis=0, dtype=dtype)
    highest = jnp.sum(samples <= truth, axis=0, dtype=dtype)
    return jnp.where(missing, jnp.nan, lowest), jnp.where(missing, jnp.nan, highest)


@eqx.filter_jit
def _coverage(samples, truth, level):
    num_ranks = len(samples) + 1
    lowest, highest = rank_bounds(samples, truth)

    # The pieces of the ranks reach from `lowest` to `highest + 1`, in units of one piece.
    start = num_ranks * (1 - level) / 2
    end = num_ranks * (1 + level) / 2
    covered = jnp.clip(highest + 1, start, end) - jnp.clip(lowest, start, end)
    return jnp.mean(covered / (highest + 1 - lowest))


@eqx.filter_jit
def _rank_histogram(samples, truth):
    lowest, highest = rank_bounds(samples, truth)
    share = 1 / (highest + 1 - lowest)

    ranks = jnp.arange(len(samples) + 1, dtype=lowest.dtype)
    ranks = ranks.reshape(-1, *[1] * lowest.ndim)
    possible = (lowest[None] <= ranks) & (ranks <= highest[None])
    shares = jnp.where(possible, share[None], 0)
    counts = jnp.sum(shares.reshape(len(ranks), -1), axis=1)
    return nan_if_any(counts, lowest)
