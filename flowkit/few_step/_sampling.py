"""Samples and codes in few steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_example, check_sampling
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import zero_masked
from flowkit._types import AnyArray, Cond, FloatArray, Mask, PRNGKey
from flowkit.few_step._flow_map import expanded_interval, FlowMap, jump


def sample(
    flow_map: FlowMap,
    shape: tuple[int, ...],
    *,
    num_samples: int,
    num_steps: int = 1,
    ts: Float[AnyArray, " n"] | None = None,
    renoise: bool = False,
    key: PRNGKey,
    cond: Cond = None,
    cond_axes: int | None = 0,
    source: AbstractDistribution = Normal(),
    mask: Bool[AnyArray, "batch n"] | None = None,
) -> Float[Array, "batch ..."]:
    r"""Draws samples in few steps, one by default, in inference mode: one evaluation of the network for each step.

    Each step jumps to the next time of the grid. With `renoise=True` it jumps to $t = 1$ and, but for the last, goes
    back to the next time with fresh noise, $x \leftarrow \alpha \hat x_1 + \sigma \varepsilon$: the sampler of
    consistency models, for maps that were trained on jumps to $t = 1$ only.

    ```python
    samples = fk.few_step.sample(flow_map, (2,), num_samples=1000, key=key)
    ```

    For as many steps as a tolerance wants, sample `velocity_of(flow_map)` by `fk.sample`.

    **Arguments:**

    - `flow_map`: the flow map.
    - `shape`: of one sample.
    - `num_samples`: how many.
    - `num_steps`: a uniform grid of so many steps.
    - `ts`: any other grid, increasing from 0 to 1, in place of `num_steps`.
    - `renoise`: see above.
    - `cond`, `cond_axes`, `source`, `mask`: as in `fk.sample`.

    **Returns:** the samples, `(num_samples, *shape)`.

    **Raises:** `ValueError` for a grid that does not increase from 0 to 1, and for several steps without `renoise` of a
    map with `times=expanded_interval`.
    """
    check_sampling(shape, num_samples, cond, cond_axes, mask)
    grid = _grid(num_steps, ts)
    if flow_map.times is expanded_interval and len(grid) > 2 and not renoise:
        raise ValueError(
            "`flow_map` has `times=expanded_interval` and jumps to t = 1 only: give `renoise=True` for several steps, "
            "or sample `velocity_of(flow_map)`."
        )
    return _sample(flow_map, (num_samples, *shape), grid, renoise, key, cond, cond_axes, source, mask)


def encode(
    flow_map: FlowMap,
    x1: FloatArray,
    cond: Cond = None,
    *,
    num_steps: int = 1,
    ts: Float[AnyArray, " n"] | None = None,
    mask: Mask | None = None,
) -> Float[Array, "..."]:
    """The noise of one example, by jumps from `t = 1` back to 0; for maps that were trained in both directions.

    **Arguments:** `x1`, one example; the others as in `sample`. The grid `ts` increases too, and is walked backwards.

    **Returns:** the noise, the shape of `x1`.
    """
    x1 = jnp.asarray(x1)
    check_example("x1", x1, mask)
    grid = _grid(num_steps, ts)
    if flow_map.times is expanded_interval:
        raise ValueError("`flow_map` has `times=expanded_interval` and cannot encode; build it with `both_times`.")
    return _encode(flow_map, x1, grid, cond, mask)


def _grid(num_steps: int, ts: Float[AnyArray, " n"] | None) -> np.ndarray:
    if ts is None:
        if num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
        return np.linspace(0, 1, num_steps + 1)
    if num_steps != 1:
        raise ValueError("give `num_steps` or `ts`, not both; `num_steps` is a uniform grid.")
    grid = np.asarray(ts)
    if len(grid) < 2 or grid[0] != 0 or grid[-1] != 1 or np.any(np.diff(grid) <= 0):
        raise ValueError(f"`ts` must increase from 0 to 1, got {grid}.")
    return grid


@eqx.filter_jit
def _sample(flow_map, shape, grid, renoise, key, cond, cond_axes, source, mask):
    skey, nkey = jr.split(key)
    flow_map = eqx.nn.inference_mode(flow_map)
    x0 = source.sample(shape, key=skey)
    x0 = x0 if mask is None else jax.vmap(zero_masked)(x0, mask)
    steps = grid[:-1].astype(x0.dtype), grid[1:].astype(x0.dtype)
    batched = lambda fn: eqx.filter_vmap(fn, in_axes=(0, cond_axes, 0))

    def move(x, step):
        s, t, _ = step
        return batched(lambda x, cond, mask: jump(flow_map, s, t, x, cond, mask=mask))(x, cond, mask), None

    def jump_and_return(x, step):
        s, t, key = step
        x, _ = move(x, (s, jnp.ones_like(s), key))
        noise = source.sample(shape, key=key).astype(x.dtype)
        x = flow_map.path.alpha(t) * x + flow_map.path.sigma(t) * noise
        return x if mask is None else jax.vmap(zero_masked)(x, mask), None

    steps = (*steps, jr.split(nkey, len(grid) - 1))
    if not renoise:
        return jax.lax.scan(move, x0, steps)[0]
    but_the_last = jax.tree.map(lambda leaf: leaf[:-1], steps)
    last = jax.tree.map(lambda leaf: leaf[-1], steps)
    return move(jax.lax.scan(jump_and_return, x0, but_the_last)[0], last)[0]


@eqx.filter_jit
def _encode(flow_map, x1, grid, cond, mask):
    flow_map = eqx.nn.inference_mode(flow_map)
    x1 = x1 if mask is None else zero_masked(x1, mask)
    grid = grid.astype(x1.dtype)
    move = lambda x, step: (jump(flow_map, *step, x, cond, mask=mask), None)
    return jax.lax.scan(move, x1, (grid[:0:-1], grid[-2::-1]))[0]
