r"""Expected coverage: how often regions of a posterior hold the truth.

A family of nested regions orders the samples of a posterior, by their distance from a point
or by their density. A region that holds a fraction $p$ of an exact posterior holds the truth
with probability $p$. The number of samples further inside than the truth is then a uniform
rank. The fraction of ranks below $j$ is the coverage of the regions that hold $j$ of $n + 1$
equally likely places.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced, PRNGKey
from flowkit.metrics._calibration import rank_histogram
from flowkit.metrics._inputs import check_log_values, check_values, working_dtype


class ExpectedCoverage(NamedTuple):
    r"""The coverage of regions of a posterior, at each of their probabilities.

    - `levels`: `(n + 2,)`, the probabilities $0, 1 / (n + 1), \dots, 1$ of the regions.
    - `coverage`: `(n + 2,)`, the fraction of cases whose truth lies in them.

    For an exact posterior the expectation of the coverage is the level, for any number of
    samples.
    """

    levels: Float[Array, " k"]
    coverage: Float[Array, " k"]

    @property
    def deviation(self) -> Float[Array, ""]:
        r"""The largest distance of the coverage from its level.

        For an exact posterior it is $0.87 / \sqrt{\mathrm{cases}}$ on average, and above
        $1.36 / \sqrt{\mathrm{cases}}$ in 5% of trials, or less with few samples.
        """
        return jnp.max(jnp.abs(self.coverage - self.levels))


def tarp_coverage(
    samples: Float[AnyArray, "n cases d"],
    truth: Float[AnyArray, "cases d"],
    *,
    references: Float[AnyArray, "cases d"] | None = None,
    key: PRNGKey | None = None,
) -> ExpectedCoverage:
    r"""The expected coverage of balls around random points (TARP).

    ```python
    result = fk.metrics.tarp_coverage(samples, truth, key=key)
    result.levels, result.coverage, result.deviation
    ```

    A case has a reference point, and its regions are the balls around that point: a sample
    is inside if it is nearer to the point than the truth is. No density is needed. Near
    level 1, the curve is below the diagonal if the samples are too narrow, and above it if
    they are too wide.

    The reference point of a case is the truth of another case, chosen at random: a draw of
    the prior. It does not depend on the observation, and with such points even the prior
    itself has the correct coverage. To tell a posterior from the prior, give `references`
    that are a function of the observation, random or not.

    Distances are Euclidean, with each parameter in units of its standard deviation over the
    truths.

    **Arguments:**

    - `samples (n, cases, d)`: independent samples of the posterior of each case.
    - `truth (cases, d)`: the parameters that each case was simulated with, at least two cases.
    - `references (cases, d)`: the reference points, in place of random ones. They must not
        depend on the truth of their own case.
    - `key`: the random seed of the reference points; not needed with `references`.

    **Reference:** Lemos, Coogan, Hezaveh & Perreault-Levasseur, *Sampling-Based Accuracy
    Testing of Posterior Estimators for General Inference* (2023), arXiv 2302.03026.
    """
    check_values("samples", samples)
    check_values("truth", truth)
    if references is not None:
        check_values("references", references)
    elif key is None:
        raise ValueError("`key` is missing; give it, or the points `references`.")
    _check_spread(truth)
    return _tarp_coverage(samples, truth, references, key)


def highest_density_coverage(
    sample_log_probs: Float[AnyArray, "n cases"],
    truth_log_probs: Float[AnyArray, " cases"],
) -> ExpectedCoverage:
    """The expected coverage of the regions of highest density.

    The regions of a case are those where the density of its posterior is above a level: a
    sample is inside if it is more likely than the truth. Samples that are too narrow give
    a curve below the diagonal, samples that are too wide one above it.

    ```python
    log_prob = lambda theta, x: fk.log_prob(flow, theta, x)
    truth_log_probs = jax.vmap(log_prob)(truth, observations)
    fk.metrics.highest_density_coverage(sample_log_probs, truth_log_probs).deviation
    ```

    Only the order within a case matters, so densities need not be normalized.

    **Arguments:** log-densities under the posterior of each case: those of its samples,
    `sample_log_probs (n, cases)`, and that of its truth, `truth_log_probs (cases,)`. Where
    the density is zero they are `-inf`.

    **Reference:** Hermans et al., *A Trust Crisis In Simulation-Based Inference? Your
    Posterior Approximations Can Be Unfaithful* (2022), arXiv 2110.06581.
    """
    check_log_values("sample_log_probs", sample_log_probs)
    check_log_values("truth_log_probs", truth_log_probs)
    return _highest_density_coverage(sample_log_probs, truth_log_probs)


def _check_spread(truth: AnyArray) -> None:
    if len(truth) < 2:
        raise ValueError(
            "`truth` holds one case; the reference points and the units of the distances "
            "need at least two."
        )
    if is_traced(truth):
        return
    constant = np.flatnonzero(np.ptp(np.asarray(truth), axis=0) == 0)
    if len(constant):
        raise ValueError(
            f"`truth` does not vary in the parameters {constant.tolist()}, so they have no "
            "unit; leave them out."
        )


@eqx.filter_jit
def _tarp_coverage(samples, truth, references, key):
    dtype = working_dtype(samples)
    truth = jnp.asarray(truth, dtype)
    if references is None:
        cases = jnp.arange(len(truth))
        # Never the case itself, and never past the end after the remainder is taken.
        steps = jr.randint(key, (len(truth),), 1, len(truth))
        references = truth[(cases + steps) % len(truth)]

    unit = jnp.std(truth, axis=0, keepdims=True)
    references = jnp.asarray(references, dtype) / unit

    def distances(parameters):
        return jnp.sum(jnp.square(parameters / unit - references), axis=-1)

    samples = jnp.asarray(samples, dtype)
    return _coverage(jax.vmap(distances)(samples), distances(truth))


@eqx.filter_jit
def _highest_density_coverage(sample_log_probs, truth_log_probs):
    return _coverage(-sample_log_probs, -truth_log_probs)


def _coverage(samples: Array, truth: Array) -> ExpectedCoverage:
    """The coverage curve of regions that hold all values below a threshold."""
    counts = rank_histogram(samples, truth)
    below = jnp.concatenate([jnp.zeros(1, counts.dtype), jnp.cumsum(counts)])
    levels = jnp.arange(len(below), dtype=counts.dtype) / len(counts)
    return ExpectedCoverage(levels, below / len(truth))
