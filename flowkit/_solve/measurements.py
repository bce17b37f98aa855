r"""What `fk.certify` measures of a flow.

Where noise and data are paired independently, the velocity of a flow is that of the path,
$v(t, x) = \mathbb E[\alpha' x_1 + \sigma' x_0 \mid x_t = x]$. Two things follow that need no
other flow to compare with:

- At `t = 0` a point is noise alone and says nothing of the data, so that on paths with
  $\alpha_0 = 0$

$$v(0, x) = \alpha'_0\, \mathbb E[x_1] + \sigma'_0\, x.$$

- The continuity equation holds in its weak form: for every smooth $\phi$,

$$\mathbb E\bigl[\nabla \phi(t, x_t) \cdot v(t, x_t)\bigr]
= \mathbb E\bigl[\nabla \phi(t, x_t) \cdot (\alpha' x_1 + \sigma' x_0)\bigr],$$

whose right side is the effect of the path on $\mathbb E[\phi]$. Here $\phi$ are cosines of
random frequencies in space and time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._distributions import AbstractDistribution
from flowkit._flow import bare, Flow, standardize
from flowkit._masks import zero_masked
from flowkit._solve.likelihood import log_prob, sample_and_log_prob
from flowkit._solve.ode import encode, with_mask
from flowkit._solve.sample import sample
from flowkit._types import Cond, PRNGKey, VelocityField


EXACT_UP_TO = 64
"""Entries of an example up to which the trace is exact."""

NUM_PROBES = 8

NUM_TESTS = 64
"""Test functions of the continuity equation."""

ROWS_AT_A_TIME = 256
"""Rows of data in the memory of a network."""


class Subject(NamedTuple):
    """A flow, and what its samples are drawn from."""

    flow: VelocityField
    shape: tuple[int, ...]
    num_samples: int
    cond: Cond
    cond_axes: int | None
    source: AbstractDistribution
    mask: Any

    def draws(self) -> dict[str, Any]:
        """The arguments of samplers."""
        return {
            "num_samples": self.num_samples,
            "cond": self.cond,
            "cond_axes": self.cond_axes,
            "source": self.source,
            "mask": self.mask,
        }


def starts(subject: Subject, key: PRNGKey) -> Float[Array, "samples ..."]:
    shape = (subject.num_samples, *subject.shape)
    x0 = subject.source.sample(shape, key=key)
    return _zero_masked(subject, x0)


def _zero_masked(subject: Subject, rows: Array) -> Array:
    """The rows with their masked points set to zero."""
    mask = subject.mask
    return rows if mask is None else jax.vmap(zero_masked)(rows, mask)


class Ends(NamedTuple):
    """Where one noise goes: as asked for, and by two accurate solves."""

    asked: Any
    accurate: Float[Array, "samples ..."]
    other: Float[Array, "samples ..."]


def ends(subject: Subject, x0: Array, options: dict[str, Any]) -> Ends:
    """The same noises, by the user's solver and as accurately as float32 allows."""
    draws = subject.draws() | {"x0": x0, "throw": False}
    asked = sample(subject.flow, subject.shape, **draws, **options)
    # Two methods of different order: where they agree, both are correct.
    tight: dict[str, Any] = {
        "stepsize_controller": dfx.PIDController(rtol=1e-6, atol=1e-6)
    }
    by = lambda solver: sample(
        subject.flow, subject.shape, **draws, solver=solver, **tight
    )
    return Ends(asked, by(dfx.Dopri8()).values, by(dfx.Tsit5()).values)


def way_back(subject: Subject, x1: Array) -> Float[Array, "samples ..."]:
    """The noises of samples."""

    def one(x1, cond, mask):
        return encode(subject.flow, x1, cond, mask=mask, throw=False)

    axes = (0, subject.cond_axes, 0)
    return eqx.filter_vmap(one, in_axes=axes)(x1, subject.cond, subject.mask)


class LogProbs(NamedTuple):
    """Log-densities of samples: from the forward solve, and backward, one per probe."""

    forward: Float[Array, " samples"]
    backward: Float[Array, "samples probes"]


