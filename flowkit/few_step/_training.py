"""What the losses of flow maps share: pairs of times, draws, weights."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._flow import PointHead
from flowkit._losses import (
    Batch,
    Draw,
    draw_endpoints,
    draw_times,
    Example,
    uniform,
)
from flowkit._types import is_traced, PRNGKey, Scalar
from flowkit.few_step._flow_map import expanded_interval, FlowMap


class TimePairs(eqx.Module):
    """The law of the two times `(s, t)` of an average velocity, `(num, *, key) -> (s, t)`, each `(num,)`.

    **Arguments:**

    - `first`, `second`: laws of a time; `second` is `first` by default.
    - `equal`: the probability that `t = s`, where the average is the velocity itself and training is flow matching.
    - `ordered`: whether the times are sorted, so that all jumps go towards the data. Else they go both ways.
    """

    first: Callable
    second: Callable
    equal: float
    ordered: bool = eqx.field(static=True)

    def __init__(
        self,
        first: Callable = uniform,
        second: Callable | None = None,
        *,
        equal: float = 0.75,
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
        s, t = (
            draw_times(self.first, num, dtype, first_key),
            draw_times(self.second, num, dtype, second_key),
        )
        if self.ordered:
            s, t = jnp.minimum(s, t), jnp.maximum(s, t)
        return s, jnp.where(jr.bernoulli(equal_key, self.equal, (num,)), s, t)


class AdaptiveWeight(eqx.Module):
    r"""Divides the error of an example by a power of itself: $\ell / \mathrm{sg}\big((\ell + c)^p\big)$.

    With $p > 0$ large errors count less. The expected gradient is then zero at the average velocity only where errors
    are symmetric: fine for images, wrong for points in few dimensions, whose losses have no such weight by default.

    **Arguments:** `power` $p$, `constant` $c$, and whether $\ell$ is the sum of the squares, or their mean.

    **Reference:** Geng et al., Consistency Models Made Easy, 2024 (arXiv 2406.14548).
    """

    power: float = 1.0
    constant: float = 1e-3
    summed: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if not is_traced(self.power, self.constant) and not (
            self.power >= 0 and self.constant > 0
        ):
            raise ValueError(
                f"`power` must not be negative and `constant` must be positive, since an error may be zero; got "
                f"{self.power} and {self.constant}."
            )

    def __call__(
        self, error: Float[Array, ""], num_entries: Scalar
    ) -> Float[Array, ""]:
        error = error * num_entries if self.summed else error
        return error / jax.lax.stop_gradient((error + self.constant) ** self.power)


def mean_square(value: Array, target: Array, mask: Array | None) -> Float[Array, ""]:
    """Over the valid entries."""
    return PointHead().error(value, jax.lax.stop_gradient(target), mask)


def weighted(
    error: Array, weight: AdaptiveWeight | None, example: Example
) -> Float[Array, ""]:
    """The error of an example after the adaptive weight and that of the coupling."""
    if weight is not None:
        size = jnp.asarray(example.x1.size, error.dtype)
        valid = (
            size
            if example.mask is None
            else size * jnp.mean(example.mask.astype(error.dtype))
        )
        error = weight(error, valid)
    return error if example.weight is None else example.weight * error


def check_all_pairs(flow_map: FlowMap) -> None:
    """Raises for a map that does not tell all pairs of times apart."""
    if flow_map.times is expanded_interval:
        raise ValueError(
            "`flow_map` has `times=expanded_interval`, which only `facm_loss` and `consistency_loss` train; build it "
            "with `both_times`."
        )


def check_ordered(pairs: Callable) -> None:
    """Raises for a law that is known to give pairs with `s > t`."""
    if isinstance(pairs, TimePairs) and not pairs.ordered:
        raise ValueError(
            "`pairs` has `ordered=False`, but this loss trains jumps towards the data, s <= t; use `back_flow_loss` "
            "for both directions."
        )


def draw_pairs(
    pairs: Callable, num: int, dtype: Any, key: PRNGKey, *, ordered: bool
) -> tuple[Array, Array]:
    """The two times of a law, each `(num,)`; those of a user's law are checked."""
    s, t = pairs(num, key=key)
    if s.shape != (num,) or t.shape != (num,):
        raise ValueError(
            f"`pairs` must return two arrays of shape {(num,)} when asked for {num} pairs, but returned {s.shape} and "
            f"{t.shape}."
        )
    if not isinstance(pairs, TimePairs):
        outside = jnp.any((s < 0) | (s > 1) | (t < 0) | (t > 1))
        s = eqx.error_if(
            s, outside, "`pairs` drew a time outside [0, 1] (0 is noise, 1 is data)."
        )
        if ordered:
            message = "`pairs` drew s > t, but this loss trains jumps towards the data; use `back_flow_loss`."
            s = eqx.error_if(s, jnp.any(s > t), message)
    return s.astype(dtype), t.astype(dtype)


def draw(
    flow_map, x1, cond, key, source, coupling, times, mask, *, law=draw_times
) -> tuple[Example, Any]:
    """Noise, data and keys of a batch, and its times, which `law(times, num, dtype, key)` draws."""
    ekey, tkey = jr.split(key)
    batch = Batch(x1, cond, mask)
    examples = draw_endpoints(flow_map, batch, Draw(source, coupling, times), ekey)
    return examples, law(times, x1.shape[0], x1.dtype, tkey)
