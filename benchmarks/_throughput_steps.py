"""Training steps next to those of other libraries, and to the machine, for `throughput.py`."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import _report
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _peer import Peer
from _plain_networks import plain_loss, PlainModel
from _roofline import bandwidth_measure, gradient_work, Work
from _throughput_networks import (
    agreement,
    cloud_loss,
    Clouds,
    MainJob,
    SMALL,
    vector_loss,
    Vectors,
    WIDE,
)
from scaling import peak_rate
from toys_steps import assignment_loss, Case, independent_loss, milliseconds

import flowkit as fk


MODES = {"torch": "eager", "torch.compile": "compiled", "torchcfm": "torchcfm"}
PLANS = {"independent": False, "exact plans": True}
BATCH = 256


class Task(NamedTuple):
    """A network with or without plans, and how many steps are timed at once."""

    network: Vectors
    pairs: str
    num_steps: int


TASKS = {
    "MLP 3 x 64": Task(SMALL, "independent", 2000),
    "MLP 3 x 64, exact plans": Task(SMALL, "exact plans", 300),
    "MLP [128, 256, 256, 128]": Task(WIDE, "independent", 400),
    "MLP [128, 256, 256, 128], exact plans": Task(WIDE, "exact plans", 200),
}
CLOUDS = "PointNet, AdaLN MLP"
FLOW_MIX = "as Flow-Mix"
MAIN_JOB = "main job"

PLAIN = "plain Equinox"
FLOWKIT = "flowkit"
ONE_STEP = "flowkit, one step a call"

Key = tuple[str, str]
"""What is measured, and of what."""

Measures = dict[Key, Callable[[], float]]
Values = dict[Key, list[float]]


class Sizes(NamedTuple):
    """How much is measured."""

    steps_per_call: int
    num_clouds: int
    num_points: int
    rounds: int
    seed: int
    shorten: int
    """How many times shorter each measure is."""


def step_tables(sizes: Sizes, peer: Peer | None) -> dict[str, Any]:
    """All tables of this file."""
    agreed = agreement(peer, sizes.num_points)
    job = MainJob.of(1024, 64, 64)
    measures = machine_measures(peer)
    measures |= vector_measures(sizes, peer)
    measures |= cloud_measures(sizes, peer, job)
    values = _report.values_in_turns(measures, sizes.rounds)
    return {
        "agreement": agreed,
        "machine": [machine_row(values)],
        "steps": speeds(values),
        "roofline": roofline(values, works(sizes, job)),
    }


def machine_table(rounds: int, peer: Peer | None) -> list[dict[str, float]]:
    """What the machine can do, without any step."""
    return [machine_row(_report.values_in_turns(machine_measures(peer), rounds))]


def machine_measures(peer: Peer | None) -> Measures:
    """What the machine can do at most, in operations and bytes per second."""
    measures: Measures = {
        ("machine", "peak of XLA"): lambda: peak_rate(5),
        ("machine", "bandwidth"): bandwidth_measure(),
    }
    if peer is not None:
        rate = lambda: peer.ask(task="peak", repeats=5)["rate"]
        measures["machine", "peak of torch"] = rate
    return measures


def points_in_plane(seed: int) -> np.ndarray:
    """The data of the MLPs, from which all libraries draw their batches."""
    return np.asarray(fk.data.eight_gaussians(20_000, key=jr.key(seed)))


def vector_measures(sizes: Sizes, peer: Peer | None) -> Measures:
    """Seconds of steps of the MLPs."""
    data = points_in_plane(sizes.seed)
    measures: Measures = {}
    for name, task in TASKS.items():
        flow = task.network.model()
        loss = assignment_loss if PLANS[task.pairs] else independent_loss
        num_steps = task.num_steps // sizes.shorten
        for by, length in {FLOWKIT: sizes.steps_per_call, ONE_STEP: 1}.items():
            options = {"batch_size": BATCH}
            case = Case(loss, lambda: data, length, num_steps, options)
            measures[name, by] = lambda case=case, flow=flow: (
                milliseconds(case, flow) / 1e3
            )
        measures |= peer_measures(
            name,
            peer,
            MODES,
            network=task.network.request(),
            batch=BATCH,
            points=0,
            plan=PLANS[task.pairs],
            least=0.6 / sizes.shorten,
        )
    return measures


def cloud_measures(sizes: Sizes, peer: Peer | None, job: MainJob) -> Measures:
    """Seconds of steps on clouds."""
    points = cloud_batch(sizes)
    model = Clouds().model()
    as_flow_mix = Clouds(plain=True).model()
    batch = next(iter(job.stage.batches))
    of_job = (job.stage.loss, job.model, batch, job.stage.optimizer, job.ema_decay)

    calls = {
        (CLOUDS, FLOWKIT): _report.step_call(cloud_loss, model, points),
        (FLOW_MIX, FLOWKIT): _report.step_call(cloud_loss, as_flow_mix, points),
        (FLOW_MIX, PLAIN): _report.step_call(
            plain_loss, PlainModel(as_flow_mix), points
        ),
        (MAIN_JOB, FLOWKIT): _report.step_call(*of_job),
    }
    least = 1.0 / sizes.shorten
    measures: Measures = {
        key: lambda call=call: _report.seconds_of_one(call, least)
        for key, call in calls.items()
    }
    modes = {name: mode for name, mode in MODES.items() if mode != "torchcfm"}
    return measures | peer_measures(
        CLOUDS,
        peer,
        modes,
        network=Clouds().request(),
        batch=sizes.num_clouds,
        points=sizes.num_points,
        plan=False,
        least=least,
    )


def cloud_batch(sizes: Sizes) -> jax.Array:
    return jr.normal(jr.key(1), (sizes.num_clouds, sizes.num_points, 2))


def peer_measures(
    name: str, peer: Peer | None, modes: dict[str, str], **request: Any
) -> Measures:
    """Seconds of steps of the peer, without the modes that it cannot run."""
    if peer is None:
        return {}
    measures: Measures = {}
    for by, mode in modes.items():
        ask = lambda mode=mode: peer.ask(task="step", mode=mode, **request)
        reason = ask().get("skipped")
        if reason:
            print(f"{name}, {by}: left out, since {reason}.", flush=True)
            continue
        measures[name, by] = lambda ask=ask: ask()["seconds"]
    return measures


def works(sizes: Sizes, job: MainJob) -> dict[str, Work]:
    """The matrix products of every step."""
    vectors = jnp.zeros((BATCH, 2))
    clouds = cloud_batch(sizes)
    batch = next(iter(job.stage.batches))
    key = jr.key(0)
    found = {
        name: gradient_work(vector_loss, task.network.model(), vectors, key)
        for name, task in TASKS.items()
    }
    for name, plain in {CLOUDS: False, FLOW_MIX: True}.items():
        model = Clouds(plain).model()
        found[name] = gradient_work(cloud_loss, model, clouds, key)
    found[MAIN_JOB] = gradient_work(job.stage.loss, job.model, batch, key)
    return found


def speeds(values: Values) -> list[dict[str, Any]]:
    """Milliseconds of a step, and how many times as long as flowkit the others take."""
    rows = []
    for name in dict.fromkeys(what for what, _ in values if what != "machine"):
        own = values[name, FLOWKIT]
        others = {by: v for (what, by), v in values.items() if what == name}
        row: dict[str, Any] = {"step": name}
        for by, several in others.items():
            row[f"{by}, ms"] = 1e3 * statistics.median(several)
        for by, several in others.items():
            if by not in (FLOWKIT, ONE_STEP):
                row[f"{by} / flowkit"] = _report.median_ratio(several, own)
        rows.append(row)
    return rows


def machine(values: Values) -> Values:
    """The peak of matrix products, the higher one of XLA and torch, and the bandwidth."""
    of = {by: several for (what, by), several in values.items() if what == "machine"}
    peaks = [several for by, several in of.items() if by.startswith("peak")]
    best = [max(several) for several in zip(*peaks, strict=True)]
    return {("machine", "peak"): best, ("machine", "bandwidth"): of["bandwidth"]}


def roofline(values: Values, asked: dict[str, Work]) -> list[dict[str, Any]]:
    """Times of the matrix products of a step at the peak, and of their bytes."""
    limits = machine(values)
    peak = limits["machine", "peak"]
    bandwidth = limits["machine", "bandwidth"]
    rows = []
    for name, work in asked.items():
        seconds = values[name, FLOWKIT]
        products = [work.flops / rate for rate in peak]
        moves = [work.num_bytes / rate for rate in bandwidth]
        rows.append(
            {
                "step": name,
                "ms": 1e3 * statistics.median(seconds),
                "GFLOP": work.flops / 1e9,
                "products, ms": 1e3 * statistics.median(products),
                "step / products": _report.median_ratio(seconds, products),
                "part of the peak": _report.median_ratio(products, seconds),
                "MB of products": work.num_bytes / 1e6,
                "their bytes, ms": 1e3 * statistics.median(moves),
                "step / bytes": _report.median_ratio(seconds, moves),
            }
        )
    return rows


def machine_row(values: Values) -> dict[str, float]:
    """GFLOP and GB per second of the machine."""
    return {
        f"{by}, G/s": statistics.median(several) / 1e9
        for (what, by), several in values.items()
        if what == "machine"
    }
