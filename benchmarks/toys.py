"""Flows in the plane against published numbers.

    python benchmarks/toys.py                       # all but the peer: two hours
    python benchmarks/toys.py --peer-python PATH    # with torchcfm, in its Python
    python benchmarks/toys.py --parts moons --moons-seeds 3 --plan-seeds 1

- `moons`: eight Gaussians to two moons after Cheng and Schwing (2025), arXiv 2503.10636:
  squared W2 of 10,000 points, with an adaptive solver and with one Euler step. The test
  points lie on a grid of angles, as in the code of the paper.
- `tong`: the tasks of Tong et al. (2024), arXiv 2302.00482: W2 of 1,000 points after 100
  Euler steps, and the normalized path energy `|E - W| / W`. Here `E` is the path energy
  of 8,000 points and `W` is the squared W2 of source and target, the mean of eight pairs
  of 1,000 points.

A floor is the same distance between fresh data and the test points. torchcfm is trained
with the options of the papers. Rows with plans take most of the time and may have fewer
seeds, and those of torchcfm fewer still. Results go to
`benchmarks/results/toys_<part>.json` after every seed. The cost of a training step is
measured by `toys_steps.py`.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import _report
import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _peer import peer_versions
from _toys import (
    mean_flow_loss,
    network,
    pairs,
    paths,
    Run,
    Task,
    train,
    train_flow,
    train_peer,
    TrainingConfig,
)

import flowkit as fk
from flowkit import few_step


Part = Literal["moons", "tong"]


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """All fields are options of the command line."""

    parts: tuple[Part, ...] = ("moons", "tong")
    """The papers whose tasks are run."""
    moons_seeds: int = 10
    """Seeds of `moons` without a plan."""
    tong_seeds: int = 5
    """Seeds of `tong` without a plan."""
    plan_seeds: int = 3
    """Seeds with a plan."""
    peer_seeds: int = 1
    """Seeds of torchcfm, with and without a plan, if there is a Python for it."""
    num_test: int = 10_000
    """Test points of `moons`; a score of 10,000 takes 4 GB and most of a minute."""
    resume: bool = False
    """Whether to continue after the seeds that the results have."""


RESULT_FIELDS = (
    "num_steps",
    "peer_steps",
    "plan_size",
    "num_plans",
    "num_test",
    "seed",
)
"""Options that results depend on, except for the number of seeds."""

ADAPTIVE = {
    "solver": dfx.Dopri5(),
    "stepsize_controller": dfx.PIDController(rtol=1e-4, atol=1e-4),
}
EULER_1 = {"solver": dfx.Euler(), "num_steps": 1}
EULER_100 = {
    "solver": dfx.Euler(),
    "num_steps": 100,
    "saveat": dfx.SaveAt(ts=[i / 100 for i in range(101)]),
}

Scores = dict[str, dict[str, float]]
"""Numbers by row and column."""


def half_circles(num: int) -> jax.Array:
    """The half circles of `fk.data.moons` at equally spaced angles, as papers test on.

    Both have the same number of points.
    """
    angles = jnp.linspace(0, jnp.pi, num // 2)
    outer = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
    return jnp.concatenate([outer, jnp.array([1.0, 0.5]) - outer])


# Eight Gaussians to two moons.


def moons_task(config: Config, key: jax.Array) -> Task:
    dkey, zkey, xkey = jr.split(key, 3)
    source = fk.GaussianMixture(*fk.data.eight_gaussians_mixture(std=0.1**0.25))
    data = np.asarray(fk.data.c2ot_moons(200_000, key=dkey))

    x0 = source.sample((config.num_test, 2), key=zkey)
    circles = half_circles(config.num_test)
    x1 = 3 * (circles + 0.2 * jr.uniform(xkey, (len(circles), 1))) - 1
    return Task(source, data, x0, x1, 256, (128, 128, 128), 3e-3)


def moons_score(task: Task, points) -> float:
    """The squared W2 to the test points."""
    return float(fk.metrics.w2(points, task.test_x1)) ** 2


def moons_columns(task: Task, flow: fk.Flow, cond=None) -> dict[str, float]:
    """The scores of a flow with both solvers."""
    adaptive = paths(flow, task.test_x0, cond, **ADAPTIVE)[:, -1]
    one = paths(flow, task.test_x0, cond, **EULER_1)[:, -1]
    return {
        "adaptive": moons_score(task, adaptive),
        "one step": moons_score(task, one),
    }


def moons_peer_scores(run: Run) -> Scores:
    scores = {}
    for name, size in (("independent", None), ("assignment", 1024)):
        peer = train_peer(run, plan_size=size, learning_rate=3e-4)
        scores[f"torchcfm, {name}"] = {
            "100 steps": moons_score(run.task, peer["ends"]),
            "one step": moons_score(run.task, peer["one"]),
        }
    return scores


def moons_plan_scores(run: Run) -> Scores:
    """Scores of the rows that need plans."""
    task = run.task
    planned = pairs(run, fk.assignment)
    scores = {"assignment": moons_columns(task, train_flow(run, planned))}

    flow_map = few_step.FlowMap(network(run, time_embedding=fk.nn.RawTime(2)))
    flow_map = train(run, mean_flow_loss, flow_map, planned)
    jumps = jax.vmap(lambda x0: few_step.jump(flow_map, 0.0, 1.0, x0))(task.test_x0)
    scores["assignment, MeanFlow"] = {"one step": moons_score(task, jumps)}

    # The condition is the first coordinate of the end.
    first = lambda x1: x1[:, :1]
    couplings = {
        "assignment": fk.assignment,
        "conditional": fk.ConditionalAssignment(),
    }
    for name, coupling in couplings.items():
        flow = train_flow(run, pairs(run, coupling, first), cond_size=1)
        scores[f"{name}, x given"] = moons_columns(task, flow, first(task.test_x1))
    return scores


def moons_scores(config: Config, seed: int) -> Scores:
    tkey, pkey, fkey, nkey = jr.split(jr.fold_in(jr.key(config.seed), seed), 4)
    task = moons_task(config, tkey)
    run = Run(task, config, seed, pkey, nkey, fkey)

    fresh = fk.data.c2ot_moons(config.num_test, key=nkey)
    scores = {"floor": {"adaptive": moons_score(task, fresh)}}
    flow = train_flow(run, pairs(run, fk.independent))
    scores["independent"] = moons_columns(task, flow)

    if run.has_peer(config.peer_seeds):
        scores |= moons_peer_scores(run)
    if seed < config.plan_seeds:
        scores |= moons_plan_scores(run)
    return scores


# The table of Tong et al.


TONG_ENDS = {
    "normal -> 8 Gaussians": (None, fk.data.tong_eight_gaussians),
    "moons -> 8 Gaussians": (fk.data.tong_wide_moons, fk.data.tong_wide_gaussians),
    "normal -> moons": (None, fk.data.tong_moons),
    "normal -> s-curve": (None, fk.data.tong_s_curve),
}
"""Source and target of each task; a source of `None` is the standard normal one."""


def tong_task(name: str, key: jax.Array) -> Task:
    """Ten thousand points to train on and a thousand to judge by."""
    draw_source, draw_target = TONG_ENDS[name]
    skey, dkey, zkey, xkey = jr.split(key, 4)
    if draw_source is None:
        source = fk.Normal()
        x0 = jr.normal(zkey, (1000, 2))
    else:
        source = fk.Empirical(draw_source(10_000, key=skey))
        x0 = draw_source(1000, key=zkey)

    data = np.asarray(draw_target(10_000, key=dkey))
    if name == "normal -> moons":
        noisy = half_circles(1000) + 0.05 * jr.normal(xkey, (1000, 2))
        x1 = 2 * noisy - jnp.array([1.0, 0.0])
    else:
        x1 = draw_target(1000, key=xkey)
    return Task(source, data, x0, x1, 512, (64, 64, 64), 2e-3, jax.nn.selu)


class TongJudge(NamedTuple):
    """The scores of paths, against the squared W2 of source and target."""

    test_x1: jax.Array
    squared_w2: float

    def __call__(self, ends, moves) -> dict[str, float]:
        # The 100 Euler steps have a duration of 1 / 100 each.
        squares = jnp.sum(jnp.diff(moves, axis=1) ** 2, axis=(1, 2))
        energy = float(100 * jnp.mean(squares))
        return {
            "W2": float(fk.metrics.w2(ends, self.test_x1)),
            "path energy": abs(energy - self.squared_w2) / self.squared_w2,
        }


def tong_task_scores(run: Run, config: Config) -> Scores:
    task = run.task
    starts = task.source.sample((8, 1000, 2), key=run.network_key)
    targets = task.data[:8000].reshape(8, 1000, 2)
    both = zip(starts, targets, strict=True)
    distances = [float(fk.metrics.w2(x0, x1)) ** 2 for x0, x1 in both]
    judge = TongJudge(task.test_x1, float(np.mean(distances)))
    starts = starts.reshape(-1, 2)

    floor = float(fk.metrics.w2(jnp.asarray(task.data[:1000]), task.test_x1))
    scores = {"floor": {"W2": floor, "path energy": 0.0}}
    rows = (
        ("independent", fk.independent, config.tong_seeds, None),
        ("assignment", fk.assignment, config.plan_seeds, task.batch_size),
    )
    for name, coupling, num_seeds, peer_plan_size in rows:
        if run.seed < num_seeds:
            flow = train_flow(run, pairs(run, coupling))
            moves = paths(flow, starts, **EULER_100)
            ends = paths(flow, task.test_x0, **EULER_100)[:, -1]
            scores[name] = judge(ends, moves)
        if run.has_peer(config.peer_seeds):
            peer = train_peer(
                run,
                starts=starts,
                plan_size=peer_plan_size,
                learning_rate=1e-3,
                weight_decay=1e-5,
                sigma=0.1,
            )
            moves = jnp.asarray(peer["moves"])
            scores[f"torchcfm, {name}"] = judge(peer["ends"], moves)
    return scores


def tong_scores(config: Config, seed: int) -> dict[str, Scores]:
    tkey, pkey, nkey, fkey = jr.split(jr.fold_in(jr.key(config.seed + 1), seed), 4)
    results = {}
    for i, name in enumerate(TONG_ENDS):
        task = tong_task(name, jr.fold_in(tkey, i))
        run = Run(task, config, seed, pkey, nkey, fkey)
        results[name] = tong_task_scores(run, config)
        print(f"tong, seed {seed}, {name}: {json.dumps(results[name])}", flush=True)
    return results


# Tables.


def collect(runs: list[dict]) -> dict:
    """Means and standard deviations over seeds, nested and ordered as the runs are.

    A row counts the seeds that have it.
    """
    collected = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [run[name] for run in runs if name in run]
        nested = isinstance(values[0], dict)
        collected[name] = collect(values) if nested else summary(values)
    return collected


def summary(values: list[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "seeds": len(values),
    }


def cell(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.4f} +- {value['std']:.4f} ({value['seeds']})"


def show_scores(title: str, scores: dict) -> None:
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    rows = []
    for row, values in scores.items():
        rows.append({"": row} | {name: cell(values.get(name)) for name in names})
    _report.show(title, rows)


def stored_runs(part: Part, settings: dict[str, Any]) -> list[dict]:
    """The runs of the results so far, which must have the same options."""
    file = _report.RESULTS / f"toys_{part}.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    stored = found["config"]
    different = [name for name in RESULT_FIELDS if stored[name] != settings[name]]
    if different:
        raise SystemExit(
            f"{file} has results of other options {different}; start without --resume."
        )
    return found["results"]["runs"]


def over_seeds(
    part: Part, run: Callable[[Config, int], dict], num_seeds: int, config: Config
) -> dict[str, Any]:
    """The summary of all seeds; results are saved after each."""
    settings = dataclasses.asdict(config) | {"peer_python": None}
    versions = peer_versions(config.peer_python, "_torchcfm.py")
    runs = stored_runs(part, settings) if config.resume else []
    for seed in range(len(runs), num_seeds):
        runs.append(run(config, seed))
        _report.save(
            f"toys_{part}",
            config.seed,
            peer_versions=versions,
            config=settings,
            results={"seeds": collect(runs), "runs": runs},
        )
        print(f"{part}: seed {seed} done", flush=True)
    return collect(runs)


def main(config: Config) -> None:
    if "moons" in config.parts:
        scores = over_seeds("moons", moons_scores, config.moons_seeds, config)
        show_scores("8 Gaussians -> moons, squared W2", scores)
    if "tong" in config.parts:
        results = over_seeds("tong", tong_scores, config.tong_seeds, config)
        for name, scores in results.items():
            show_scores(name, scores)


if __name__ == "__main__":
    main(tyro.cli(Config))
