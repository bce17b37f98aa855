"""Whether a flow is sound: its solver, both directions, its densities, and its velocity."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float

from flowkit._checks import as_shape, as_size, check_data, check_rows
from flowkit._distributions import AbstractDistribution, Empirical, Normal
from flowkit._flow import bare, Flow
from flowkit._solve import measurements
from flowkit._solve.measurements import rms, Subject
from flowkit._solve.options import DEFAULT_SOLVER
from flowkit._types import AnyArray, Cond, numbers_as_arrays, PRNGKey, VelocityField


class Certificate(eqx.Module):
    """What `fk.certify` has found; it prints as a table.

    Errors are root mean squares, relative to the spread of the quantity they belong to. Fields
    that do not apply to a flow are `None`.
    """

    evaluations: float | None
    """Mean evaluations per sample, with those of rejected steps."""
    most_evaluations: float | None
    """The evaluations of the most expensive sample."""
    rejected: float
    """Mean number of rejected steps per sample."""
    failed: int
    """Samples whose solve failed, or that are not finite."""
    solver_error: float
    """The error of samples, against a solve with tolerances of 1e-6."""
    reachable_error: float
    """The difference of two such solves, by different methods: in float32 its resolution."""
    round_trip_error: float
    """The error of the noise after a solve to the data and back."""
    log_prob_gap: float | None
    """The greatest difference between log-densities of both directions, in nats."""
    log_prob_error: float | None
    """The mean standard error of a log-density by Hutchinson's estimate, in nats; 0 where the
    trace is exact."""
    start_error: float | None
    """The error of the velocity at `t = 0`, which is known for independent pairs."""
    continuity_error: float | None
    """The part of the way from noise to data that the velocity misses.

    It is measured by the weak form of the continuity equation.
    """
    problems: tuple[str, ...]
    """What is wrong, in sentences; empty for a sound flow."""

    def __str__(self) -> str:
        rows = [
            ("evaluations, mean", self.evaluations),
            ("evaluations, most", self.most_evaluations),
            ("rejected steps, mean", self.rejected),
            ("failed samples", self.failed),
            ("error of the solver", self.solver_error),
            ("error that can be reached", self.reachable_error),
            ("error of the round trip", self.round_trip_error),
            ("gap of log-densities, nats", self.log_prob_gap),
            ("error of log-densities, nats", self.log_prob_error),
            ("error of the velocity at 0", self.start_error),
            ("error of the continuity", self.continuity_error),
        ]
        lines = [f"{name:30}{_number(value):>10}" for name, value in rows]
        return "\n".join([*lines, *(self.problems or ("No problems.",))])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def certify(
    flow: VelocityField,
    shape: Sequence[int],
    *,
    key: PRNGKey,
    data: Float[AnyArray, "rows ..."] | None = None,
    cond: Cond = None,
    cond_axes: int | None = 0,
    mask: Bool[AnyArray, "rows n"] | None = None,
    source: AbstractDistribution = Normal(),
    independent: bool = True,
    num_samples: int = 64,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
) -> Certificate:
    r"""Checks a flow, and the way it is sampled, for problems.

    ```python
    certificate = fk.certify(flow, (2,), data=x1, key=key)
    print(certificate)
    assert not certificate.problems
    ```

    It draws samples as you would, compares them with an accurate solve, maps them back to noise,
    and compares the log-densities of both directions. A flow trained on independent pairs must
    also have the velocity that its data imply. This is checked at `t = 0`, where the velocity is
    known, and in between by the weak form of the continuity equation,
    $\mathbb E[\nabla \phi \cdot v] = \mathbb E[\nabla \phi \cdot (\alpha' x_1 + \sigma' x_0)]$ at
    $x_t$, for random cosines $\phi$. This detects a flow that is half trained, has the wrong sign,
    or has noise and data exchanged. The whole check takes about as long as compiling seven solves.

    **Arguments:**

    - `flow`: a `fk.Flow`, a `fk.Standardized` one, or any velocity field.
    - `shape`: the shape of one sample.
    - `key`: the random seed.
    - `data`: examples that were not trained on, a few thousand for a sharp result; without them
        the velocity is checked at `t = 0` only.
    - `cond`, `mask`: one row for each of `data`, or, without data, for each sample; `cond_axes` as
        in `fk.sample`.
    - `source`: the distribution of the noise, the one of training.
    - `independent`: `False` for flows trained with other couplings or by reflow, whose velocity
      has no reference to compare with.
    - `num_samples`: samples for everything that is solved, at least two.
    - `solver`, `num_steps`, `stepsize_controller`, `max_steps`: how you sample, as in `fk.sample`.

    **Returns:** a `fk.Certificate`.
    """
    # A single one has no spread, the unit of errors.
    num_samples = as_size("num_samples", num_samples, least=2)
    shape = as_shape(shape)
    cond = numbers_as_arrays(cond)
    data = _checked_data(data, shape, cond, cond_axes, mask)
    if data is not None:
        # The conditions and masks of samples are those of the first rows.
        num_samples = min(num_samples, len(data))

    # The velocity is judged on all data, everything that is solved on a few samples.
    whole = Subject(flow, shape, num_samples, cond, cond_axes, source, mask)
    few = _first_rows(whole)
    options = {"solver": solver, "max_steps": max_steps}
    options |= {"num_steps": num_steps, "stepsize_controller": stepsize_controller}
    of_solver = _of_solver(few, options, key=jr.fold_in(key, 0))
    of_densities = _of_densities(few, key=jr.fold_in(key, 1))
    of_velocity = _of_velocity(whole, few, data, independent, key=jr.fold_in(key, 2))
    problems = (
        *of_solver.problems(num_samples),
        *of_densities.problems(math.prod(shape)),
        *of_velocity.problems(),
    )
    shown = of_velocity.start_error, of_velocity.continuity_error
    return Certificate(*of_solver, *of_densities, *shown, problems)


def _checked_data(
    data: Any, shape: tuple[int, ...], cond: Cond, cond_axes: int | None, mask: Any
) -> Any:
    if data is None:
        return None
    data = jnp.asarray(data)
    check_data("data", data, mask)
    if data.shape[1:] != shape:
        raise ValueError(
            f"`data` must have rows of the `shape` {shape}, got {data.shape[1:]}."
        )
    if len(data) < 2:
        raise ValueError(
            "`data` must have at least two rows, whose spread is the unit of errors, got one; "
            "give more, or leave `data` out."
        )
    if cond_axes == 0:
        check_rows("cond", cond, len(data), "row of `data`")
    return data


def _first_rows(subject: Subject) -> Subject:
    """The subject with the conditions and masks of its samples alone."""
    take = lambda leaf: leaf[: subject.num_samples]
    cond = subject.cond
    if subject.cond_axes == 0:
        cond = jax.tree.map(take, cond)
    mask = None if subject.mask is None else take(subject.mask)
    return subject._replace(cond=cond, mask=mask)


class _OfSolver(NamedTuple):
    evaluations: float | None
    most_evaluations: float | None
    rejected: float
    failed: int
    solver_error: float
    reachable_error: float
    round_trip_error: float

    def problems(self, num_samples: int) -> Iterator[str]:
        # A NaN is a problem, so that every comparison is written to fail for it.
        if self.failed:
            yield (
                f"{self.failed} of {num_samples} samples did not arrive: the solver gave up or "
                "met values that are not finite. Raise `max_steps`, or look at the network."
            )
        if not self.solver_error <= 0.02:
            yield (
                f"The steps are too coarse: samples are {self.solver_error:.2g} of their spread "
                "away from an accurate solve. Take more steps, or a lower tolerance."
            )
        if not self.reachable_error <= 0.01:
            yield (
                "Two accurate solves differ: the velocity changes too fast for this type. Look "
                "at the time embedding of the network, or use float64."
            )
        if not self.round_trip_error <= 0.05:
            yield (
                f"The way back misses the noise by {self.round_trip_error:.2g} of its spread: "
                "do not trust encodings and log-densities."
            )


def _of_solver(subject: Subject, options: dict, *, key: PRNGKey) -> _OfSolver:
    x0 = measurements.starts(subject, key)
    asked, accurate, other = measurements.ends(subject, x0, options)
    back = measurements.way_back(subject, accurate)

    stats = asked.stats
    success = lambda result: result == dfx.RESULTS.successful
    succeeded = jax.vmap(success)(stats.result)
    axes = tuple(range(1, accurate.ndim))
    finite = jnp.all(jnp.isfinite(asked.values), axes)
    arrived = np.asarray(succeeded & finite)

    spread = rms(accurate - jnp.mean(accurate, axis=0))
    # What did not arrive is counted, and must not hide the error of the rest.
    error = rms((asked.values - accurate)[arrived])
    evaluations = stats.evaluations
    return _OfSolver(
        None if evaluations is None else float(jnp.mean(evaluations)),
        None if evaluations is None else float(jnp.max(evaluations)),
        float(jnp.mean(stats.rejected)),
        int(np.sum(~arrived)),
        float(error / spread),
        float(rms(accurate - other) / spread),
        float(rms(back - x0) / rms(x0)),
    )


class _OfDensities(NamedTuple):
    gap: float | None
    error: float | None

    def problems(self, size: int) -> Iterator[str]:
        if self.gap is None or self.error is None:
            return
        # Small errors of many entries add up, and so do the probes of both directions.
        if not self.gap <= 0.05 + 1e-3 * size + 8 * self.error:
            yield f"Log-densities of both directions differ by up to {self.gap:.2g} nats."


def _of_densities(subject: Subject, *, key: PRNGKey) -> _OfDensities:
    if isinstance(subject.source, Empirical):
        return _OfDensities(None, None)

    exact = math.prod(subject.shape) <= measurements.EXACT_UP_TO
    num_probes = None if exact else measurements.NUM_PROBES
    forward, backward = measurements.log_probs(subject, num_probes, key=key)
    gap = jnp.max(jnp.abs(forward - jnp.mean(backward, axis=1)))
    if num_probes is None:
        # One exact trace has no spread.
        return _OfDensities(float(gap), 0.0)
    spread = jnp.std(backward, axis=1, ddof=1)
    error = jnp.mean(spread) / math.sqrt(num_probes)
    return _OfDensities(float(gap), float(error))


class _OfVelocity(NamedTuple):
    sees_time: bool
    start_error: float | None
    continuity_error: float | None
    excess: float | None

    def problems(self) -> Iterator[str]:
        if not self.sees_time:
            yield "The velocity does not depend on the time: does the network see `t`?"
        if self.start_error is not None and not self.start_error <= 0.3:
            yield (
                "At `t = 0` the velocity is not the mean of the data less the noise: the flow is "
                "half trained, its pairs were not independent (`independent=False`), or noise "
                "and data are exchanged."
            )
        if self.continuity_error is None or self.excess is None:
            return
        # A large share with a small excess is noise: the data are too few to tell.
        if not (self.continuity_error <= 0.1 or self.excess < 3):
            yield (
                f"The velocity misses {self.continuity_error:.2g} of the way from noise to data: "
                "it has the wrong sign, is half trained, or belongs to other data."
            )


def _of_velocity(
    whole: Subject, few: Subject, data: Any, independent: bool, *, key: PRNGKey
) -> _OfVelocity:
    start_key, key = jr.split(key)
    if not (independent and isinstance(bare(whole.flow), Flow)):
        return _OfVelocity(True, None, None, None)

    x0 = measurements.starts(few, start_key)
    start_error = None
    # Under conditions the data have a mean for each, which is not known.
    one_mean = whole.cond is None or whole.cond_axes is None
    one_mean = one_mean and whole.mask is None
    if one_mean and measurements.starts_in_noise(whole.flow):
        start_error = float(measurements.start_error(few, x0, data))

    sees_time = bool(measurements.depends_on_time(few, x0))
    if data is None:
        return _OfVelocity(sees_time, start_error, None, None)
    error, excess = measurements.weak_form(whole, data, key=key)
    return _OfVelocity(sees_time, start_error, float(error), float(excess))
