"""Samples and codes of flow maps, in one step or a few."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_example, check_sampling
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import AbstractPath, LinearPath
from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Cond, FloatArray, Mask, PRNGKey
from flowkit.few_step._flow_map import expanded_interval, FlowMap, jump


def sample(
    flow_map: Callable,
    shape: tuple[int, ...],
    *,
    num_samples: int,
    key: PRNGKey,
    num_steps: int = 1,
    grid: Sequence[float] | None = None,
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

    For the adaptive solver of the same network, `fk.sample(fk.few_step.velocity_of(flow_map), ...)`.

    **Arguments:**

    - `flow_map`: a `fk.few_step.FlowMap`, or any `(s, t, x, cond)`.
    - `shape`: of one sample.
    - `num_samples`, `cond`, `cond_axes`, `source`, `mask`: as in `fk.sample`.
    - `num_steps`: how many jumps, of equal length.
    - `grid`: the times from 0 to 1 to jump between, instead.
    - `renoise`: jump to the end each time, and go back to the next time of the grid with fresh noise, along the path
      of the map: multi-step sampling of consistency models (arXiv 2303.01469).

    **Returns:** `(num_samples, *shape)`.

    **Raises:** `ValueError` for a grid that does not increase from 0 to 1, and for several steps without `renoise` of a
    map with `times=expanded_interval`.
    """
    check_sampling(shape, num_samples, cond, cond_axes, mask)
    times = _grid(num_steps, grid)
    if _jumps_to_the_end_only(flow_map) and len(times) > 2 and not renoise:
        raise ValueError(
            "`flow_map` has `times=expanded_interval` and jumps to t = 1 only: give `renoise=True` for several steps, "
            "or sample `velocity_of(flow_map)`."
        )
    return _sample(
        flow_map, shape, num_samples, key, times, renoise, cond, cond_axes, source, mask
    )


@eqx.filter_jit
def _sample(
    flow_map, shape, num_samples, key, times, renoise, cond, cond_axes, source, mask
):
    flow_map = eqx.nn.inference_mode(flow_map)
    path: AbstractPath = getattr(flow_map, "path", LinearPath())
    x = source.sample((num_samples, *shape), key=jr.fold_in(key, 0))
    clean = lambda x: x if mask is None else jax.vmap(zero_masked)(x, mask)
    over_batch = lambda fn: eqx.filter_vmap(fn, in_axes=(0, cond_axes, 0, None))
    x = clean(x)

    def step(x, inputs):
        s, t, number = inputs
        if not renoise:
            return over_batch(
                lambda x, cond, mask, t: jump(flow_map, s, t, x, cond, mask)
            )(x, cond, mask, t), None
        end = over_batch(lambda x, cond, mask, t: jump(flow_map, s, t, x, cond, mask))(
            x, cond, mask, jnp.ones_like(t)
        )
        noise = clean(source.sample(x.shape, key=jr.fold_in(key, number)))
        return jnp.where(t == 1, end, path.interpolate(t, noise, end)), None

    times = jnp.asarray(times, x.dtype)
    return jax.lax.scan(step, x, (times[:-1], times[1:], jnp.arange(1, times.size)))[0]


def encode(
    flow_map: Callable,
    x1: FloatArray,
    cond: Cond = None,
    *,
    num_steps: int = 1,
    grid: Sequence[float] | None = None,
    mask: Mask | None = None,
) -> Float[Array, "..."]:
    """The noise of one example, by jumps from 1 to 0, for maps that were trained in that direction.

    **Arguments:** `flow_map`; `x1` and its `cond` and `mask`; `num_steps` or a `grid` from 0 to 1, gone through
    backwards.
    """
    x = jnp.asarray(x1)
    check_example("x1", x, mask)
    if _jumps_to_the_end_only(flow_map):
        raise ValueError(
            "`flow_map` has `times=expanded_interval` and cannot encode; build it with `both_times`."
        )
    return _encode(flow_map, x, cond, _grid(num_steps, grid)[::-1], mask)


@eqx.filter_jit
def _encode(flow_map, x, cond, times, mask):
    flow_map = eqx.nn.inference_mode(flow_map)
    x = x if mask is None else zero_masked(x, mask)
    times = jnp.asarray(times, x.dtype)
    step = lambda x, pair: (jump(flow_map, pair[0], pair[1], x, cond, mask), None)
    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def _jumps_to_the_end_only(flow_map: Callable) -> bool:
    return isinstance(flow_map, FlowMap) and flow_map.times is expanded_interval


def _grid(num_steps: int, grid: Sequence[float] | None) -> tuple[float, ...]:
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    if grid is None:
        return tuple(i / num_steps for i in range(num_steps + 1))
    times = tuple(float(t) for t in grid)
    if (
        len(times) < 2
        or times[0] != 0
        or times[-1] != 1
        or any(s >= t for s, t in zip(times, times[1:], strict=False))
    ):
        raise ValueError(f"`grid` must increase from 0 to 1, got {times}.")
    return times
