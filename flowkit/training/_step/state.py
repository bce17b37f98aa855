"""The training state, and what of it is trained."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from flowkit._types import AnyArray, Constant, PRNGKey
from flowkit.training._step.average import check_decay, EMADecay, narrowed, widened
from flowkit.training._step.optimizer import (
    as_transformation,
    check_optimizer,
    Optimizer,
)


Trainable: TypeAlias = Callable[..., Any] | None
"""`model -> the part(s) of it to train`, or `None` for all of it."""


class TrainState(eqx.Module):
    """Everything a run needs to resume, as a pure pytree.

    - `model`: the model.
    - `average`: the moving average of its weights, in float32 at least; `None` if none
      is kept.
    - `opt_state`: the state of the optimizer, for the trainable weights only.
    - `step`: the number of steps made.
    - `key`: the key of the run, never changed; step `n` draws from `fold_in(key, n)`.
    """

    model: PyTree[Any]
    average: PyTree[Any]
    opt_state: PyTree[Any]
    step: Int[AnyArray, ""]
    key: Key[Array, ""]

    @property
    def ema(self) -> Any:
        """The model with averaged weights, in the types of those of `model`.

        `None` if no average is kept.
        """
        if self.average is None:
            return None
        return narrowed(self.average, self.model)


def trainable_mask(
    model: PyTree[Any], trainable: Trainable, name: str = "trainable"
) -> PyTree[bool]:
    """Which leaves of `model` are trained.

    These are the floating-point arrays, within `trainable(model)` if that is given, but for
    the constants of the model.
    """
    if trainable is None:
        mask = _floating(model)
        what = "`model` has"
    else:
        mask = _selected(model, trainable(model), name)
        what = f"`{name}` selects"
    if not any(jax.tree.leaves(mask)):
        raise ValueError(
            f"{what} no floating-point array, so there is nothing to train."
        )
    return mask


def _selected(model: PyTree[Any], parts: Any, name: str) -> PyTree[bool]:
    # Leaves are told apart by identity: any arrangement of the model's own leaves
    # says what to train.
    chosen = {id(leaf) for leaf in jax.tree.leaves(parts) if eqx.is_array(leaf)}
    strangers = chosen - {id(leaf) for leaf in jax.tree.leaves(model)}
    if strangers:
        raise ValueError(
            f"`{name}` must return parts of the model it is given, got "
            f"{len(strangers)} other array(s); for example `lambda model: "
            "model.encoder` or `lambda model: (model.encoder, model.flow)`."
        )

    def is_trained(leaf, floating):
        return floating and id(leaf) in chosen

    return jax.tree.map(is_trained, model, _floating(model))


def _floating(model: PyTree[Any]) -> PyTree[bool]:
    """Which leaves are floating-point arrays, and no constants."""

    def mask(node):
        if isinstance(node, Constant):
            return jax.tree.map(lambda leaf: False, node)
        return eqx.is_inexact_array(node)

    return jax.tree.map(mask, model, is_leaf=lambda node: isinstance(node, Constant))


def copy_arrays(tree: PyTree[Any]) -> PyTree[Any]:
    """`tree` with its arrays in buffers of their own, which may be donated."""
    return jax.tree.map(lambda leaf: _copy(leaf) if eqx.is_array(leaf) else leaf, tree)


def init_state(
    model: PyTree[Any],
    optimizer: Optimizer,
    *,
    ema_decay: EMADecay = None,
    trainable: Trainable = None,
    key: PRNGKey,
) -> TrainState:
    """The state before the first step.

    The arrays of the model are copied, so the caller's model stays usable while the
    state is donated from step to step. The average starts as another copy.

    **Arguments:**

    - `model`: any pytree. Its floating-point arrays are trained.
    - `optimizer`: an Optax optimizer. Its state is made for the trainable arrays only.
    - `ema_decay`: `None` keeps no average. Its value is given to `make_step`.
    - `trainable`: see `make_step`; the same for both.
    - `key`: random seed of the run.
    """
    check_decay(ema_decay)
    check_optimizer(optimizer)
    model = copy_arrays(model)
    average = None if ema_decay is None else copy_arrays(widened(model))

    params = eqx.filter(model, trainable_mask(model, trainable))
    with jax.numpy_dtype_promotion("standard"):
        opt_state = as_transformation(optimizer).init(params)
    # Some optimizers store the parameters themselves (lookahead does), and a buffer
    # can be donated only once.
    opt_state = jax.tree.map(_copy, opt_state)
    step = jnp.zeros((), jnp.int32)
    return TrainState(model, average, opt_state, step, _copy(key))


def check_state(
    state: TrainState, params: PyTree[Any], optimizer: Optimizer, ema_decay: EMADecay
) -> None:
    """Raises for a state that `init_state` has made for another step.

    `params` are the arrays of its model that the step trains.
    """
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.eval_shape(optimizer.init, params)
    if jax.tree.structure(state.opt_state) != jax.tree.structure(expected):
        raise ValueError(
            "`optimizer` or `trainable` of `make_step` differs from that of "
            "`init_state`; pass the same to both."
        )
    if (state.average is None) != (ema_decay is None):
        where = "make_step" if state.average is None else "init_state"
        raise ValueError(f"`ema_decay` was given to `{where}` only; pass it to both.")


def _copy(leaf: Any) -> Any:
    if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jnp.array(jr.key_data(leaf), copy=True)
        return jr.wrap_key_data(data, impl=jr.key_impl(leaf))

    # A copy on the host first: the one on the device is made after this call returns.
    if isinstance(leaf, np.ndarray):
        leaf = leaf.copy()
    # With its dtype named, a weakly typed leaf becomes a strong one, so that later
    # steps have the types of the first one.
    return jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True)
