r"""Log-probabilities by the instantaneous change of variables.

Along the ODE, $\frac{d}{dt} \log p_t(x_t) = -\nabla \cdot v(t, x_t)$. Running it backwards from
the data together with $\dot\ell = \nabla \cdot v$ from $\ell(1) = 0$ gives
$\log p_1(x_1) = \log p_0(x_0) + \ell(0)$.

**Reference:** Chen et al., Neural Ordinary Differential Equations (2018), arXiv 1806.07366;
Grathwohl et al., FFJORD (2019), arXiv 1810.01367; Hutchinson, A stochastic estimator of the trace
(1990).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_example
from flowkit._distributions import AbstractDistribution, Empirical, Normal
from flowkit._flow import bare, log_scale, standardize, unstandardize
from flowkit._masks import zero_masked
from flowkit._solve.batching import AbstractBatching, Lockstep, Rows, Stats
from flowkit._solve.grid import checked
from flowkit._solve.ode import end_of, solve_back, with_mask
from flowkit._solve.options import (
    compiled,
    DEFAULT_ADJOINT,
    DEFAULT_SOLVER,
    resolve,
)
from flowkit._solve.sample import as_batch, jump_to_data
from flowkit._solve.traces import AbstractTrace, ExactTrace, Hutchinson
from flowkit._types import (
    AnyArray,
    Cond,
    FloatArray,
    Mask,
    numbers_as_arrays,
    PRNGKey,
    Scalar,
    VelocityField,
)


def log_prob(
    flow: VelocityField,
    x1: FloatArray,
    cond: Cond = None,
    *,
    key: PRNGKey | None = None,
    num_probes: int | None = None,
    trace: AbstractTrace | None = None,
    source: AbstractDistribution = Normal(),
    mask: Mask | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
    adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
    throw: bool = True,
) -> Float[Array, ""]:
    r"""The log-density in nats that the flow gives to one example.

    Without a key the trace is exact, at the cost of $d$ derivatives per evaluation. With a key it
    is Hutchinson's estimate $\nabla \cdot v \approx \mathrm{mean}_k\, \epsilon_k^\top J \epsilon_k$
    with random signs $\epsilon_k$ that stay fixed along the trajectory, one derivative per probe:
    unbiased for the integral.

    For a point cloud this is the joint density of its points, over all valid entries. Vectorize
    with `jax.vmap`: each example keeps its own step sizes, so its value does not depend on its
    neighbors. For second derivatives, such as `jax.hessian`, give
    `adjoint=diffrax.DirectAdjoint()`.

    **Arguments:**

    - `flow`: a `fk.Flow` or any velocity field. A flow whose velocity ends before `t = 1` (see
        `fk.Flow`) keeps its last velocity from there on.
    - `x1`: one example.
    - `cond`: the condition, passed to the velocity.
    - `key`: the random seed of the probes; `None` for the exact trace.
    - `num_probes`: the number of probes, 1 if `None`; short for
        `trace=fk.solvers.Hutchinson(num_probes)`.
    - `trace`: another estimator, such as `fk.solvers.HutchPlusPlus(4)`, or
        `fk.solvers.ExactTrace(block_size)`, which bounds the memory of many dimensions.
    - `source`: the distribution of the noise, the same as in training; it must have a
      density.
    - `mask`: the valid points, `(n,)`.
    - `solver`, `num_steps`, `stepsize_controller`, `max_steps`, `adjoint`, `throw`: as in
        `fk.integrate`.
    """
    options = resolve(solver, num_steps, stepsize_controller, max_steps, adjoint, throw)
    trace = _trace_of(trace, num_probes, key)
    values = _log_probs(flow, x1, cond, key, trace, source, mask, options)
    return jnp.mean(values)


class LogProb(NamedTuple):
    """A log-density by an estimated trace, in nats."""

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    """Of the trace alone; 0 where it is exact."""


def log_prob_with_error(
    flow: VelocityField,
    x1: FloatArray,
    cond: Cond = None,
    *,
    key: PRNGKey,
    trace: AbstractTrace = Hutchinson(16),
    source: AbstractDistribution = Normal(),
    mask: Mask | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
    adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
    throw: bool = True,
) -> LogProb:
    r"""The log-density in nats that the flow gives to one example, and its standard error.

    Every probe is integrated by itself: with the values $\ell_k$ of $n$ probes the error is
    $\mathrm{std}(\ell_k) / \sqrt n$.

    ```python
    value, error = fk.log_prob_with_error(flow, image, key=key)
    ```

    **Arguments:** as in `fk.log_prob`; `trace` needs two probes at least.

    **Returns:** a `fk.LogProb`, to unpack.
    """
    options = resolve(solver, num_steps, stepsize_controller, max_steps, adjoint, throw)
    if getattr(trace, "num_probes", 2) < 2:
        raise ValueError(
            "`trace` must have at least two probes, whose spread is the error."
        )
    values = _log_probs(flow, x1, cond, key, trace, source, mask, options)
    if isinstance(trace, ExactTrace):
        return LogProb(values[0], jnp.zeros_like(values[0]))
    error = jnp.std(values, ddof=1) / math.sqrt(len(values))
    return LogProb(jnp.mean(values), error)


def _trace_of(
    trace: AbstractTrace | None, num_probes: int | None, key: PRNGKey | None
) -> AbstractTrace:
    """How the trace is computed: exactly, unless there are probes."""
    if num_probes is not None and (num_probes < 1 or key is None):
        raise ValueError(
            f"`num_probes` must be at least 1, and needs a `key`; got {num_probes} and {key}."
        )
    if trace is None:
        return ExactTrace() if key is None else Hutchinson(num_probes or 1)
    if num_probes is not None:
        raise ValueError("give `num_probes` or `trace`, not both.")
    if key is None and not isinstance(trace, ExactTrace):
        raise ValueError("`key` is missing, for the probes of `trace`.")
    return trace


def _log_probs(flow, x1, cond, key, trace, source, mask, options):
    """One log-density for each estimate of the trace."""
    _check_source(source, mask)
    options = checked(options, end_of(bare(flow)), 0)
    x1 = jnp.asarray(x1)
    check_example("x1", x1, mask)
    probes = None if key is None else trace.draw(x1, key=key)
    velocity = _WithDivergence(bare(flow), mask, trace, probes)
    z1 = standardize(flow, x1)
    log_probs = _log_prob(velocity, z1, numbers_as_arrays(cond), source, options)
    return log_probs - log_scale(flow, x1, mask)


class SamplesAndLogProbs(eqx.Module):
    """Samples, their log-densities and their statistics.

    It unpacks into two: `values, log_probs = fk.sample_and_log_prob(...)`.
    """

    values: Float[Array, "batch ..."]
    log_probs: Float[Array, " batch"]
    stats: Stats

    def __iter__(self) -> Iterator[Array]:
        return iter((self.values, self.log_probs))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Array:
        return (self.values, self.log_probs)[index]


def sample_and_log_prob(
    flow: VelocityField,
    shape: Sequence[int],
    *,
    num_samples: int,
    key: PRNGKey,
    num_probes: int | None = None,
    trace: AbstractTrace | None = None,
    cond: Cond = None,
    cond_axes: int | None = 0,
    source: AbstractDistribution = Normal(),
    mask: Bool[AnyArray, "batch n"] | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
    adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
    throw: bool = True,
    batching: AbstractBatching = Lockstep(),
) -> SamplesAndLogProbs:
    """Samples with their log-densities in nats, from one solve.

    ```python
    values, log_probs = fk.sample_and_log_prob(flow, (2,), num_samples=1000, key=key)
    ```

    A flow whose velocity ends before `t = 1` (see `fk.Flow`) finishes with the jump to the data,
    and its last velocity is kept for the density.

    Arguments as in `fk.sample`, and `num_probes`: the number of Hutchinson probes per sample;
    `None` for the exact trace, or for that of `trace`, as in `fk.log_prob`.

    **Returns:** values `(num_samples, *shape)` and log-densities `(num_samples,)`, to unpack; the
    result's `stats` are those of `fk.sample`.
    """
    options = resolve(solver, num_steps, stepsize_controller, max_steps, adjoint, throw)
    batch = as_batch(
        shape, num_samples, cond=cond, cond_axes=cond_axes, source=source, mask=mask
    )
    _check_source(source, mask)
    options = checked(options, 0, end_of(bare(flow)))
    if num_probes is None and trace is None:
        trace = ExactTrace()
    trace = _trace_of(trace, num_probes, key)
    return _sample_and_log_prob(flow, batch, key, trace, options, batching)


class _WithDivergence(eqx.Module):
    """The velocity of `(x, l)`, where `l` integrates the divergence, one for each estimate."""

    flow: VelocityField
    mask: Mask | None
    trace: AbstractTrace
    probes: Any

    def __call__(
        self, t: Scalar, state: tuple[Array, Array], cond: Cond = None
    ) -> tuple[Array, Array]:
        x, _ = state
        velocity = with_mask(self.flow, self.mask)
        v, derivative = jax.linearize(lambda x: velocity(t, x, cond), x)
        return v, self.trace.estimates(derivative, x, self.probes)

    def start(self, x: Array) -> tuple[Array, Array]:
        """The state from which the divergence is counted."""
        x = x if self.mask is None else zero_masked(x, self.mask)
        # As many as the trace has estimates, each with an integral of its own.
        estimates = lambda x: self.trace.estimates(lambda v: v, x, self.probes)
        number = jax.eval_shape(estimates, x)
        return x, jnp.zeros_like(number)


def _check_source(
    source: AbstractDistribution, mask: Bool[AnyArray, "..."] | None
) -> None:
    if isinstance(source, Empirical):
        raise ValueError(
            "`source` is finite data (`fk.Empirical`), which has no density; give the density "
            "of its population, such as `fk.GaussianMixture(points, width)`, normal kernels "
            "around the same points, or draw samples alone."
        )
    if mask is None or not isinstance(source, Normal):
        return
    if max(jnp.ndim(source.mean), jnp.ndim(source.std)) > 1:
        raise ValueError(
            "`source` must be the same for all points if there is a `mask`: `mean` and `std` "
            "() or (d,)."
        )


def _source_log_prob(
    source: AbstractDistribution, x: Array, mask: Array | None
) -> Float[Array, ""]:
    if mask is None:
        return source.log_prob(x)
    return jnp.sum(jnp.where(mask, jax.vmap(source.log_prob)(x), 0))


@compiled
def _log_prob(velocity, x1, cond, source, options):
    velocity = eqx.nn.inference_mode(velocity)
    x0, change = solve_back(
        velocity, velocity.start(x1), cond, end_of(velocity.flow), options
    )
    return _source_log_prob(source, x0, velocity.mask) + change


@compiled
def _sample_and_log_prob(flow, batch, key, trace, options, batching):
    # The ODE runs in standardized coordinates; the units join at its end.
    units = flow
    flow = eqx.nn.inference_mode(bare(flow))

    skey, pkey = jr.split(key)
    x0 = batch.starts(skey)
    draw = lambda x, key: trace.draw(x, key=key)
    probes = jax.vmap(draw)(x0, jr.split(pkey, batch.num_samples))

    velocity_of = _Diverging(flow, trace)
    extra = (batch.mask, probes)
    start = lambda x0, extra: velocity_of(extra).start(x0)
    starts = eqx.filter_vmap(start)(x0, extra)
    rows = Rows(velocity_of, starts, batch.cond, extra, batch.cond_axes)
    t1 = jnp.asarray(end_of(flow), x0.dtype)
    times = jnp.zeros((), x0.dtype), t1
    ends, stats = batching.solve(rows, times, options)

    def finish(start, end, cond, extra):
        mask, _ = extra
        x, change = end
        if end_of(flow) < 1:
            # The jump to the data is an Euler step at the last velocity.
            _, rate = velocity_of(extra)(t1, (x, change), cond)
            change += (1 - end_of(flow)) * rate

        value = jump_to_data(flow, x, cond, mask)
        value = unstandardize(units, value)
        value = value if mask is None else zero_masked(value, mask)

        log_prob = _source_log_prob(batch.source, start[0], mask) - jnp.mean(change)
        log_prob -= log_scale(units, value, mask)
        return value, log_prob

    values, log_probs = rows.vmap(finish, starts, ends)
    return SamplesAndLogProbs(values, log_probs, stats)


class _Diverging(eqx.Module):
    """The velocity with its divergence, with the mask and the probes of one sample."""

    flow: VelocityField
    trace: AbstractTrace

    def __call__(self, extra: tuple[Mask | None, Any]) -> _WithDivergence:
        mask, probes = extra
        return _WithDivergence(self.flow, mask, self.trace, probes)
