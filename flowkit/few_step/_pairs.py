"""Laws of the pair of times in training. A law is `(num, *, key) -> (s, t)`, both `(num,)` in [0, 1]."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._losses import draw_times
from flowkit._times import stratified, uniform
from flowkit._types import PRNGKey


Pair = tuple[Float[Array, " num"], Float[Array, " num"]]


def in_order(s: Float[Array, " num"], t: Float[Array, " num"]) -> Pair:
    """The earlier one first, exchanging the two where they are not: from noise to data."""
    return jnp.minimum(s, t), jnp.maximum(s, t)


def end_after_start(s: Float[Array, " num"], t: Float[Array, " num"]) -> Pair:
    """The start as it was drawn, and the end, but no earlier than the start: from noise to data."""
    return s, jnp.maximum(s, t)


def any_order(s: Float[Array, " num"], t: Float[Array, " num"]) -> Pair:
    """As they were drawn: maps in both directions."""
    return s, t


class TimePairs(eqx.Module):
    """Pairs from laws of one time: draw both, order them, then make a fraction of them equal, `t = s`.

    ```python
    pairs = fk.few_step.TimePairs(fk.LogitNormal(0.4, 1.0), equal=0.75)
    ```

    **Arguments:**

    - `times`: the law of the start, and of the end if there is no other.
    - `ends`: the law of the end before the two are ordered.
    - `order`: `in_order`, `end_after_start` or `any_order`.
    - `equal`: the fraction of pairs with equal times, which train the velocity; as near to it as the batch allows.
    """

    times: Callable = uniform
    ends: Callable | None = None
    order: Callable = in_order
    equal: float = 0.75

    def __check_init__(self):
        if not 0 <= self.equal <= 1:
            raise ValueError(f"`equal` must be in [0, 1], the fraction of pairs with equal times; got {self.equal}.")

    def __call__(self, num: int, *, key: PRNGKey) -> Pair:
        skey, tkey, ekey = jr.split(key, 3)
        dtype = jnp.result_type(float)
        s = draw_times(self.times, num, dtype, skey)
        t = draw_times(self.ends or self.times, num, dtype, tkey)
        s, t = self.order(s, t)
        return s, jnp.where(stratified(num, key=ekey) < self.equal, s, t)


class DyadicPairs(eqx.Module):
    r"""Pairs of shortcut models: steps $1, \tfrac12, \ldots, 2^{1 - \mathrm{levels}}$ from multiples of themselves.

    A fraction has equal times instead, uniform on [0, 1].

    **Arguments:**

    - `levels`: how many sizes of steps, each as likely.
    - `equal`: the fraction of pairs with equal times.

    **Reference:** Frans et al., One Step Diffusion via Shortcut Models (2024), arXiv 2410.12557.
    """

    levels: int = 7
    equal: float = 0.75

    def __check_init__(self):
        if self.levels < 1:
            raise ValueError(f"`levels` must be at least 1, got {self.levels}.")
        if not 0 <= self.equal <= 1:
            raise ValueError(f"`equal` must be in [0, 1], the fraction of pairs with equal times; got {self.equal}.")

    def __call__(self, num: int, *, key: PRNGKey) -> Pair:
        lkey, skey, ukey, ekey = jr.split(key, 4)
        steps = 2 ** jr.randint(lkey, (num,), 0, self.levels)
        s = jr.randint(skey, (num,), 0, steps) / steps
        equal = stratified(num, key=ekey) < self.equal
        start = jnp.where(equal, uniform(num, key=ukey), s)
        return start, jnp.where(equal, start, s + 1 / steps)


class DrawnPairs(NamedTuple):
    """Pairs of times as a loss draws them, and whose condition is dropped, if any."""

    s: Array
    t: Array
    dropped: Bool[Array, " num"] | None


class PairDraw(eqx.Module):
    """What `draw_examples` calls in the place of `draw_times`."""

    ordered: bool
    drop: float | None = None

    def __call__(self, pairs: Callable, num: int, dtype: Any, key: PRNGKey) -> DrawnPairs:
        pkey, dkey = jr.split(key)
        s, t = pairs(num, key=pkey)
        if s.shape != (num,) or t.shape != (num,):
            raise ValueError(
                f"`pairs` must return two arrays of shape {(num,)} when asked for {num} pairs, but returned {s.shape} "
                f"and {t.shape}."
            )
        if not isinstance(pairs, TimePairs | DyadicPairs):
            outside = (s < 0) | (s > 1) | (t < 0) | (t > 1)
            s = eqx.error_if(s, jnp.any(outside), "`pairs` drew a time outside [0, 1] (0 is noise, 1 is data).")
            if self.ordered:
                s = eqx.error_if(s, jnp.any(s > t), _unordered("drew a pair with s > t"))
        dropped = None if self.drop is None else jr.bernoulli(dkey, self.drop, (num,))
        return DrawnPairs(s.astype(dtype), t.astype(dtype), dropped)


def check_ordered(pairs: Callable) -> None:
    """Raises for laws that are known to draw a pair with `s > t`."""
    if isinstance(pairs, TimePairs) and pairs.order is any_order:
        raise ValueError(_unordered("has the order `any_order`"))


def _unordered(what: str) -> str:
    return (
        f"`pairs` {what}, but this loss trains maps from noise to data, s <= t; give `order=in_order`, or train both "
        "directions by `back_flow_loss`."
    )
