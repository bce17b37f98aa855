"""The cost of a training step against batch, points and width, for `throughput.py`."""

import functools as ft
import statistics
from collections.abc import Callable
from typing import Any

import _report
import jax
import jax.numpy as jnp
import jax.random as jr
from _peer import Peer
from _roofline import gradient_work
from _throughput_networks import cloud_loss, Clouds, SMALL, vector_loss, Vectors
from matplotlib.axes import Axes
from matplotlib.figure import Figure


SWEEPS = {
    "batch": (64, 256, 1024, 4096, 16_384),
    "points": (32, 128, 512, 2048),
    "width": (32, 64, 128, 256, 512, 1024),
}
TITLES = {
    "batch": "MLP 3 x 64, vectors of a batch",
    "points": "PointNet and AdaLN MLP, 32 clouds",
    "width": "MLP of three layers, batch 256",
}
LABELS = {
    "batch": "vectors",
    "points": "points of a cloud",
    "width": "width of a layer",
}
NUM_CLOUDS = 32
LINES = {
    "torch, ms": ("torch", "#7f7f7f", "-"),
    "flowkit, ms": ("flowkit", "#d62728", "-"),
    "products, ms": ("its matrix products at the measured peak", "#333333", ":"),
}


class Case:
    """A network and a batch: calls of a step of flowkit, and requests for one of torch."""

    def __init__(self, axis: str, value: int):
        self.network: Any = SMALL
        self.batch = 256
        self.points = 0
        if axis == "batch":
            self.batch = value
        elif axis == "width":
            self.network = Vectors((value,) * 3)
        else:
            self.network = Clouds()
            self.batch = NUM_CLOUDS
            self.points = value

        is_vector = self.points == 0
        shape = (self.batch, 2) if is_vector else (self.batch, self.points, 2)
        self._loss = vector_loss if is_vector else cloud_loss
        self._data = jr.normal(jr.key(0), shape)
        self._model = self.network.model()

    def call(self) -> Callable[[], Any]:
        """A step, for which rows are drawn as torch does."""

        def loss(model, data, key):
            row_key, key = jr.split(key)
            rows = jr.randint(row_key, (len(data),), 0, len(data))
            return self._loss(model, data[rows], key)

        return _report.step_call(loss, self._model, self._data)

    def flops(self) -> int:
        data = jax.ShapeDtypeStruct(self._data.shape, jnp.float32)
        return gradient_work(self._loss, self._model, data, jr.key(0)).flops

    def request(self, least: float) -> dict[str, Any]:
        return {
            "task": "step",
            "network": self.network.request(),
            "mode": "eager",
            "plan": False,
            "batch": self.batch,
            "points": self.points,
            "least": least,
        }


def sweep(
    rounds: int, rate: float, peer: Peer | None, shorten: int
) -> list[dict[str, Any]]:
    """Milliseconds of a step; `rate` is the peak of matrix products."""
    rows = []
    for axis, values in SWEEPS.items():
        for value in values[: len(values) // shorten]:
            case = Case(axis, value)
            call = case.call()
            measures: dict[str, Callable[[], float]] = {
                "flowkit, ms": ft.partial(_report.seconds_of_one, call)
            }
            if peer is not None:
                request = case.request(least=0.05)
                measures["torch, ms"] = ft.partial(_seconds_of_peer, peer, request)
            seconds = _report.values_in_turns(measures, rounds)
            row = {"axis": axis, "value": value}
            for name, several in seconds.items():
                row[name] = 1e3 * statistics.median(several)
            row["products, ms"] = 1e3 * case.flops() / rate
            rows.append(row)
    return rows


def _seconds_of_peer(peer: Peer, request: dict[str, Any]) -> float:
    return peer.ask(**request)["seconds"]


def picture(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each axis of the sweep."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    panels = figure.subplots(1, len(SWEEPS))
    for axes, axis in zip(panels, SWEEPS, strict=True):
        _panel(axes, axis, [row for row in rows if row["axis"] == axis])
    panels[0].set_ylabel("milliseconds of a training step")

    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _panel(axes: Axes, axis: str, rows: list[dict[str, Any]]) -> None:
    values = [row["value"] for row in rows]
    for name, (label, color, style) in LINES.items():
        times = [row[name] for row in rows if name in row]
        if times:
            options: Any = {"color": color, "linestyle": style, "marker": "."}
            axes.plot(values, times, label=label, linewidth=1.3, **options)
    axes.loglog()
    axes.set_xticks(values, [str(value) for value in values], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_title(TITLES[axis], fontsize=10)
    axes.set_xlabel(LABELS[axis])
    axes.grid(True, color="#e9e9e9")