def log_probs(subject: Subject, num_probes: int | None, *, key: PRNGKey) -> LogProbs:
    """The trace is exact without probes."""
    forward_key, key = jr.split(key)
    forward = sample_and_log_prob(
        subject.flow,
        subject.shape,
        num_probes=num_probes,
        key=forward_key,
        throw=False,
        **subject.draws(),
    )

    def one(x1, cond, mask, key):
        options = {"source": subject.source, "mask": mask, "throw": False}
        if num_probes is None:
            return log_prob(subject.flow, x1, cond, **options)[None]
        by_probe = lambda key: log_prob(subject.flow, x1, cond, key=key, **options)
        return jax.vmap(by_probe)(jr.split(key, num_probes))

    keys = jr.split(key, subject.num_samples)
    axes = (0, subject.cond_axes, 0, 0)
    backward = eqx.filter_vmap(one, in_axes=axes)(
        forward.values, subject.cond, subject.mask, keys
    )
    return LogProbs(forward.log_probs, backward)


@eqx.filter_jit
def depends_on_time(subject: Subject, x0: Array) -> Array:
    """Whether the velocities at two times differ anywhere."""

    def velocities(x, cond, mask):
        flow = eqx.nn.inference_mode(bare(subject.flow))
        velocity = with_mask(flow, mask)
        # A network that is not given the time returns the same bits.
        times = jnp.array([0.25, 0.75], x.dtype)
        return jax.vmap(lambda t: velocity(t, x, cond))(times)

    axes = (0, subject.cond_axes, 0)
    early_and_late = eqx.filter_vmap(velocities, in_axes=axes)
    both = early_and_late(x0, subject.cond, subject.mask)
    return jnp.any(both[:, 0] != both[:, 1])


@eqx.filter_jit
def start_error(subject: Subject, x0: Array, data: Array | None) -> Array:
    """The error of the velocity at `t = 0`, relative to the spread of its target.

    Without data, it is measured against the mean of the velocity's own aims.
    """
    flow = eqx.nn.inference_mode(bare(subject.flow))
    c = flow.path.coefficients(0.0)

    def aim(x, cond, mask):
        x = zero_masked(x, mask)
        return flow(0.0, x, cond, mask=mask) - c.d_sigma * x

    aims = eqx.filter_vmap(aim, in_axes=(0, subject.cond_axes, 0))
    found = aims(x0, subject.cond, subject.mask)
    if data is None:
        deviations = found - jnp.mean(found, axis=0)
        # Noise has the spread of standardized data.
        return rms(deviations) / rms(x0)

    standard = _standardized(subject, data)
    mean = jnp.mean(standard, axis=0)
    return rms(found - c.d_alpha * mean) / rms(standard - mean)


def _standardized(subject: Subject, data: Array) -> Array:
    one = lambda x: jnp.asarray(standardize(subject.flow, x))
    return jax.vmap(one)(data)


class WeakForm(NamedTuple):
    """The continuity equation in its weak form.

    - `error`: the part of the change of expectations that the flow misses, as a fraction of
      that change.
    - `excess`: the mean square of the misses in standard errors; about 1 for an exact flow.
    """

    error: Float[Array, ""]
    excess: Float[Array, ""]


