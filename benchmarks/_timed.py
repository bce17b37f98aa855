"""Training for a given time."""

import math
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import flowkit as fk


def fit_for(
    minutes: float,
    loss: Callable,
    model: Any,
    data: Any,
    *,
    batch_size: int,
    learning_rate: float,
    clip: float = math.inf,
    optimizer: Callable[..., optax.GradientTransformation] = optax.adam,
    watch: Callable | None = None,
    key: jax.Array,
) -> tuple[Any, dict[str, float]]:
    """The averaged model after some minutes without compilation, and what that took.

    The rate warms up and decays along a cosine to zero with the time, not with the number of
    steps, so that a machine that slows down ends at the same minute. `watch` is called with
    the average and the minutes, twelve times; what it takes does not count. `optimizer` is a
    function of `learning_rate`.
    """
    of_rate = optax.inject_hyperparams(optimizer)(learning_rate=0.0)
    clipped = optax.chain(optax.clip_by_global_norm(clip), of_rate)
    ema_decay = fk.training.WarmUpDecay(0.999)
    step = fk.training.make_step(loss, clipped, ema_decay=ema_decay)
    state = fk.training.init_state(model, clipped, ema_decay=ema_decay, key=key)

    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    num_rows = len(jax.tree.leaves(data)[0])
    # A step with a rate of zero, for its compilation.
    state, _ = step(_with_rate(state, 0.0), _rows(data, np.arange(batch_size)))

    duration = 60 * minutes
    spent = 0.0
    num_steps = 0
    next_watch = duration / 12
    while spent < duration:
        start = time.perf_counter()
        rate = learning_rate * _share(spent / duration)
        rows = _rows(data, rng.integers(0, num_rows, batch_size))
        state, metrics = step(_with_rate(state, rate), rows)
        jax.block_until_ready(metrics)
        spent += time.perf_counter() - start
        num_steps += 1
        if watch is not None and spent >= next_watch:
            watch(state.ema, spent / 60)
            next_watch += duration / 12

    return state.ema, {
        "steps": num_steps,
        "seconds": spent,
        "images / s": num_steps * batch_size / spent,
    }


def _with_rate(state: fk.training.TrainState, rate: float) -> fk.training.TrainState:
    rate_of = lambda state: state.opt_state[1].hyperparams["learning_rate"]
    return eqx.tree_at(rate_of, state, jnp.asarray(rate, jnp.float32))


def _share(done: float) -> float:
    """The learning rate at a part of the time, as a share of its peak."""
    return min(done / 0.03, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


def _rows(data: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], data)
