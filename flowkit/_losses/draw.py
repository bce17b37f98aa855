"""What a loss draws for a batch: noise, data, times and keys."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_data, check_rows
from flowkit._couplings import pair
from flowkit._losses.times import stays_inside
from flowkit._masks import zero_masked
from flowkit._types import Cond


class Example(NamedTuple):
    """What the loss draws for one example, or, with a leading axis, for a batch."""

    x0: Array
    x1: Array
    t: Array
    cond: Cond
    mask: Array | None
    weight: Array | None
    key: Array | None


def draw_examples(flow, x1, cond, key, source, coupling, times, mask) -> Example:
    skey, ckey, tkey, nkey = jr.split(key, 4)
    # What stands at a masked point may be NaN, which would reach the gradient through a product with zero.
    x1 = jnp.asarray(x1) if mask is None else jax.vmap(zero_masked)(x1, mask)
    num = x1.shape[0]
    x0 = source.sample(x1.shape, key=skey).astype(x1.dtype)
    t = draw_times(times, num, x1.dtype, tkey)
    x0, (x1, cond, mask), weights = pair(coupling, x0, (x1, cond, mask), key=ckey)
    keys = jr.split(nkey, num) if flow.takes_key else None
    return Example(x0, x1, t, cond, mask, weights, keys)


def draw_times(times, num: int, dtype, key) -> Float[Array, " num"]:
    t = times(num, key=key)
    if t.shape != (num,):
        raise ValueError(
            f"`times` must return shape {(num,)} when asked for {num} times, but returned {t.shape}."
        )
    if not stays_inside(times):
        t = eqx.error_if(
            t,
            jnp.any((t < 0) | (t > 1)),
            "`times` drew a time outside [0, 1] (0 is noise, 1 is data).",
        )
    return t.astype(dtype)


def check_batch(x1, cond, mask) -> None:
    """Raises for a batch whose data, conditions and masks do not fit together."""
    check_data("x1", x1, mask)
    check_rows("cond", cond, x1.shape[0], "example of `x1`")
