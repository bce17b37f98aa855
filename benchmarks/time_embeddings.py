"""What the embedding of time costs in sampling, and what it buys.

    python benchmarks/time_embeddings.py
    python benchmarks/time_embeddings.py --only mlp

Velocity networks that differ only in their time embedding are trained alike: an MLP on two
moons, an AdaLN MLP and a DiT on small clouds of handwritten digits given their class. For
each: the share of the velocity that it explains on held-out data, and the evaluations that
adaptive sampling takes at a tolerance of 1e-5. Results go to
`benchmarks/results/time_embeddings.json` and `.png`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import _report
import jax
import jax.random as jr
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import flowkit as fk


SCALES = (1.0, 3.0, 10.0, 30.0, 1000.0)
EMBEDDINGS: dict[str, fk.nn.AbstractTimeEmbedding] = {
    "raw time": fk.nn.RawTime(),
    **{f"scale {scale:g}": fk.nn.SinusoidalTime(32, scale=scale) for scale in SCALES},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How each network is trained."""

    num_steps: int = 2000
    """Training steps on moons; half as many on clouds."""
    num_samples: int = 256
    """Samples whose evaluations are counted."""
    seed: int = 0
    """Random seed."""
    only: str = ""
    """Only networks whose name contains this; nothing is saved."""


class Problem(NamedTuple):
    """Data, and a network for them."""

    network: Callable[..., Any]
    train: Any
    test: Any
    cond: Any
    test_cond: Any


def moons(key: jax.Array) -> Problem:
    train_key, test_key = jr.split(key)
    network = lambda embedding, key: fk.nn.MLP(2, time_embedding=embedding, key=key)
    return Problem(
        network,
        np.asarray(fk.data.moons(20_000, key=train_key)),
        np.asarray(fk.data.moons(4096, key=test_key)),
        None,
        None,
    )


def digits(make: type, depth: int, key: jax.Array) -> Problem:
    split = fk.data.digits(16, draws=4, test_fraction=0.2, key=key)
    one_hot = np.eye(10, dtype=np.float32)
    network = lambda embedding, key: make(
        2, 10, depth=depth, cond_size=64, time_embedding=embedding, key=key
    )
    return Problem(
        network,
        split.train.points,
        split.test.points,
        one_hot[split.train.labels],
        one_hot[split.test.labels],
    )


PROBLEMS: dict[str, Callable[[jax.Array], Problem]] = {
    "mlp": moons,
    "adaln-mlp": lambda key: digits(fk.nn.AdaLNMLP, 3, key),
    "dit": lambda key: digits(fk.nn.DiT, 2, key),
}


def loss(flow: fk.Flow, batch: tuple[Any, Any], key: jax.Array) -> jax.Array:
    x1, cond = batch
    return fk.flow_matching_loss(flow, x1, cond, key=key)


def measure(
    problem: Problem, embedding: fk.nn.AbstractTimeEmbedding, config: Config
) -> dict[str, float]:
    """Trains one network and counts what sampling takes."""
    init_key, fit_key, test_key, sample_key = jr.split(jr.key(config.seed), 4)
    num_steps = config.num_steps if problem.cond is None else config.num_steps // 2
    schedule = optax.cosine_decay_schedule(2e-3, num_steps)

    flow = fk.training.fit(
        loss,
        fk.Flow(problem.network(embedding, init_key)),
        (problem.train, problem.cond),
        batch_size=128,
        optimizer=optax.adam(schedule),
        num_steps=num_steps,
        steps_per_call=50,
        progress=False,
        key=fit_key,
    ).ema

    explained = fk.explained_velocity(
        flow, problem.test, problem.test_cond, key=test_key
    )
    cond = None if problem.cond is None else problem.test_cond[: config.num_samples]
    samples = fk.sample(
        flow,
        problem.test.shape[1:],
        num_samples=config.num_samples,
        cond=cond,
        key=sample_key,
    )
    evaluations = np.asarray(samples.stats.evaluations)
    return {
        "explained velocity": float(explained.total),
        "evaluations": float(evaluations.mean()),
        "most evaluations": int(evaluations.max()),
    }


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Evaluations and explained velocity against the embedding, one line per network."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = dict(
        zip(("evaluations", "explained velocity"), figure.subplots(1, 2), strict=True)
    )
    for quantity, ax in axes.items():
        for network in PROBLEMS:
            own = [row for row in rows if row["network"] == network]
            names = [row["embedding"] for row in own]
            ax.plot(names, [row[quantity] for row in own], "o-", label=network)
        ax.set_ylabel(quantity)
        ax.tick_params(axis="x", rotation=45)
        ax.grid(True, color="#e9e9e9")
    axes["evaluations"].set_yscale("log")
    axes["evaluations"].legend(frameon=False)
    return figure


def main(config: Config) -> None:
    rows = []
    for network, make_problem in PROBLEMS.items():
        if config.only not in network:
            continue
        problem = make_problem(jr.key(config.seed))
        for name, embedding in EMBEDDINGS.items():
            row = {"network": network, "embedding": name}
            rows.append(row | measure(problem, embedding, config))
            print(rows[-1], flush=True)

    _report.show("time embeddings", rows)
    if not config.only:
        settings = dataclasses.asdict(config)
        _report.save("time_embeddings", config.seed, config=settings, rows=rows)
        picture(rows).savefig(_report.RESULTS / "time_embeddings.png", dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Config))
