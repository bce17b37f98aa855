"""What fitting a sampler takes: noises, where the flow carries them, and an optimizer."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, PyTree

from flowkit._checks import as_size
from flowkit._distributions import AbstractDistribution
from flowkit._flow import bare
from flowkit._solve import resolve
from flowkit._solve.ode import end_of, end_state, solve
from flowkit._solve.options import DEFAULT_ADJOINT
from flowkit._solve.sample import as_batch
from flowkit._types import Cond, PRNGKey, VelocityField


class Task(eqx.Module):
    """Noises of a flow, and where an accurate solve carries them."""

    velocity: VelocityField
    starts: Float[Array, "noises ..."]
    ends: Float[Array, "noises ..."]
    cond: Cond
    t_end: float = eqx.field(static=True)
    cond_axes: int | None = eqx.field(static=True)

    def rows(self, key: PRNGKey, size: int) -> "Task":
        """Some of the noises, all of them if there are as many."""
        if size == len(self.starts):
            return self
        chosen = jr.choice(key, len(self.starts), (size,), replace=False)
        take = lambda leaf: leaf[chosen]
        cond = self.cond if self.cond_axes is None else jax.tree.map(take, self.cond)
        return dataclasses.replace(
            self, starts=take(self.starts), ends=take(self.ends), cond=cond
        )

    def log_error(self, walk: Callable) -> Float[Array, ""]:
        """The logarithm of the root mean square of `walk(velocity, start, cond)` at the end."""
        axes = (0, self.cond_axes)
        one = lambda start, cond: walk(self.velocity, start, cond)
        found = eqx.filter_vmap(one, in_axes=axes)(self.starts, self.cond)
        # The size of the error varies by orders of magnitude while it falls.
        return 0.5 * jnp.log(jnp.mean((found - self.ends) ** 2))


def task_of(
    flow: VelocityField,
    shape: Sequence[int],
    num_noises: int,
    *,
    cond: Cond,
    cond_axes: int | None,
    source: AbstractDistribution,
    key: PRNGKey,
) -> Task:
    """Draws the noises and solves for their ends."""
    batch = as_batch(
        shape, num_noises, cond=cond, cond_axes=cond_axes, source=source, mask=None
    )
    velocity = eqx.nn.inference_mode(bare(flow))
    starts = batch.starts(key)
    ends = _ends(velocity, starts, batch.cond, cond_axes)
    return Task(velocity, starts, ends, batch.cond, end_of(velocity), cond_axes)


@eqx.filter_jit
def _ends(velocity, starts, cond, cond_axes):
    # As accurate as float32 allows.
    controller = dfx.PIDController(rtol=1e-6, atol=1e-6)
    options = resolve(dfx.Tsit5(), None, controller, 4096, DEFAULT_ADJOINT, True)
    times = jnp.zeros((), starts.dtype), jnp.asarray(end_of(velocity), starts.dtype)
    one = lambda x, cond: end_state(solve(velocity, x, cond, times, options))
    return eqx.filter_vmap(one, in_axes=(0, cond_axes))(starts, cond)


class Budget(NamedTuple):
    """How long Adam runs, on how many noises at a time, at which first rate."""

    num_iterations: int
    batch_size: int
    learning_rate: float

    def part(self, share: float, rate: float) -> "Budget":
        """A share of the iterations, with a multiple of the rate."""
        num_iterations = math.ceil(share * self.num_iterations)
        return Budget(num_iterations, self.batch_size, rate * self.learning_rate)


def budget_of(
    num_iterations: int, batch_size: int | None, learning_rate: float, num_noises: int
) -> Budget:
    """The checked budget; without a batch size it is all noises."""
    size = num_noises if batch_size is None else as_size("batch_size", batch_size)
    num_iterations = as_size("num_iterations", num_iterations)
    return Budget(num_iterations, min(size, num_noises), learning_rate)


def minimize(
    task: Task,
    walk_of: Callable[[PyTree[Array]], Callable],
    params: PyTree[Array],
    budget: Budget,
    *,
    key: PRNGKey,
) -> PyTree[Array]:
    """Adam with cosine decay on the logarithm of the error at the end.

    Where the error is small already, Adam's steps are too long for it at first. So the best
    of the first, the last, and the luckiest parameters on the way are returned, by their
    error on all noises.

    **Arguments:** `walk_of(params)` is a function `(velocity, start, cond) -> end`.
    """
    schedule = optax.cosine_decay_schedule(budget.learning_rate, budget.num_iterations)
    keys = jr.split(key, budget.num_iterations)
    return _minimize(
        task, walk_of, params, optax.adam(schedule), keys, budget.batch_size
    )


@eqx.filter_jit
def _minimize(task, walk_of, params, optimizer, keys, batch_size):
    arrays, static = eqx.partition(task, eqx.is_array)

    def step(carry, key):
        params, state, best, least = carry
        rows = eqx.combine(arrays, static).rows(key, batch_size)
        loss = lambda params: rows.log_error(walk_of(params))
        error, gradient = jax.value_and_grad(loss)(params)
        choose = lambda old, new: jnp.where(error < least, new, old)
        best = jax.tree.map(choose, best, params)
        # Optax takes powers of numbers by integers, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
        return (params, state, best, jnp.minimum(error, least)), None

    infinity = jnp.asarray(jnp.inf, task.starts.dtype)
    carry = (params, optimizer.init(params), params, infinity)
    (last, _, best, _), _ = jax.lax.scan(step, carry, keys)

    candidates = (params, best, last)
    errors = [task.log_error(walk_of(one)) for one in candidates]
    chosen = jnp.nanargmin(jnp.stack(errors))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[chosen], *candidates)


def times_of(logits: Float[Array, " n"], t_end: Any = 1.0) -> Float[Array, " n_and_1"]:
    """Increasing times from 0 to `t_end`, whose increments are a softmax."""
    ends = jnp.cumsum(jax.nn.softmax(logits))
    times = jnp.concatenate([jnp.zeros_like(ends[:1]), ends])
    # Both ends are exact.
    return t_end * times.at[-1].set(1.0)