@eqx.filter_jit
def weak_form(subject: Subject, data: Array, *, key: PRNGKey) -> WeakForm:
    """How far the velocity is from that of the path, on independent pairs of noise and data.

    The rows of `cond` and `mask` are those of the data.
    """
    flow = eqx.nn.inference_mode(bare(subject.flow))
    time_key, noise_key, test_key, order_key = jr.split(key, 4)
    num = len(data)
    data = _zero_masked(subject, _standardized(subject, data))
    x0 = subject.source.sample(data.shape, key=noise_key)
    x0 = _zero_masked(subject, x0)
    # One time in each of `num` equal parts: less chance than independent ones. In random order,
    # since the data may be sorted.
    parts = jr.permutation(order_key, jnp.arange(num, dtype=float))
    times = (parts + jr.uniform(time_key, (num,))) / num
    tests = _tests(test_key, subject.shape, data, x0)

    def one(t, x0, x1, cond, mask):
        # Velocities that end before t = 1 are held there, on both sides of the equation.
        t = jnp.clip(t, flow.t_start, flow.t_end).astype(x1.dtype)
        c = flow.path.coefficients(t)
        x = c.alpha * x1 + c.sigma * x0
        of_path = c.d_alpha * x1 + c.d_sigma * x0
        of_flow = flow(t, x, cond, mask=mask)

        def slopes(v):
            one_test = lambda test: test.slope(t, x, v)
            return jax.vmap(one_test)(tests)

        return slopes(of_flow - of_path), slopes(of_path)

    # The same pairs on both sides: their noise cancels.
    missed, changes = _over_rows(one, subject, times, x0, data)

    missed_mean, missed_error = _mean_and_error(missed)
    change, change_error = _mean_and_error(changes)
    # The squares of means hold those of their errors, which do not belong to the flow.
    missed_square = jnp.mean(missed_mean**2 - missed_error**2)
    change_square = jnp.mean(change**2 - change_error**2)
    share = jnp.maximum(missed_square, 0)
    share = share / jnp.maximum(change_square, 1e-12)
    in_errors = missed_mean / missed_error
    return WeakForm(jnp.sqrt(share), jnp.mean(in_errors**2))


def _over_rows(fn: Callable, subject: Subject, *rows: Array) -> Any:
    """`fn` of each row, with its condition and mask; some of them at a time."""
    is_shared = subject.cond_axes is None

    def one(inputs):
        row, cond, mask = inputs
        return fn(*row, subject.cond if is_shared else cond, mask)

    conds = None if is_shared else subject.cond
    inputs = (rows, conds, subject.mask)
    return jax.lax.map(one, inputs, batch_size=ROWS_AT_A_TIME)


class _Test(eqx.Module):
    """The test function $\\cos(w \\cdot x + \\nu t + b)$."""

    frequency: Float[Array, "..."]
    rate: Float[Array, "..."]
    phase: Float[Array, "..."]

    def slope(self, t: Array, x: Array, v: Array) -> Array:
        """How fast it changes in space along `v`."""
        angle = jnp.vdot(self.frequency, x)
        angle = angle + self.rate * t + self.phase
        along = jnp.vdot(self.frequency, v)
        return -jnp.sin(angle) * along


def _tests(key: PRNGKey, shape: tuple[int, ...], data: Array, x0: Array) -> _Test:
    direction_key, size_key, rate_key, phase_key = jr.split(key, 4)
    # Any direction is as good as another one, and several sizes see coarse and fine structure.
    directions = jr.normal(direction_key, (NUM_TESTS, *shape))
    # From half a radian to four over the spread of an example.
    sizes = jnp.exp(jr.uniform(size_key, (NUM_TESTS,), minval=-0.7, maxval=1.4))
    squares = jnp.sum(data**2) + jnp.sum(x0**2)
    spread = jnp.sqrt(0.5 * squares / len(data))
    ones = (1,) * len(shape)
    scales = jnp.reshape(sizes / spread, (NUM_TESTS, *ones))
    # Up to one turn over the way, so that errors of opposite sign do not cancel over time.
    rates = jr.uniform(rate_key, (NUM_TESTS,), maxval=2 * jnp.pi)
    phases = jr.uniform(phase_key, (NUM_TESTS,), maxval=2 * jnp.pi)
    return _Test(scales * directions, rates, phases)


def _mean_and_error(rows: Float[Array, "rows k"]) -> tuple[Array, Array]:
    error = jnp.std(rows, axis=0, ddof=1) / jnp.sqrt(len(rows))
    return jnp.mean(rows, axis=0), error


def rms(x: Array) -> Float[Array, ""]:
    """The root mean square of all entries."""
    return jnp.sqrt(jnp.mean(x**2))


def starts_in_noise(flow: Any) -> bool:
    """Whether there is a velocity at `t = 0`, of points that are noise alone."""
    flow = bare(flow)
    if not isinstance(flow, Flow) or flow.t_start > 0:
        return False
    return float(flow.path.coefficients(0.0).alpha) == 0
