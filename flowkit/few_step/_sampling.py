"""Samples and codes of flow maps, in one step or a few."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float

from flowkit._checks import as_shape, as_size, check_example, check_sampling
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import check_bare, Flow, LinearPath
from flowkit._masks import zero_masked
from flowkit._types import (
    AnyArray,
    Cond,
    FloatArray,
    Mask,
    numbers_as_arrays,
    PRNGKey,
    Scalar,
)
from flowkit.few_step._flow_map import expanded_interval, FlowMap, jump


def sample(
    flow_map: Callable,
    shape: Sequence[int],
    *,
    num_samples: int,
    key: PRNGKey,
    num_steps: int = 1,
    grid: Sequence[Scalar] | Float[AnyArray, " m"] | None = None,
    renoise: bool = False,
    cond: Cond = None,
    cond_axes: int | None = 0,
    source: AbstractDistribution = Normal(),
    mask: Bool[AnyArray, "batch n"] | None = None,
) -> Float[Array, "batch ..."]:
    """Draws samples by jumps from noise to data, each `x + (t - s) u(x, s, t)`.

    ```python
    values = fk.few_step.sample(flow_map, (2,), num_samples=1000, key=key)
    ```

    `fk.sample(fk.few_step.velocity_of(flow_map), ...)` is the adaptive solver with the same
    network.

    **Arguments:**

    - `flow_map`: a `fk.few_step.FlowMap`, or any `(s, t, x, cond)`.
    - `shape`: the shape of one sample.
    - `num_samples`, `cond`, `cond_axes`, `source`, `mask`: as in `fk.sample`.
    - `num_steps`: the number of jumps, of equal length.
    - `grid`: the times from 0 to 1 to jump between; it replaces `num_steps`.
    - `renoise`: whether to jump to the end each time and to return to the next time of the
      grid with fresh noise, along the path of the map (the linear one if it has none):
      multistep sampling of consistency models (arXiv 2303.01469).

    **Returns:** `(num_samples, *shape)`.

    **Raises:** `ValueError` for a grid that does not increase from 0 to 1, for several steps
    without `renoise` of a map with `times=expanded_interval`, and for a `fk.Flow`.
    """
    shape = as_shape(shape)
    num_samples = operator.index(num_samples)
    check_sampling(shape, num_samples, cond, cond_axes, mask)
    _check_map(flow_map)
    times = _grid(num_steps, grid)
    if _jumps_to_the_end_only(flow_map) and len(times) > 2 and not renoise:
        raise ValueError(
            "`flow_map` has `times=expanded_interval` and jumps to t = 1 only: give "
            "`renoise=True` for several steps, or sample `velocity_of(flow_map)`."
        )

    cond = numbers_as_arrays(cond)
    start = _Start((num_samples, *shape), source, cond, cond_axes, mask)
    return _sample(flow_map, start, times, renoise, key)


class _Start(NamedTuple):
    """The noise of a batch of samples, with their conditions and masks."""

    shape: tuple[int, ...]
    source: AbstractDistribution
    cond: Cond
    cond_axes: int | None
    mask: Any

    def noise(self, key: PRNGKey) -> Array:
        x = self.source.sample(self.shape, key=key)
        return x if self.mask is None else jax.vmap(zero_masked)(x, self.mask)


@eqx.filter_jit
def _sample(
    flow_map: Callable,
    start: _Start,
    times: Float[AnyArray, " m"],
    renoise: bool,
    key: PRNGKey,
) -> Array:
    # No dropout in sampling, whatever mode training has left the network in.
    flow_map = eqx.nn.inference_mode(flow_map)
    path = flow_map.path if isinstance(flow_map, FlowMap) else LinearPath()

    def jump_all(x: Array, s: Array, t: Array) -> Array:
        one = lambda x, cond, mask: jump(flow_map, s, t, x, cond, mask)
        in_axes = (0, start.cond_axes, 0)
        return eqx.filter_vmap(one, in_axes=in_axes)(x, start.cond, start.mask)

    def step(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        s, t, number = inputs
        if not renoise:
            return jump_all(x, s, t), None

        end = jump_all(x, s, jnp.ones_like(t))
        # Numbers start at 1: 0 has drawn the first noise.
        noise = start.noise(jr.fold_in(key, number))
        # Selected, so that the samples hold no rounding of a path that ends near zero
        # noise.
        return jnp.where(t == 1, end, path.interpolate(t, noise, end)), None

    x = start.noise(jr.fold_in(key, 0))
    grid = jnp.asarray(times, x.dtype)
    inputs = (grid[:-1], grid[1:], jnp.arange(1, grid.size))
    # A scan, so that one jump is compiled however many there are.
    return jax.lax.scan(step, x, inputs)[0]


def encode(
    flow_map: Callable,
    x1: FloatArray,
    cond: Cond = None,
    *,
    num_steps: int = 1,
    grid: Sequence[Scalar] | Float[AnyArray, " m"] | None = None,
    mask: Mask | None = None,
) -> Float[Array, "..."]:
    """The noise of one example, by jumps from 1 to 0.

    This is for maps that were trained in that direction, as by `back_flow_loss`.

    **Arguments:**

    - `flow_map`: a `fk.few_step.FlowMap`, or any `(s, t, x, cond)`.
    - `x1`, `cond`, `mask`: one example, its condition, and its valid points.
    - `num_steps`, `grid`: as in `sample`; the grid runs from 0 to 1 and is followed
      backward.
    """
    x = jnp.asarray(x1)
    check_example("x1", x, mask)
    _check_map(flow_map)
    if _jumps_to_the_end_only(flow_map):
        raise ValueError(
            "`flow_map` has `times=expanded_interval` and cannot encode; build it with "
            "`both_times`."
        )
    cond = numbers_as_arrays(cond)
    return _encode(flow_map, x, cond, _grid(num_steps, grid)[::-1], mask)


@eqx.filter_jit
def _encode(
    flow_map: Callable,
    x: Array,
    cond: Cond,
    times: Float[AnyArray, " m"],
    mask: Mask | None,
) -> Array:
    flow_map = eqx.nn.inference_mode(flow_map)
    x = x if mask is None else zero_masked(x, mask)
    grid = jnp.asarray(times, x.dtype)

    def step(x: Array, interval: tuple[Array, Array]) -> tuple[Array, None]:
        s, t = interval
        return jump(flow_map, s, t, x, cond, mask), None

    return jax.lax.scan(step, x, (grid[:-1], grid[1:]))[0]


def _check_map(flow_map: Callable) -> None:
    """Raises for what has units, or one time only."""
    check_bare("flow_map", flow_map)
    if isinstance(flow_map, Flow):
        raise ValueError(
            "`flow_map` is a `fk.Flow`, a velocity at one time; use `fk.sample` and `fk.encode`, "
            "or train a `fk.few_step.FlowMap`."
        )


def _jumps_to_the_end_only(flow_map: Callable) -> bool:
    return isinstance(flow_map, FlowMap) and flow_map.times is expanded_interval


def _grid(
    num_steps: int, grid: Sequence[Scalar] | Float[AnyArray, " m"] | None
) -> Float[np.ndarray, " m"]:
    """The times of the jumps, from 0 to 1."""
    num_steps = as_size("num_steps", num_steps)
    if grid is None:
        return np.arange(num_steps + 1) / num_steps

    times = np.array([float(t) for t in grid])
    increases = np.all(np.diff(times) > 0)
    if len(times) < 2 or times[0] != 0 or times[-1] != 1 or not increases:
        raise ValueError(f"`grid` must increase from 0 to 1, got {times}.")
    return times
