"""Distributions of the two times of an average velocity."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_call, check_instance
from flowkit._losses import draw_times, uniform
from flowkit._types import is_traced, PRNGKey, Scalar


class TimePairs(eqx.Module):
    """The distribution of the two times of an average velocity.

    It is called `(num, *, key) -> (s, t)`, each `(num,)`.

    **Arguments:**

    - `first`, `second`: distributions of one time; `second` is `first` by default.
    - `equal`: the probability that `t = s`, where the average is the velocity itself and
      training is flow matching.
    - `ordered`: whether the times are sorted, so that all jumps go toward the data.
      Otherwise they go both ways.
    """

    first: Callable
    second: Callable
    equal: Scalar
    ordered: bool = eqx.field(static=True)

    def __init__(
        self,
        first: Callable = uniform,
        second: Callable | None = None,
        *,
        equal: Scalar = 0.75,
        ordered: bool = True,
    ):
        if not is_traced(equal) and not 0 <= equal <= 1:
            raise ValueError(f"`equal` must be a probability, got {equal}.")
        self.first = first
        self.second = first if second is None else second
        self.equal = equal
        self.ordered = ordered

    def __call__(
        self, num: int, *, key: PRNGKey
    ) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
        first_key, second_key, equal_key = jr.split(key, 3)
        dtype = jnp.result_type(float)
        s = draw_times(self.first, num, dtype, first_key)
        t = draw_times(self.second, num, dtype, second_key)

        if self.ordered:
            earlier = jnp.minimum(s, t)
            t = jnp.maximum(s, t)
            s = earlier
        equal = jr.bernoulli(equal_key, jnp.asarray(self.equal, dtype), (num,))
        return s, jnp.where(equal, s, t)


def draw_pairs(
    pairs: Callable, num: int, dtype: Any, key: PRNGKey
) -> tuple[Array, Array]:
    """The two times of a batch, each `(num,)`; those of a user's function are checked."""
    check_instance("pairs", pairs)
    check_call("pairs", pairs, "num", "key")
    drawn = pairs(num, key=key)
    if not isinstance(drawn, tuple | list) or len(drawn) != 2:
        raise ValueError(
            "`pairs` must return the two times `(s, t)`; give a distribution of one time "
            "as `fk.few_step.TimePairs(times)`."
        )

    s, t = drawn
    if s.shape != (num,) or t.shape != (num,):
        raise ValueError(
            f"`pairs` must return two arrays of shape {(num,)} when asked for {num} pairs, "
            f"but returned {s.shape} and {t.shape}."
        )

    # `TimePairs` has checked its distributions of one time, so nothing is checked
    # twice.
    if not isinstance(pairs, TimePairs):
        outside = jnp.any((s < 0) | (s > 1) | (t < 0) | (t > 1))
        message = "`pairs` drew a time outside [0, 1] (0 is noise, 1 is data)."
        s = eqx.error_if(s, outside, message)

    return s.astype(dtype), t.astype(dtype)


def draw_ordered_pairs(
    pairs: Callable, num: int, dtype: Any, key: PRNGKey
) -> tuple[Array, Array]:
    """As `draw_pairs`, for losses that train jumps toward the data: `s <= t`."""
    s, t = draw_pairs(pairs, num, dtype, key)
    if not isinstance(pairs, TimePairs):
        message = (
            "`pairs` drew s > t, but this loss trains jumps toward the data; use "
            "`back_flow_loss`."
        )
        s = eqx.error_if(s, jnp.any(s > t), message)
    return s, t


def check_ordered(pairs: Callable) -> None:
    """Raises for a distribution that is known to give pairs with `s > t`."""
    if isinstance(pairs, TimePairs) and not pairs.ordered:
        raise ValueError(
            "`pairs` has `ordered=False`, but this loss trains jumps toward the data, "
            "s <= t; use `back_flow_loss` for both directions."
        )
