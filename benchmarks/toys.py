"""Flows in the plane against published numbers, and what a training step costs with and without a plan.

    python benchmarks/toys.py                                   # all but the peer: two hours
    python benchmarks/toys.py --parts steps --peer-python PATH  # beside torchcfm, in a Python that has it
    python benchmarks/toys.py --parts moons --moons-seeds 3 --plan-seeds 1

- `steps`: milliseconds of a training step at batch 256, of a network of three layers of 64.
- `moons`: eight Gaussians to two moons after Cheng and Schwing (2025), arXiv 2503.10636: squared W2 of 10,000 points,
  by an adaptive solver and by one Euler step. Test points lie on a grid of angles, as in the code of the paper.
- `tong`: the tasks of Tong et al. (2024), arXiv 2302.00482: W2 of 1,000 points after 100 Euler steps, and the path
  energy of 8,000 less the squared W2 of source and target (mean of eight pairs of 1,000), divided by it.

Floors stand beside: the same distance from fresh data of the law to the test points. Pairs of noise and data are made
once, by `num_plans` plans of `plan_size`, before the training whose steps draw from them; torchcfm makes a plan of the
papers' size every time, and is trained with their options. Rows with plans take most of the time and may have fewer
seeds, those of the peer fewer still. Results go to `benchmarks/results/toys_<part>.json` after every seed.
"""

import dataclasses
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import _report
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro

import flowkit as fk
from flowkit import few_step


Part = Literal["steps", "moons", "tong"]


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    parts: tuple[Part, ...] = ("steps", "moons", "tong")
    peer_python: str | None = None
    """A Python that can import torch and torchcfm."""
    moons_seeds: int = 10
    """Without a plan."""
    tong_seeds: int = 5
    """Without a plan."""
    plan_seeds: int = 3
    """With one."""
    peer_seeds: int = 1
    """Of torchcfm, both with and without, where there is a Python for it."""
    num_steps: int = 20_000
    peer_steps: int = 20_000
    plan_size: int = 1024
    num_plans: int = 1000
    num_test: int = 10_000
    """Points of the scores of `moons`; each is an exact assignment, of 4 GB and most of a minute at 10,000."""
    step_repeats: int = 5
    """How often `steps` is timed, ours and the peer's in turns."""
    resume: bool = False
    """Go on after the seeds that the results have."""
    seed: int = 0


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


RESULT_FIELDS = (
    "num_steps",
    "peer_steps",
    "plan_size",
    "num_plans",
    "num_test",
    "seed",
)
"""Options that results depend on, but for the number of seeds."""

Scores = dict[str, dict[str, float]]
"""Row -> column -> number."""


class Task(NamedTuple):
    """From a source to a target, and the points they are judged by."""

    source: fk.AbstractDistribution
    data: Any
    test_x0: Any
    test_x1: Any
    batch_size: int
    hidden_sizes: tuple[int, ...]
    learning_rate: float
    activation: Callable = jax.nn.silu


def matching_loss(flow, batch, key):
    return fk.flow_matching_loss(
        flow, batch.x1, batch.cond, key=key, coupling=fk.Paired(batch.x0)
    )


def mean_flow_loss(flow_map, batch, key):
    coupling = fk.Paired(batch.x0)
    return few_step.mean_flow_loss(
        flow_map, batch.x1, key=key, coupling=coupling, **few_step.MEAN_FLOW_TOY
    )


def pairs(
    task: Task, coupling, config: Config, key, conditions: Callable | None = None
) -> fk.Pairs:
    """Pairs of a coupling, in memory."""
    data = task.data if conditions is None else (task.data, conditions(task.data))
    seed = int(jr.randint(key, (), 0, 2**31 - 1))
    batches = fk.data.batches(
        data, config.plan_size, num_steps=config.num_plans, seed=seed
    )
    made = fk.planned_pairs(
        batches, config.plan_size, source=task.source, coupling=coupling, key=key
    )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *made)


def train(loss, model, data, task: Task, config: Config, key):
    return fk.training.fit(
        loss,
        model,
        data,
        batch_size=task.batch_size,
        num_steps=config.num_steps,
        optimizer=optax.adam(
            optax.cosine_decay_schedule(task.learning_rate, config.num_steps)
        ),
        steps_per_call=100,
        progress=False,
        key=key,
    ).ema


def network(task: Task, key, cond_size: int = 0, **options):
    return fk.nn.MLP(
        2,
        hidden_sizes=task.hidden_sizes,
        cond_size=cond_size,
        activation=task.activation,
        key=key,
        **options,
    )


