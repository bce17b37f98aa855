"""One step of an optimizer, compiled once per structure of the state.

A step draws its keys from the step count, differentiates the loss with respect to the
trained weights, lets the optimizer move them, and lets the average follow. If the loss
or its gradient is not finite, weights, average and optimizer stay as they were.
"""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from flowkit._checks import check_call
from flowkit.training._step.average import (
    at_least_float32,
    check_decay,
    decay_at,
    EMADecay,
    update_ema,
)
from flowkit.training._step.checks import positive
from flowkit.training._step.host import owned
from flowkit.training._step.optimizer import (
    as_transformation,
    check_optimizer,
    Optimizer,
    update_counts,
)
from flowkit.training._step.partition import partition, Static, StaticPart
from flowkit.training._step.placements import (
    AbstractPlacement,
    as_placement,
    OneDevice,
)
from flowkit.training._step.skipping import Skipping
from flowkit.training._step.state import (
    check_state,
    Trainable,
    trainable_mask,
    TrainState,
)


METRICS = ("loss", "grad_norm", "skipped")

_CALLS_IN_FLIGHT = 8


class Configuration(NamedTuple):
    """The parts of a training step, hashable."""

    loss: Static
    optimizer: Static
    ema_decay: Static
    trainable: Static
    placement: AbstractPlacement
    skipping: Skipping

    @classmethod
    def of(
        cls,
        loss: Callable[..., Any],
        optimizer: Optimizer,
        *,
        ema_decay: EMADecay,
        trainable: Trainable,
        placement: AbstractPlacement,
        skipping: Skipping,
    ) -> "Configuration":
        """Checks the parts and makes them hashable."""
        check_optimizer(optimizer)
        check_decay(ema_decay)
        check_call("loss", loss, "model, batch, key")
        return cls(
            Static(loss),
            Static(optimizer),
            Static(ema_decay),
            Static(trainable),
            placement,
            skipping,
        )


class CompileKey(NamedTuple):
    """How one call makes its steps.

    - `length`: the number of steps; `None` is one step, without a leading axis.
    - `resident`: whether every step sees the same data, instead of one of a stack.
    - `batch_size`: how many examples each step draws of those data; `None` takes all.
    """

    length: int | None
    resident: bool = False
    batch_size: int | None = None

    @property
    def batch_axis(self) -> int | None:
        """Which axis of a batch counts the examples; `None` if every device has all."""
        if self.resident:
            return None
        return 0 if self.length is None else 1


def update(
    configuration: Configuration,
    key: CompileKey,
    state: TrainState,
    batch: PyTree[Any],
) -> tuple[TrainState, dict]:
    """One step: the state after it, and its metrics."""
    draw_key, loss_key = jr.split(jr.fold_in(state.key, state.step))
    if key.batch_size is not None:
        batch = _draw(batch, key.batch_size, key=draw_key)
    placement = configuration.placement
    batch = placement.whole_batch(batch, resident=key.resident)

    # Only what is trained is differentiated: the rest is a constant of the loss.
    mask = trainable_mask(state.model, configuration.trainable.value)
    params, frozen = eqx.partition(state.model, mask)
    optimizer = as_transformation(configuration.optimizer.value)
    check_state(state, params, optimizer, configuration.ema_decay.value)

    def objective(params):
        model = eqx.combine(params, frozen)
        return _value_and_metrics(configuration.loss.value(model, batch, loss_key))

    (loss, extra), grads = placement.value_and_grad(objective, params)
    grad_norm = _norm(grads, at_least_float32(loss.dtype))
    sound = configuration.skipping.is_sound(loss, grad_norm)

    # Optax mixes dtypes (a float decay to the power of an integer count), which strict
    # promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(
            grads, state.opt_state, params, value=loss
        )
        model = eqx.combine(optax.apply_updates(params, updates), frozen)
    average = _average(configuration, state, model, opt_state)

    # The step counts on even if nothing moves, so that no key is used twice.
    model, average, opt_state = _where(
        sound,
        (model, average, opt_state),
        (state.model, state.average, state.opt_state),
    )
    skipped = (~sound).astype(jnp.int32)
    metrics = {"loss": loss, "grad_norm": grad_norm, "skipped": skipped} | extra
    state = TrainState(model, average, opt_state, state.step + 1, state.key)
    return state, metrics


