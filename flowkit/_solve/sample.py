"""Batches of samples, with what they cost."""

from collections.abc import Sequence

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._checks import as_shape, as_size, check_sampling
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import bare, Target, unstandardize
from flowkit._masks import zero_masked
from flowkit._solve.batching import AbstractBatching, Lockstep, Rows, Stats
from flowkit._solve.grid import checked
from flowkit._solve.ode import end_of, with_mask
from flowkit._solve.options import (
    compiled,
    DEFAULT_ADJOINT,
    DEFAULT_SOLVER,
    resolve,
)
from flowkit._types import (
    AnyArray,
    Cond,
    FloatArray,
    Mask,
    numbers_as_arrays,
    PRNGKey,
    VelocityField,
)


class Samples(eqx.Module):
    """Samples and their statistics."""

    values: Float[Array, "batch ..."]
    stats: Stats


def sample(
    flow: VelocityField,
    shape: Sequence[int],
    *,
    num_samples: int,
    key: PRNGKey | None = None,
    x0: Float[AnyArray, "batch ..."] | None = None,
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
) -> Samples:
    """Draws samples: noise from the source, carried to `t = 1` by the flow.

    The network runs in inference mode. By default every sample has its own step sizes, so none
    depends on its neighbors in the batch. A flow whose velocity ends before `t = 1` (see `fk.Flow`)
    finishes with the jump to its prediction of the data.

    ```python
    samples = fk.sample(flow, (2,), num_samples=1000, key=key)
    samples.values, samples.stats.evaluations.mean()
    ```

    **Arguments:**

    - `flow`: a `fk.Flow`, or any velocity field `(t, x, cond)`.
    - `shape`: the shape of one sample.
    - `num_samples`: the number of samples.
    - `key`: the random seed of the noise; not needed with `x0`.
    - `x0`: where to start, `(num_samples, *shape)`, in place of noise: for a flow from data to
        data, or for gradients with respect to the noise.
    - `cond`: a pytree with leading axis `num_samples`, or, with `cond_axes=None`, one condition
        shared by all samples.
    - `source`: the distribution of the noise, the same as in training.
    - `mask`: the valid points of each cloud, `(num_samples, n)`; all others are zero in the
        result.
    - `solver`, `num_steps`, `stepsize_controller`, `max_steps`, `adjoint`, `throw`: as in
        `fk.integrate`.
    - `batching`: how the samples share the device: `fk.solvers.Lockstep()`,
        `fk.solvers.SharedStep()` or `fk.solvers.RefilledSlots(num_slots)`; over several
        devices, each with its part, `fk.solvers.OverDevices(mesh)`.

    **Returns:** `fk.Samples(values, stats)`, `values` of shape `(num_samples, *shape)`.
    """
    how = (solver, num_steps, stepsize_controller, max_steps, adjoint, throw)
    options = checked(resolve(*how, whole_way=True), 0, end_of(bare(flow)))
    batch = as_batch(
        shape, num_samples, cond=cond, cond_axes=cond_axes, source=source, mask=mask
    )
    if x0 is None and key is None:
        raise ValueError("`key` is missing; give it, or the starts `x0`.")
    if x0 is not None:
        x0 = jnp.asarray(x0)
        expected = (batch.num_samples, *batch.shape)
        if x0.shape != expected:
            raise ValueError(f"`x0` must have shape {expected}, got {x0.shape}.")
    return _sample(flow, batch, x0, key, options, batching)


class Batch(eqx.Module):
    """What a batch of samples is drawn from, made and checked by `as_batch`."""

    source: AbstractDistribution
    cond: Cond
    mask: Bool[Array, "batch n"] | None
    shape: tuple[int, ...] = eqx.field(static=True)
    num_samples: int = eqx.field(static=True)
    cond_axes: int | None = eqx.field(static=True)

    def starts(self, key: PRNGKey) -> Float[Array, "batch ..."]:
        """Where the samples start."""
        return self.source.sample((self.num_samples, *self.shape), key=key)


def as_batch(
    shape: Sequence[int],
    num_samples: int,
    *,
    cond: Cond,
    cond_axes: int | None,
    source: AbstractDistribution,
    mask: Bool[AnyArray, "batch n"] | None,
) -> Batch:
    """Checks what a batch of samples is drawn from."""
    shape = as_shape(shape)
    num_samples = as_size("num_samples", num_samples)
    check_sampling(shape, num_samples, cond, cond_axes, mask)
    mask = None if mask is None else jnp.asarray(mask)
    return Batch(source, numbers_as_arrays(cond), mask, shape, num_samples, cond_axes)


@compiled
def _sample(flow, batch, x0, key, options, batching):
    # The ODE runs in standardized coordinates; the units join at its end.
    units = flow
    flow = eqx.nn.inference_mode(bare(flow))
    x0 = batch.starts(key) if x0 is None else x0
    if batch.mask is not None:
        x0 = jax.vmap(zero_masked)(x0, batch.mask)

    rows = Rows(_Masked(flow), x0, batch.cond, batch.mask, batch.cond_axes)
    times = jnp.zeros((), x0.dtype), jnp.asarray(end_of(flow), x0.dtype)
    ends, stats = batching.solve(rows, times, options)

    def value(x, cond, mask):
        value = jump_to_data(flow, x, cond, mask)
        value = unstandardize(units, value)
        return value if mask is None else zero_masked(value, mask)

    return Samples(rows.vmap(value, ends), stats)


class _Masked(eqx.Module):
    """The velocity field with the mask of one sample."""

    flow: VelocityField

    def __call__(self, mask: Mask | None) -> VelocityField:
        return with_mask(self.flow, mask)


def jump_to_data(
    velocity: VelocityField, x: FloatArray, cond: Cond, mask: Mask | None
) -> Float[Array, "..."]:
    """From the last time of a flow to its prediction of the data, if that is before `t = 1`."""
    if end_of(velocity) == 1:
        return jnp.asarray(x)
    return velocity.predict(Target(), velocity.t_end, x, cond, mask=mask)