@eqx.filter_jit
def paths(velocity, x0, cond=None, **options) -> Any:
    """`(points, times, 2)`, the end only unless `saveat` says more."""
    return jax.vmap(lambda x0, cond: fk.integrate(velocity, x0, cond, **options).ys)(
        x0, cond
    )


def train_peer(
    config: Config, task: Task, seed: int, starts=None, **options
) -> dict[str, np.ndarray]:
    """torchcfm at the same task: `ends` of the test points after 100 Euler steps and after `one`, and `moves`."""
    x0 = task.source.sample((200_000, 2), key=jr.fold_in(jr.key(config.seed + 2), seed))
    starts = task.test_x0 if starts is None else starts
    options |= {
        "seed": seed,
        "width": task.hidden_sizes[0],
        "batch_size": task.batch_size,
    }
    options = {
        "num_steps": config.peer_steps,
        "weight_decay": 0.0,
        "sigma": 0.0,
    } | options
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            file := os.path.join(folder, "task.npz"),
            x0=x0,
            x1=task.data,
            test_x0=task.test_x0,
            starts=starts,
        )
        run_peer(
            config.peer_python,
            "train",
            file,
            json.dumps(options),
            out := os.path.join(folder, "out.npz"),
        )
        with np.load(out) as made:
            return dict(made)


