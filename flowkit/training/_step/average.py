"""The exponential average of the weights, `ema <- rho ema + (1 - rho) model`.

A step of it is about a thousandth of a weight. In half precision that is rounded away,
so the average is kept in float32 at least, whatever the type of the weights.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Real

from flowkit._checks import check_instance
from flowkit._types import AnyArray, Number


EMADecay: TypeAlias = Number | Callable[..., Any] | None
"""A constant decay, a schedule `step -> decay`, or `None` for no average."""


class WarmUpDecay(eqx.Module):
    """A decay that starts small: `min(decay, (1 + n) / (10 + n))` at step `n`.

    With a constant decay the average holds `decay**n` of the random initial weights
    after `n` steps, which is 5% after 3000 steps at 0.999. This schedule forgets them
    within the first tens of steps. Pass it as `ema_decay=WarmUpDecay(0.999)`.
    """

    decay: Number

    def __check_init__(self):
        check_decay(self.decay)

    def __call__(self, step: Int[AnyArray, ""]) -> Real[Array, ""]:
        n = jnp.asarray(step, jnp.float32)
        return jnp.minimum(jnp.float32(self.decay), (1 + n) / (10 + n))


def check_decay(ema_decay: EMADecay) -> None:
    """Raises for a constant outside [0, 1], and for a class."""
    check_instance("ema_decay", ema_decay)
    if ema_decay is None or callable(ema_decay):
        return
    if not 0 <= ema_decay <= 1:
        raise ValueError(
            f"`ema_decay` must lie in [0, 1], got {ema_decay}; "
            "0.999 averages about 1000 steps."
        )


def decay_at(ema_decay: Any, step: Int[AnyArray, ""]) -> Any:
    """The decay of one step."""
    return ema_decay(step) if callable(ema_decay) else ema_decay


def at_least_float32(dtype: Any) -> Any:
    """`dtype`, or float32 for a floating-point type of fewer bits."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def widened(model: PyTree[Any]) -> PyTree[Any]:
    """`model` with its weights in float32 at least: where the average starts."""

    def widen(leaf):
        if not eqx.is_inexact_array(leaf):
            return leaf
        return leaf.astype(at_least_float32(leaf.dtype))

    return jax.tree.map(widen, model)


def narrowed(average: PyTree[Any], model: PyTree[Any]) -> PyTree[Any]:
    """`average` with its weights in the types of those of `model`."""

    def narrow(wide, leaf):
        if not eqx.is_inexact_array(leaf) or wide.dtype == leaf.dtype:
            return wide
        return wide.astype(leaf.dtype)

    return jax.tree.map(narrow, average, model)


def update_ema(
    ema: PyTree[Any], model: PyTree[Any], decay: Number | Real[AnyArray, ""]
) -> PyTree[Any]:
    """One step of the average: `ema <- decay ema + (1 - decay) model`.

    It is written `ema + (1 - decay) (model - ema)`, and a weight that does not move is
    left bitwise unchanged, an infinite one too. The result is in float32 at least; leaves
    other than floating-point arrays are those of `model`.
    """

    def average(old, new):
        if not eqx.is_inexact_array(new):
            return new
        dtype = at_least_float32(new.dtype)
        wide = jnp.asarray(old, dtype)
        share = jnp.asarray(1 - decay, dtype)
        target = jnp.asarray(new, dtype)
        moved = wide + share * (target - wide)
        # The difference of two infinities is NaN.
        return jnp.where(target == wide, wide, moved)

    return jax.tree.map(average, ema, model)
