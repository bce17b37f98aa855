"""The training state, what of it is trained, and the average of the weights."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, Key, PyTree, Real

from flowkit._types import AnyArray, PRNGKey


EMADecay: TypeAlias = float | int | Callable[..., Any] | None
"""A constant decay, a schedule `step -> decay`, or `None` for no average."""

Trainable: TypeAlias = Callable[..., Any] | None
"""`model -> the part(s) of it to train`, or `None` for all of it."""


class TrainState(eqx.Module):
    """Everything a run needs to go on: a pure pytree.

    - `model`: the model.
    - `ema`: the moving average of its weights, a model too; `None` if none is kept.
    - `opt_state`: the optimiser's state, for the trainable weights only.
    - `step`: how many steps were made.
    - `key`: the key of the run, never changed; step `n` draws from `fold_in(key, n)`.
    """

    model: PyTree[Any]
    ema: PyTree[Any]
    opt_state: PyTree[Any]
    step: Int[AnyArray, ""]
    key: Key[Array, ""]


class WarmUpDecay(eqx.Module):
    """A decay of the weights' average that starts small: `min(decay, (1 + n) / (10 + n))` at step `n`.

    With a constant decay the average holds `decay**n` of the random initial weights after `n` steps, which
    is 5 % after 3000 steps at 0.999. This schedule forgets them within the first tens of steps. Pass it as
    `ema_decay=WarmUpDecay(0.999)`.
    """

    decay: float | int

    def __check_init__(self):
        check_decay(self.decay)

    def __call__(self, step: Int[AnyArray, ""]) -> Real[Array, ""]:
        n = jnp.asarray(step, jnp.float32)
        return jnp.minimum(self.decay, (1 + n) / (10 + n))


def check_decay(ema_decay: EMADecay) -> None:
    if isinstance(ema_decay, float | int) and not 0 <= ema_decay <= 1:
        raise ValueError(
            f"`ema_decay` must lie in [0, 1], got {ema_decay}; 0.999 averages about 1000 steps."
        )


def decay_at(ema_decay: EMADecay, step: Int[AnyArray, ""]) -> Any:
    return ema_decay(step) if callable(ema_decay) else ema_decay


def update_ema(
    ema: PyTree[Any], model: PyTree[Any], decay: float | Real[AnyArray, ""]
) -> PyTree[Any]:
    """One step of the average: `ema <- decay ema + (1 - decay) model` for floating-point arrays.

    It is written `ema + (1 - decay) (model - ema)`, so a weight that does not move is kept to the bit.
    All other leaves are the model's.
    """

    def average(old, new):
        if not eqx.is_inexact_array(new):
            return new
        return old + jnp.asarray(1 - decay, new.dtype) * (new - old)

    return jax.tree.map(average, ema, model)


def trainable_mask(model: PyTree[Any], trainable: Trainable) -> PyTree[bool]:
    """Which leaves of `model` are trained: floating-point arrays, within `trainable(model)` if given."""
    if trainable is None:
        mask = jax.tree.map(eqx.is_inexact_array, model)
    else:
        # Leaves are told apart by identity, so whatever is made of the model's own leaves says what to train.
        chosen = [
            leaf for leaf in jax.tree.leaves(trainable(model)) if eqx.is_array(leaf)
        ]
        strangers = {id(leaf) for leaf in chosen} - {
            id(leaf) for leaf in jax.tree.leaves(model)
        }
        if strangers:
            raise ValueError(
                f"`trainable` must return parts of the model it is given, got {len(strangers)} other array(s); "
                "for example `lambda model: model.encoder` or `lambda model: (model.encoder, model.flow)`."
            )
        names = {id(leaf) for leaf in chosen}
        mask = jax.tree.map(
            lambda leaf: eqx.is_inexact_array(leaf) and id(leaf) in names, model
        )
    if not any(jax.tree.leaves(mask)):
        what = "`model` has" if trainable is None else "`trainable` selects"
        raise ValueError(
            f"{what} no floating-point array, so there is nothing to train."
        )
    return mask


def copy_arrays(tree: PyTree[Any]) -> PyTree[Any]:
    """`tree` with its arrays in buffers of their own on the device, which may be donated."""
    return jax.tree.map(lambda leaf: _copy(leaf) if eqx.is_array(leaf) else leaf, tree)


def init_state(
    model: PyTree[Any],
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: EMADecay = None,
    trainable: Trainable = None,
    key: PRNGKey,
) -> TrainState:
    """The state before the first step.

    The model's arrays are copied, so the caller's model stays usable while the state is donated from step
    to step; the average starts as another copy.

    **Arguments:**

    - `model`: any pytree. Its floating-point arrays are trained.
    - `optimizer`: an Optax optimiser. Its state is made for the trainable arrays only.
    - `ema_decay`: `None` keeps no average. Its value is given to `make_step`.
    - `trainable`: see `make_step`; the same for both.
    - `key`: where all randomness of the run comes from.
    """
    check_decay(ema_decay)
    model = copy_arrays(model)
    ema = None if ema_decay is None else copy_arrays(model)
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimizer.init(eqx.filter(model, trainable_mask(model, trainable)))
    # Optimisers may store the parameters themselves (lookahead does), and a buffer is donated only once.
    opt_state = jax.tree.map(_copy, opt_state)
    return TrainState(
        model=model,
        ema=ema,
        opt_state=opt_state,
        step=jnp.zeros((), jnp.int32),
        key=_copy(key),
    )


def _copy(leaf: Any) -> Any:
    if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jr.wrap_key_data(
            jnp.array(jr.key_data(leaf), copy=True), impl=jr.key_impl(leaf)
        )
    # Naming the dtype also makes a weakly typed leaf strong, so that later steps have the first one's types.
    return jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True)