def run_peer(python: str | None, *arguments: str) -> dict[str, Any]:
    """What the peer's script prints."""
    command = [str(python), str(Path(__file__).with_name("_torchcfm.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} cannot run torchcfm:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def half_circles(num: int) -> jax.Array:
    """Those of `fk.data.moons` at equally spaced angles, as many points of one as of the other, as papers test on."""
    angles = jnp.linspace(0, jnp.pi, num // 2)
    outer = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
    return jnp.concatenate([outer, jnp.array([1.0, 0.5]) - outer])


# Eight Gaussians to two moons.


def moons_task(config: Config, key) -> Task:
    dkey, zkey, xkey = jr.split(key, 3)
    source = fk.GaussianMixture(*fk.data.eight_gaussians_mixture(std=0.1**0.25))
    data = np.asarray(fk.data.c2ot_moons(200_000, key=dkey))
    x0, circles = (
        source.sample((config.num_test, 2), key=zkey),
        half_circles(config.num_test),
    )
    x1 = 3 * (circles + 0.2 * jr.uniform(xkey, (len(circles), 1))) - 1
    return Task(source, data, x0, x1, 256, (128, 128, 128), 3e-3)


def moons_scores(config: Config, seed: int) -> Scores:
    tkey, pkey, fkey, nkey = jr.split(jr.fold_in(jr.key(config.seed), seed), 4)
    task = moons_task(config, tkey)
    score = lambda points: float(fk.metrics.w2(points, task.test_x1)) ** 2
    both = lambda flow, cond=None: {
        "adaptive": score(paths(flow, task.test_x0, cond, **ADAPTIVE)[:, -1]),
        "one step": score(paths(flow, task.test_x0, cond, **EULER_1)[:, -1]),
    }
    scores = {
        "floor": {"adaptive": score(fk.data.c2ot_moons(config.num_test, key=nkey))}
    }
    drawn = pairs(task, fk.independent, config, pkey)
    scores["independent"] = both(
        train(matching_loss, fk.Flow(network(task, nkey)), drawn, task, config, fkey)
    )
    if seed < config.peer_seeds and config.peer_python is not None:
        for name, size in (("independent", None), ("assignment", 1024)):
            peer = train_peer(config, task, seed, plan_size=size, learning_rate=3e-4)
            scores[f"torchcfm, {name}"] = {
                "100 steps": score(peer["ends"]),
                "one step": score(peer["one"]),
            }
    if seed >= config.plan_seeds:
        return scores
    planned = pairs(task, fk.assignment, config, pkey)
    scores["assignment"] = both(
        train(matching_loss, fk.Flow(network(task, nkey)), planned, task, config, fkey)
    )
    flow_map = few_step.FlowMap(network(task, nkey, time_embedding=fk.nn.RawTime(2)))
    flow_map = train(mean_flow_loss, flow_map, planned, task, config, fkey)
    jumps = jax.vmap(lambda x0: few_step.jump(flow_map, 0.0, 1.0, x0))(task.test_x0)
    scores["assignment, MeanFlow"] = {"one step": score(jumps)}

    # The first coordinate of the end as the condition.
    first = lambda x1: x1[:, :1]
    for name, coupling in (
        ("assignment", fk.assignment),
        ("conditional", fk.ConditionalAssignment()),
    ):
        planned = pairs(task, coupling, config, pkey, first)
        flow = train(
            matching_loss, fk.Flow(network(task, nkey, 1)), planned, task, config, fkey
        )
        scores[f"{name}, x given"] = both(flow, first(task.test_x1))
    return scores


# The table of Tong et al.


def tong_tasks(key) -> dict[str, Task]:
    """Ten thousand points to train on and a thousand to judge by, drawn once for each seed."""
    laws = {
        "normal -> 8 Gaussians": (None, fk.data.tong_eight_gaussians),
        "moons -> 8 Gaussians": (fk.data.tong_wide_moons, fk.data.tong_wide_gaussians),
        "normal -> moons": (None, fk.data.tong_moons),
        "normal -> s-curve": (None, fk.data.tong_s_curve),
    }
    tasks = {}
    for i, (name, (source, target)) in enumerate(laws.items()):
        skey, dkey, zkey, xkey = jr.split(jr.fold_in(key, i), 4)
        law = fk.Normal() if source is None else fk.Empirical(source(10_000, key=skey))
        x0 = jr.normal(zkey, (1000, 2)) if source is None else source(1000, key=zkey)
        data, x1 = np.asarray(target(10_000, key=dkey)), target(1000, key=xkey)
        if name == "normal -> moons":
            x1 = 2 * (
                half_circles(1000) + 0.05 * jr.normal(xkey, (1000, 2))
            ) - jnp.array([1.0, 0.0])
        tasks[name] = Task(law, data, x0, x1, 512, (64, 64, 64), 2e-3, jax.nn.selu)
    return tasks


def tong_scores(config: Config, seed: int) -> dict[str, Scores]:
    tkey, pkey, nkey, fkey = jr.split(jr.fold_in(jr.key(config.seed + 1), seed), 4)
    results = {}
    for name, task in tong_tasks(tkey).items():
        starts = task.source.sample((8, 1000, 2), key=nkey)
        parts = task.data[:8000].reshape(8, 1000, 2)
        least = float(
            np.mean(
                [
                    float(fk.metrics.w2(*part)) ** 2
                    for part in zip(starts, parts, strict=True)
                ]
            )
        )

        def judge(ends, moves, task=task, least=least) -> dict[str, float]:
            energy = float(
                100 * jnp.mean(jnp.sum(jnp.diff(moves, axis=1) ** 2, axis=(1, 2)))
            )
            return {
                "W2": float(fk.metrics.w2(ends, task.test_x1)),
                "path energy": abs(energy - least) / least,
            }

        scores = {
            "floor": {
                "W2": float(fk.metrics.w2(jnp.asarray(task.data[:1000]), task.test_x1)),
                "path energy": 0.0,
            }
        }
        for coupling_name, coupling in (
            ("independent", fk.independent),
            ("assignment", fk.assignment),
        ):
            if coupling is fk.independent or seed < config.plan_seeds:
                made = pairs(task, coupling, config, pkey)
                flow = train(
                    matching_loss,
                    fk.Flow(network(task, nkey)),
                    made,
                    task,
                    config,
                    fkey,
                )
                moves = paths(flow, starts.reshape(-1, 2), **EULER_100)
                scores[coupling_name] = judge(
                    paths(flow, task.test_x0, **EULER_100)[:, -1], moves
                )
            if seed < config.peer_seeds and config.peer_python is not None:
                size = None if coupling is fk.independent else task.batch_size
                options = {"learning_rate": 1e-3, "weight_decay": 1e-5, "sigma": 0.1}
                peer = train_peer(
                    config, task, seed, starts.reshape(-1, 2), plan_size=size, **options
                )
                scores[f"torchcfm, {coupling_name}"] = judge(
                    peer["ends"], jnp.asarray(peer["moves"])
                )
        results[name] = scores
        print(f"tong, seed {seed}, {name}: {json.dumps(scores)}", flush=True)
    return results


# The training step.


def step_times(config: Config) -> dict[str, Any]:
    """Ours and the peer's in turns, so that both see the same machine; medians."""
    data = np.asarray(fk.data.eight_gaussians(20_000, key=jr.key(config.seed)))
    flow = fk.Flow(
        fk.nn.MLP(2, hidden_sizes=(64, 64, 64), activation=jax.nn.selu, key=jr.key(1))
    )
    plain = lambda flow, x1, key: fk.flow_matching_loss(flow, x1, key=key)
    exact = lambda flow, x1, key: fk.flow_matching_loss(
        flow, x1, key=key, coupling=fk.assignment
    )
    drawn = lambda loss: lambda k, n: fit(loss, data, k, n, batch_size=256)

    def fit(loss, batches, steps_per_call, num_steps, **options):
        options |= {
            "steps_per_call": steps_per_call,
            "progress": False,
            "ema_decay": None,
            "key": jr.key(2),
        }
        return fk.training.fit(
            loss, flow, batches, num_steps=num_steps, **options
        ).state

    def planned(size):
        def run(k, n):
            made = fk.planned_pairs(fk.data.batches(data, size), 256, key=jr.key(3))
            return fit(matching_loss, made, k, n)

        return run

    runs = {
        "independent": (drawn(plain), 1, 2000),
        "independent, 20 steps a call": (drawn(plain), 20, 2000),
        "exact plan in the step": (drawn(exact), 1, 200),
        "exact plan per step, ahead": (planned(256), 4, 400),
        "exact plan of 1024, for four steps": (planned(1024), 4, 200),
    }
    times = {name: [] for name in runs}
    peer_times: dict[str, list[float]] = {}
    for _ in range(config.step_repeats):
        for name, (run, k, num_steps) in runs.items():
            run(k, 2 * k)  # compiles once
            start = time.perf_counter()
            jax.block_until_ready(
                jax.tree.leaves(eqx.filter(run(k, num_steps), eqx.is_inexact_array))
            )
            times[name].append(1e3 * (time.perf_counter() - start) / num_steps)
        if config.peer_python is not None:
            with tempfile.TemporaryDirectory() as folder:
                np.save(file := os.path.join(folder, "data.npy"), data)
                peer = run_peer(config.peer_python, "steps", file)
            for name, value in peer.items():
                peer_times.setdefault(name, []).append(value)
    ours = {name: float(np.median(values)) for name, values in times.items()}
    theirs = {name: float(np.median(values)) for name, values in peer_times.items()}
    return {"flowkit": ours, "torchcfm": theirs}


# Tables.


def collect(runs: list[dict]) -> dict:
    """Means and standard deviations over the seeds that have a row, in the nesting and order of one run."""
    collected = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [run[name] for run in runs if name in run]
        collected[name] = (
            collect(values) if isinstance(values[0], dict) else _numbers(values)
        )
    return collected


def _numbers(values: list[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "seeds": len(values),
    }


def show_scores(title: str, scores: dict) -> None:
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    text = lambda value: (
        f"{value['mean']:.4f} +- {value['std']:.4f} ({value['seeds']})" if value else ""
    )
    _report.show(
        title,
        [
            {"": row} | {n: text(values.get(n)) for n in names}
            for row, values in scores.items()
        ],
    )


def main(config: Config) -> None:
    settings = dataclasses.asdict(config) | {"peer_python": None}
    peer_versions = (
        {} if config.peer_python is None else run_peer(config.peer_python, "versions")
    )

    def save(part: Part, results: dict[str, Any]) -> None:
        _report.save(
            f"toys_{part}",
            config.seed,
            peer_versions=peer_versions,
            config=settings,
            results=results,
        )

    def over_seeds(part: Part, run: Callable, num_seeds: int) -> dict[str, Any]:
        file = _report.RESULTS / f"toys_{part}.json"
        runs = []
        if config.resume and file.exists():
            found = json.loads(file.read_text())
            if different := [
                name
                for name in RESULT_FIELDS
                if found["config"][name] != settings[name]
            ]:
                raise SystemExit(
                    f"{file} has results of other options {different}; start without --resume."
                )
            runs = found["results"]["runs"]
        for seed in range(len(runs), num_seeds):
            runs.append(run(config, seed))
            save(part, {"seeds": collect(runs), "runs": runs})
            print(f"{part}: seed {seed} done", flush=True)
        return collect(runs)

    if "steps" in config.parts:
        times = step_times(config)
        for library in ("flowkit", "torchcfm"):
            rows = [
                {"step": name, "ms": value} for name, value in times[library].items()
            ]
            _report.show(f"{library}: milliseconds of a step", rows)
        save("steps", times)
    if "moons" in config.parts:
        show_scores(
            "8 Gaussians -> moons, squared W2",
            over_seeds("moons", moons_scores, config.moons_seeds),
        )
    if "tong" in config.parts:
        for name, scores in over_seeds("tong", tong_scores, config.tong_seeds).items():
            show_scores(name, scores)


if __name__ == "__main__":
    main(tyro.cli(Config))
