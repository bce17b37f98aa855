"""The training of one seed of a task in the plane, by flowkit and by torchcfm.

A `Run` holds the task, the options and the keys. Pairs of noise and data are made once,
by `num_plans` plans of `plan_size`, and the steps of the training draw from them.
torchcfm makes a plan of the size of the papers every time. It runs in another Python,
which `_torchcfm.py` is written for.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax
from _peer import run_peer

import flowkit as fk
from flowkit import few_step


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Options of the training. All fields are options of the command line."""

    peer_python: str | None = None
    """Path of a Python that can import torch and torchcfm."""
    num_steps: int = 20_000
    """Training steps of flowkit."""
    peer_steps: int = 20_000
    """Training steps of torchcfm."""
    plan_size: int = 1024
    """Points of each plan."""
    num_plans: int = 1000
    """Number of plans that the pairs are made by."""
    seed: int = 0
    """Random seed."""


class Task(NamedTuple):
    """A source, a target, and the points that a flow between them is judged by."""

    source: fk.AbstractDistribution
    data: np.ndarray
    test_x0: jax.Array
    test_x1: jax.Array
    batch_size: int
    hidden_sizes: tuple[int, ...]
    learning_rate: float
    activation: Callable = jax.nn.silu


class Run(NamedTuple):
    """One seed of a task."""

    task: Task
    config: TrainingConfig
    seed: int
    pairs_key: jax.Array
    network_key: jax.Array
    training_key: jax.Array

    def has_peer(self, num_seeds: int) -> bool:
        """Whether torchcfm runs too: it has a Python, and is run for this seed."""
        return self.config.peer_python is not None and self.seed < num_seeds


def matching_loss(flow, batch, key):
    """Flow matching on pairs that are given."""
    coupling = fk.Paired(batch.x0)
    return fk.flow_matching_loss(flow, batch.x1, batch.cond, key=key, coupling=coupling)


def mean_flow_loss(flow_map, batch, key):
    """MeanFlow on pairs that are given."""
    options = few_step.MEAN_FLOW_TOY
    coupling = fk.Paired(batch.x0)
    return few_step.mean_flow_loss(
        flow_map, batch.x1, key=key, coupling=coupling, **options
    )


def pairs(run: Run, coupling, conditions: Callable | None = None) -> fk.Pairs:
    """The pairs of a coupling, in memory."""
    task = run.task
    config = run.config
    data = task.data if conditions is None else (task.data, conditions(task.data))
    seed = int(jr.randint(run.pairs_key, (), 0, 2**31 - 1))
    batches = fk.data.batches(
        data, config.plan_size, num_steps=config.num_plans, seed=seed
    )

    made = fk.planned_pairs(
        batches,
        config.plan_size,
        source=task.source,
        coupling=coupling,
        key=run.pairs_key,
    )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *made)


def network(run: Run, cond_size: int = 0, **options) -> fk.nn.MLP:
    """The network of a task."""
    return fk.nn.MLP(
        2,
        hidden_sizes=run.task.hidden_sizes,
        cond_size=cond_size,
        activation=run.task.activation,
        key=run.network_key,
        **options,
    )


def train(run: Run, loss, model, data):
    """The model after training, with averaged weights."""
    num_steps = run.config.num_steps
    schedule = optax.cosine_decay_schedule(run.task.learning_rate, num_steps)
    return fk.training.fit(
        loss,
        model,
        data,
        batch_size=run.task.batch_size,
        num_steps=num_steps,
        optimizer=optax.adam(schedule),
        steps_per_call=100,
        progress=False,
        key=run.training_key,
    ).ema


def train_flow(run: Run, data: fk.Pairs, cond_size: int = 0) -> fk.Flow:
    """A flow that is trained on pairs by flow matching."""
    return train(run, matching_loss, fk.Flow(network(run, cond_size)), data)


@eqx.filter_jit
def paths(velocity, x0, cond=None, **options) -> Any:
    """Solutions `(points, times, 2)`: the ends only, unless `saveat` asks for more."""

    def solve(x0, cond):
        return fk.integrate(velocity, x0, cond, **options).ys

    return jax.vmap(solve)(x0, cond)


def train_peer(
    run: Run, *, starts: jax.Array | None = None, **options
) -> dict[str, np.ndarray]:
    """Trains torchcfm on the same task.

    Returns the `ends` of the test points after 100 Euler steps and after `one`, and the
    `moves` of `starts`, `(points, times, 2)`.
    """
    task = run.task
    key = jr.fold_in(jr.key(run.config.seed + 2), run.seed)
    points = {
        "x0": task.source.sample((200_000, 2), key=key),
        "x1": task.data,
        "test_x0": task.test_x0,
        "starts": task.test_x0 if starts is None else starts,
    }
    settings = {
        "num_steps": run.config.peer_steps,
        "weight_decay": 0.0,
        "sigma": 0.0,
        "seed": run.seed,
        "width": task.hidden_sizes[0],
        "batch_size": task.batch_size,
    }

    python = run.config.peer_python
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "task.npz"))
        out = str(Path(folder, "out.npz"))
        np.savez(file, **points)
        settings = json.dumps(settings | options)
        run_peer(python, "_torchcfm.py", "train", file, settings, out)
        with np.load(out) as made:
            return dict(made)
