"""One optimiser step, compiled once per structure of the state.

The state goes through `jax.jit` as a flat list of its arrays. That list is all the dispatcher has to look at,
which makes a call several times cheaper than one that flattens and hashes a model each time.
"""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from flowkit.training._sharding import (
    check_mesh,
    replicate,
    replicated,
    shard_batch,
    split_over,
)
from flowkit.training._state import (
    check_decay,
    decay_at,
    EMADecay,
    Trainable,
    trainable_mask,
    TrainState,
    update_ema,
)


METRICS = ("loss", "grad_norm", "skipped")


class Static:
    """A value as part of a cache key: compared by type and value if it can be hashed, else by identity."""

    __slots__ = ("key", "value")

    def __init__(self, value: Any):
        self.value = value
        try:
            hash(value)
            self.key = (type(value), value)
        except TypeError:
            self.key = (type(value), id(value))

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return isinstance(other, Static) and self.key == other.key


class Frame(NamedTuple):
    """What of a state is no array: its structure and its other leaves (`None` stands for an array)."""

    treedef: Any
    static: tuple[Static | None, ...]

    def build(self, arrays: list[Any]) -> Any:
        rest = iter(arrays)
        leaves = [
            next(rest) if static is None else static.value for static in self.static
        ]
        return jax.tree.unflatten(self.treedef, leaves)

    def arrays(self, tree: Any) -> list[Any]:
        leaves = self.treedef.flatten_up_to(tree)
        return [
            leaf
            for leaf, static in zip(leaves, self.static, strict=True)
            if static is None
        ]


def take_apart(tree: Any) -> tuple[list[Any], Frame]:
    leaves, treedef = jax.tree.flatten(tree)
    static = tuple(None if eqx.is_array(leaf) else Static(leaf) for leaf in leaves)
    return [leaf for leaf in leaves if eqx.is_array(leaf)], Frame(treedef, static)


class Recipe(NamedTuple):
    """The parts of a training step, hashable."""

    loss: Static
    optimizer: optax.GradientTransformation
    ema_decay: Static
    trainable: Static
    mesh: Mesh | None


class Feed(NamedTuple):
    """How a call gets its batches: `length` steps (`None`: one, without a leading axis), from a stack of
    batches, or from `resident` data of which each step draws `batch_size` examples (`None`: takes all).
    """

    length: int | None
    resident: bool = False
    batch_size: int | None = None


def update(
    recipe: Recipe, feed: Feed, state: TrainState, batch: PyTree[Any]
) -> tuple[TrainState, dict]:
    """One step: loss, gradient, optimiser, average, and the guard against non-finite gradients."""
    draw_key, loss_key = jr.split(jr.fold_in(state.key, state.step))
    if feed.batch_size is not None:
        batch = _draw(batch, feed.batch_size, recipe.mesh, key=draw_key)
    params, frozen = eqx.partition(
        state.model, trainable_mask(state.model, recipe.trainable.value)
    )

    def objective(params):
        return _value_and_metrics(
            recipe.loss.value(eqx.combine(params, frozen), batch, loss_key)
        )

    (loss, extra), grads = jax.value_and_grad(objective, has_aux=True)(params)
    squares = [
        jnp.sum(jnp.square(jnp.abs(grad))).astype(loss.dtype)
        for grad in jax.tree.leaves(grads)
    ]
    grad_norm = jnp.sqrt(sum(squares[1:], squares[0]))
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    # Optax mixes dtypes (a float decay to the power of an integer count), which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.with_extra_args_support(recipe.optimizer)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, params, value=loss
        )
        model = eqx.combine(optax.apply_updates(params, updates), frozen)
    ema = state.ema
    if ema is not None:
        ema = update_ema(ema, model, decay_at(recipe.ema_decay.value, state.step))

    kept = (state.model, state.ema, state.opt_state)
    model, ema, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old) if eqx.is_array(old) else old,
        (model, ema, opt_state),
        kept,
    )
    metrics = {
        "loss": loss,
        "grad_norm": grad_norm,
        "skipped": (~finite).astype(jnp.int32),
    } | extra
    return TrainState(model, ema, opt_state, state.step + 1, state.key), metrics


@ft.lru_cache(maxsize=32)
def compiled(recipe: Recipe, frame: Frame, feed: Feed) -> Callable[..., Any]:
    """`(arrays of the state, batch) -> (arrays, metrics)`, jitted; the arrays are donated."""

    def one(arrays, batch):
        state, metrics = update(recipe, feed, frame.build(arrays), batch)
        return frame.arrays(state), metrics

    def run(arrays, batch):
        if feed.length is None:
            return one(arrays, batch)
        if feed.resident:
            return jax.lax.scan(
                lambda carry, _: one(carry, batch), arrays, length=feed.length
            )
        return jax.lax.scan(one, arrays, batch)

    if recipe.mesh is None:
        return jax.jit(run, donate_argnums=0)
    return jax.jit(run, donate_argnums=0, out_shardings=replicated(recipe.mesh))


def make_recipe(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    ema_decay: EMADecay,
    trainable: Trainable,
    mesh: Mesh | None,
) -> Recipe:
    check_decay(ema_decay)
    check_mesh(mesh)
    return Recipe(Static(loss), optimizer, Static(ema_decay), Static(trainable), mesh)