def _average(
    configuration: Configuration,
    state: TrainState,
    model: PyTree[Any],
    opt_state: PyTree[Any],
) -> PyTree[Any]:
    """The average after a step that made `model` and `opt_state`."""
    if state.average is None:
        return None
    before = update_counts(state.opt_state)
    after = update_counts(opt_state)
    decay = configuration.ema_decay.value
    if before is None or after is None:
        return update_ema(state.average, model, decay_at(decay, state.step))

    # The gradient is accumulated over several steps. The average follows the updates: a
    # decay of 0.999 remembers a thousand updates, not a thousand steps.
    followed = update_ema(state.average, model, decay_at(decay, jnp.max(before)))
    return _where(jnp.any(after != before), followed, state.average)


def _where(condition: Array, first: PyTree[Any], second: PyTree[Any]) -> PyTree[Any]:
    """The arrays of one tree or of the other."""

    def choose(one, other):
        return jnp.where(condition, one, other) if eqx.is_array(other) else other

    return jax.tree.map(choose, first, second)


def _norm(grads: PyTree[Any], dtype: Any) -> Array:
    """The Euclidean norm, summed in `dtype`: squares overflow in half precision."""
    total = jnp.zeros((), dtype)
    for grad in jax.tree.leaves(grads):
        size = jnp.abs(grad)
        size = size.astype(at_least_float32(size.dtype))
        total = total + jnp.sum(jnp.square(size)).astype(dtype)
    return jnp.sqrt(total)


@ft.lru_cache(maxsize=32)
def compiled(
    configuration: Configuration, static: StaticPart, key: CompileKey
) -> Callable[..., Any]:
    """`(arrays of the state, batch) -> (arrays, metrics)`, jitted.

    The arrays are donated: their memory becomes that of the arrays returned.
    """

    def one(arrays, batch):
        state = static.combine(arrays)
        state, metrics = update(configuration, key, state, batch)
        return static.arrays(state), metrics

    def run(arrays, batch):
        if key.length is None:
            return one(arrays, batch)
        if key.resident:
            same = lambda arrays, _: one(arrays, batch)
            return jax.lax.scan(same, arrays, length=key.length)
        return jax.lax.scan(one, arrays, batch)

    return configuration.placement.compiled(run, batch_axis=key.batch_axis)


class Pace:
    """Keeps a loop from running far ahead of several CPU devices.

    The virtual devices of a CPU share the threads of its cores. If hundreds of steps
    are dispatched without waiting, devices of different steps wait for each other in
    their collectives, and XLA ends the process after 40 seconds. Waiting for every
    eighth call prevents that and costs nothing. Other devices have queues of their own.
    """

    def __init__(self):
        self._calls = 0

    def __call__(self, loss: Array) -> None:
        self._calls += 1
        if self._calls % _CALLS_IN_FLIGHT or isinstance(loss, Tracer):
            return
        devices = loss.sharding.device_set
        if len(devices) > 1 and next(iter(devices)).platform == "cpu":
            loss.block_until_ready()


class Step:
    """A compiled training step, made by `make_step`.

    It is called as `step(state, batch) -> (state, metrics)`.
    """

    def __init__(self, configuration: Configuration, steps_per_call: int):
        self._configuration = configuration
        self._key = CompileKey(None if steps_per_call == 1 else steps_per_call)
        self._pace = Pace()

    def __call__(
        self, state: TrainState, batch: PyTree[Any]
    ) -> tuple[TrainState, dict[str, Array]]:
        arrays, static = self._partition(state)
        program = compiled(self._configuration, static, self._key)
        arrays, metrics = program(arrays, self._place(batch))
        self._pace(metrics["loss"])
        return static.combine(arrays), metrics

    def lower(self, state: TrainState, batch: PyTree[Any]) -> jax.stages.Lowered:
        """The step lowered for these arguments, to read its cost or its program."""
        arrays, static = self._partition(state)
        program: Any = compiled(self._configuration, static, self._key)
        return program.lower(arrays, self._place(batch))

    def _partition(self, state):
        arrays, static = partition(state)
        return self._configuration.placement.place_state(arrays), static

    def _place(self, batch):
        batch = owned(batch, "batch")
        length = self._key.length
        if length is not None:
            _check_stack(batch, length)
        axis = 0 if length is None else 1
        return self._configuration.placement.place_batch(batch, axis=axis)


