"""Seconds until training steps are compiled, for `throughput.py`, in a process of its own.

    python _compile_time.py FOLDER

Compiled programs are kept in the folder, JAX's persistent cache; an empty one is a cold
start. Prints JSON: seconds of tracing and of compiling, for each step.
"""

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from _throughput_networks import MainJob, SMALL, vector_loss

import flowkit as fk


def seconds(step: fk.training.Step, state: Any, batch: Any) -> dict[str, float]:
    """Tracing, and compiling or reading from the folder."""
    start = time.perf_counter()
    lowered = step.lower(state, batch)
    traced = time.perf_counter()
    lowered.compile()
    return {
        "trace": traced - start,
        "compile": time.perf_counter() - traced,
    }


def small() -> dict[str, float]:
    optimizer = optax.adam(1e-3)
    state = fk.training.init_state(SMALL.model(), optimizer, key=jr.key(0))
    step = fk.training.make_step(vector_loss, optimizer)
    return seconds(step, state, jnp.ones((256, 2)))


def main_job() -> dict[str, float]:
    job = MainJob.of(64, 64, 64)
    optimizer = job.stage.optimizer
    average: Any = {"ema_decay": job.ema_decay}
    state = fk.training.init_state(job.model, optimizer, **average, key=jr.key(0))
    step = fk.training.make_step(job.stage.loss, optimizer, **average)
    return seconds(step, state, next(iter(job.stage.batches)))


def main(folder: str) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    # Everything is kept, however small and however fast to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    print(json.dumps({"MLP 3 x 64": small(), "main job": main_job()}))


if __name__ == "__main__":
    main(sys.argv[1])
