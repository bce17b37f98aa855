"""What a loss draws for a batch: noise, its pairing with the data, times and keys."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_call, check_data, check_instance, check_rows
from flowkit._couplings import Coupling, pair
from flowkit._distributions import AbstractDistribution
from flowkit._losses.times import stays_inside
from flowkit._masks import zero_masked
from flowkit._types import Cond, PRNGKey


class Batch(NamedTuple):
    """The data of a loss; all arrays have the same leading axis."""

    x1: Any
    cond: Cond = None
    mask: Any = None
    extra: Any = None
    """A pytree of more arrays per example, which no coupling sees; their rows follow `x1`."""


class Draw(NamedTuple):
    """What is drawn for a batch: the noise, its pairing with the data, and the times."""

    source: AbstractDistribution
    coupling: Coupling
    times: Callable


class Example(NamedTuple):
    """One example with all that was drawn for it; or, with a leading axis, a batch."""

    x0: Array
    x1: Array
    t: Any
    cond: Cond
    mask: Array | None
    weight: Array | None
    key: Array | None
    extra: Any = None
    """The rows of `Batch.extra`."""


def draw_examples(flow: Any, batch: Batch, draw: Draw, key: PRNGKey) -> Example:
    """Noise, pairing, times and keys for a batch.

    **Arguments:** `flow` is a flow or a flow map; only its `takes_key` is read.
    """
    # The third of the four keys, which `draw_endpoints` leaves alone.
    _, _, tkey, _ = jr.split(key, 4)
    t = draw_times(draw.times, batch.x1.shape[0], batch.x1.dtype, tkey)
    return draw_endpoints(flow, batch, draw, key)._replace(t=t)


def draw_endpoints(flow: Any, batch: Batch, draw: Draw, key: PRNGKey) -> Example:
    """What `draw_examples` draws, without the times: `t` is `None`."""
    skey, ckey, _, nkey = jr.split(key, 4)
    x1, cond, mask, extra = batch
    # What stands at a masked point may be NaN, which would reach the gradient through a
    # product with zero.
    x1 = jnp.asarray(x1) if mask is None else jax.vmap(zero_masked)(x1, mask)
    num = x1.shape[0]

    x0 = draw.source.sample(x1.shape, key=skey).astype(x1.dtype)
    data = (x1, cond, mask, extra)
    x0, (x1, cond, mask, extra), weight = pair(draw.coupling, x0, data, key=ckey)

    keys = jr.split(nkey, num) if flow.takes_key else None
    return Example(x0, x1, None, cond, mask, weight, keys, extra)


def draw_times(
    times: Callable, num: int, dtype: Any, key: PRNGKey
) -> Float[Array, " num"]:
    """The times of a batch; those of a user's function are checked."""
    check_instance("times", times)
    check_call("times", times, "num", "key")
    t = jnp.asarray(times(num, key=key))
    if t.shape != (num,):
        raise ValueError(
            f"`times` must return shape {(num,)} when asked for {num} times, "
            f"but returned {t.shape}."
        )
    if not stays_inside(times):
        t = eqx.error_if(
            t,
            jnp.any((t < 0) | (t > 1)),
            "`times` drew a time outside [0, 1] (0 is noise, 1 is data).",
        )
    return t.astype(dtype)


def check_batch(x1: Any, cond: Cond, mask: Any) -> None:
    """Raises for a batch whose data, conditions and masks do not fit together."""
    check_data("x1", x1, mask)
    check_rows("cond", cond, x1.shape[0], "example of `x1`")