def check_steps_per_call(steps_per_call: int) -> None:
    if steps_per_call < 1:
        raise ValueError(f"`steps_per_call` must be at least 1, got {steps_per_call}.")


class Step:
    """A compiled training step, made by `make_step`: `step(state, batch) -> (state, metrics)`."""

    def __init__(self, recipe: Recipe, steps_per_call: int):
        self._recipe = recipe
        self._feed = Feed(None if steps_per_call == 1 else steps_per_call)

    def __call__(
        self, state: TrainState, batch: PyTree[Any]
    ) -> tuple[TrainState, dict[str, Array]]:
        arrays, frame = self._take_apart(state)
        arrays, metrics = compiled(self._recipe, frame, self._feed)(
            arrays, self._place(batch)
        )
        return frame.build(arrays), metrics

    def lower(self, state: TrainState, batch: PyTree[Any]) -> jax.stages.Lowered:
        """The step lowered for these arguments, to read its cost or its compiled program."""
        arrays, frame = self._take_apart(state)
        return compiled(self._recipe, frame, self._feed).lower(
            arrays, self._place(batch)
        )

    def _take_apart(self, state):
        arrays, frame = take_apart(state)
        return arrays if self._recipe.mesh is None else replicate(
            arrays, self._recipe.mesh
        ), frame

    def _place(self, batch):
        length, mesh = self._feed.length, self._recipe.mesh
        if length is not None:
            check_stack(batch, length)
        return (
            batch
            if mesh is None
            else shard_batch(batch, mesh, axis=0 if length is None else 1)
        )


def make_step(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: EMADecay = None,
    trainable: Trainable = None,
    steps_per_call: int = 1,
    mesh: Mesh | None = None,
) -> Step:
    """A jitted `step(state, batch) -> (state, metrics)`, for a training loop of one's own.

    The state comes from `init_state`; it is **donated**: use the one that comes back. Metrics are arrays
    on the device: `loss`, `grad_norm` (before any clipping), `skipped`, and what the loss reports.

    A step whose loss or gradient is not finite changes nothing but the step count, and has `skipped = 1`.

    **Arguments:**

    - `loss`: `(model, batch, key) -> scalar` or `-> (scalar, metrics)`, `metrics` a dict of arrays. The key
        is another one in each step.
    - `optimizer`: an Optax optimiser. Gradient clipping, schedules and accumulation are Optax's too:
        `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))`. The loss is passed on as
        `value=`, for `optax.contrib.reduce_on_plateau`.
    - `ema_decay`: the decay `rho` of the average `ema <- rho ema + (1 - rho) model` after each step: a
        constant, or a function of the step such as `WarmUpDecay(0.999)`.
    - `trainable`: a function from the model to the part or parts to train, made of the model's own arrays:
        `lambda m: m.encoder`, `lambda m: (m.encoder, m.flow)`; all but one part is
        `lambda m: eqx.tree_at(lambda m: m.prior, m, None)`. Nothing else is differentiated, seen by the
        optimiser, decayed or counted in the gradient's norm: it keeps its bits.
    - `steps_per_call`: with `k > 1` one call makes `k` steps in one compiled loop; batches and metrics then
        have a leading axis `k`.
    - `mesh`: from `data_mesh`: batches are split over the devices, the state is on each of them.

    **Reference:** the average is that of Polyak and Juditsky, *Acceleration of stochastic approximation by
    averaging* (1992), with exponential weights.
    """
    check_steps_per_call(steps_per_call)
    return Step(
        make_recipe(loss, optimizer, ema_decay, trainable, mesh), steps_per_call
    )


def check_stack(batch: PyTree[Any], length: int) -> None:
    for leaf in jax.tree.leaves(batch):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != length:
            raise ValueError(
                f"`batch` must stack one batch per step along its first axis: with `steps_per_call={length}` "
                f"that axis has length {length}, got an array of shape {jnp.shape(leaf)}."
            )


def _draw(
    data: PyTree[Any], batch_size: int, mesh: Mesh | None, *, key: Array
) -> PyTree[Any]:
    """`batch_size` examples of `data`, independent and uniform, with replacement."""
    size = jax.tree.leaves(data)[0].shape[0]
    indices = jr.randint(key, (batch_size,), 0, size)
    batch = jax.tree.map(lambda leaf: leaf[indices], data)
    return (
        batch
        if mesh is None
        else jax.lax.with_sharding_constraint(batch, split_over(mesh))
    )


def _value_and_metrics(result: Any) -> tuple[Array, dict[str, Array]]:
    value: Any
    value, metrics = (
        result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    )
    if (
        not eqx.is_inexact_array(value)
        or jnp.shape(value) != ()
        or not isinstance(metrics, dict)
    ):
        came = jax.tree.map(lambda leaf: getattr(leaf, "aval", type(leaf)), result)
        raise ValueError(
            f"`loss` must return a floating-point scalar, or `(scalar, metrics)` with a dict, got {came}; "
            "take the mean over the batch."
        )
    taken = sorted(set(metrics) & set(METRICS))
    if taken:
        raise ValueError(
            f"`loss` reports metrics named {taken}, which every step already has; rename them."
        )
    return value, {name: jnp.asarray(metric) for name, metric in metrics.items()}