def make_step(
    loss: Callable[..., Any],
    optimizer: Optimizer,
    *,
    ema_decay: EMADecay = None,
    trainable: Trainable = None,
    steps_per_call: int = 1,
    skipping: Skipping = Skipping(),
    parallel: AbstractPlacement = OneDevice(),
    mesh: Mesh | None = None,
) -> Step:
    """A jitted `step(state, batch) -> (state, metrics)`, for a training loop of your own.

    The state comes from `init_state`, with the same `optimizer` and `trainable`, and with
    `ema_decay` if it is given here. It is **donated**: use the one that comes back.
    Metrics are arrays on the device: `loss`, `grad_norm` (before any clipping),
    `skipped`, and what the loss reports. NumPy arrays in `batch` are copied, so the
    memory they lie in may be refilled after the call.

    A step whose loss or gradient is not finite changes nothing but the step count, and
    has `skipped = 1`.

    **Arguments:**

    - `loss`: `(model, batch, key) -> scalar` or `-> (scalar, metrics)`, `metrics` a
      dict of arrays. Every step has a key of its own.
    - `optimizer`: an Optax optimizer, or anything with its `init` and `update`.
      Gradient clipping, schedules and accumulation (`optax.MultiSteps`) are Optax's
      too: `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))`. The loss
      is passed on as `value=`, for `optax.contrib.reduce_on_plateau`.
    - `ema_decay`: the decay `rho` of the average `ema <- rho ema + (1 - rho) model`
      after each update: a constant, or a function of the step such as
      `WarmUpDecay(0.999)`. Under `optax.MultiSteps` both count updates, not the steps
      that accumulate a gradient.
    - `trainable`: a function from the model to the part or parts to train, made of the
      model's own arrays: `lambda m: m.encoder`, `lambda m: (m.encoder, m.flow)`; all
      but one part is `lambda m: eqx.tree_at(lambda m: m.prior, m, None)`. Nothing else
      is differentiated, seen by the optimizer, decayed, or counted in the gradient
      norm: it is left bitwise unchanged.
    - `steps_per_call`: with `k > 1` one call makes `k` steps in one compiled loop;
      batches and metrics then have a leading axis `k`.
    - `skipping`: which other steps change nothing: those whose gradient is longer than
      `Skipping(max_grad_norm=...)`.
    - `parallel`: spreads the work over several devices: `Replicated`, `FullySharded` or
      `Pmapped`. Batches are split over them.
    - `mesh`: from `data_mesh`; short for `parallel=Replicated(mesh)`.

    **Reference:** Polyak and Juditsky, *Acceleration of stochastic approximation by
    averaging* (1992), for the average; the weights here are exponential.
    """
    steps_per_call = positive("steps_per_call", steps_per_call)
    configuration = Configuration.of(
        loss,
        optimizer,
        ema_decay=ema_decay,
        trainable=trainable,
        placement=as_placement(parallel, mesh),
        skipping=skipping,
    )
    return Step(configuration, steps_per_call)


def _check_stack(batch: PyTree[Any], length: int) -> None:
    for leaf in jax.tree.leaves(batch):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != length:
            raise ValueError(
                "`batch` must stack one batch per step along its first axis: with "
                f"`steps_per_call={length}` that axis has length {length}, got an "
                f"array of shape {jnp.shape(leaf)}."
            )


def _draw(data: PyTree[Any], batch_size: int, *, key: Array) -> PyTree[Any]:
    """`batch_size` examples of `data`, independent and uniform, with replacement."""
    size = jax.tree.leaves(data)[0].shape[0]
    indices = jr.randint(key, (batch_size,), 0, size)
    return jax.tree.map(lambda leaf: leaf[indices], data)


def _value_and_metrics(result: Any) -> tuple[Array, dict[str, Array]]:
    """What a loss returned, checked."""
    value: Any = result
    metrics: Any = {}
    if isinstance(result, tuple) and len(result) == 2:
        value, metrics = result

    # NaN is a scalar too: such a step is skipped, not refused.
    is_scalar = eqx.is_inexact_array(value) and jnp.shape(value) == ()
    if not is_scalar or not isinstance(metrics, dict):
        came = jax.tree.map(lambda leaf: getattr(leaf, "aval", type(leaf)), result)
        raise ValueError(
            "`loss` must return a floating-point scalar, or `(scalar, metrics)` with a "
            f"dict, got {came}; take the mean over the batch."
        )
    taken = sorted(set(metrics) & set(METRICS))
    if taken:
        raise ValueError(
            f"`loss` reports metrics named {taken}, which every step already has; "
            "rename them."
        )
    return value, {name: jnp.asarray(metric) for name, metric in metrics.items()}
