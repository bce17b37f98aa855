"""Training for a given time."""

import math
from collections.abc import Callable
from typing import Any

import _report
import jax
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
    watch: Callable | None = None,
    key: jax.Array,
) -> tuple[Any, dict[str, float]]:
    """The averaged model after some minutes without compilation, and what that took.

    The rate warms up and decays along a cosine to zero, which needs the number of steps in
    advance, so one step is timed first. `watch` is called with state and step, about twelve
    times.
    """
    batch = jax.tree.map(lambda leaf: leaf[:batch_size], data)
    step_seconds = _report.median_seconds(_report.step_call(loss, model, batch))
    num_steps = max(round(60 * minutes / step_seconds), 1)

    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(200, num_steps // 4), num_steps
    )
    callbacks = []
    if watch is not None:
        callbacks = [fk.training.Every(max(num_steps // 12, 1), watch)]
    result = fk.training.fit(
        loss,
        model,
        data,
        optimizer=optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule)),
        num_steps=num_steps,
        batch_size=batch_size,
        ema_decay=fk.training.WarmUpDecay(0.999),
        callbacks=callbacks,
        progress=False,
        key=key,
    )
    return result.ema, {
        "steps": num_steps,
        "seconds": result.seconds,
        "images / s": num_steps * batch_size / result.seconds,
    }
