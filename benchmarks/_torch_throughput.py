"""torch and torchcfm on the networks of `throughput.py`, which runs this in its Python.

    python _torch_throughput.py versions
    python _torch_throughput.py serve DATA.npy

The first prints versions as JSON. The second answers requests, a line of JSON each, until
its input ends: `peak`, `loss` (of a network with given weights, pairs and times) and `step`
(the seconds of a training step). Steps run eagerly with Adam, by `torch.compile` with fused
Adam, or with the matcher of torchcfm, all with the number of threads that PyTorch chooses.
"""

import functools
import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from _torchcfm import step as torchcfm_step
from scipy.optimize import linear_sum_assignment
from torch.nn import (  # pyright: ignore[reportMissingImports]
    LayerNorm,
    Linear,
    ModuleList,
    SELU,
    Sequential,
    SiLU,
)
from torch.nn.functional import layer_norm, silu  # pyright: ignore[reportMissingImports]
from torchcfm.conditional_flow_matching import (  # pyright: ignore[reportMissingImports]
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)


# Networks. Parameters come in the order of those of flowkit.


def stack(sizes, activation) -> Sequential:
    """Linear layers with an activation between any two."""
    layers = []
    for in_size, out_size in pairwise(sizes):
        layers += [Linear(in_size, out_size), activation()]
    return Sequential(*layers[:-1])


class Vectors(torch.nn.Module):
    """`fk.nn.MLP` in the plane, with the time itself or two learned layers of it."""

    def __init__(self, sizes, activation: str, time_size: int):
        super().__init__()
        kind = {"selu": SELU, "silu": SiLU}[activation]
        self.layers = stack((2 + (time_size or 1), *sizes, 2), kind)
        self.time = None
        if time_size:
            self.time = stack((1, time_size, time_size), SiLU)

    def forward(self, x_and_time: torch.Tensor) -> torch.Tensor:
        if self.time is None:
            return self.layers(x_and_time)
        x = x_and_time[:, :2]
        return self.layers(torch.cat([x, self.time(x_and_time[:, 2:])], 1))

    def loss(self, x0, x1, t) -> torch.Tensor:
        x_t = torch.lerp(x0, x1, t[:, None])
        return torch.mean((self(torch.cat([x_t, t[:, None]], 1)) - (x1 - x0)) ** 2)


class Clouds(torch.nn.Module):
    """`fk.nn.PointNet(2, 32)` and `fk.nn.AdaLNMLP(2, 32)`."""

    def __init__(self, width: int = 64, depth: int = 6, cond_size: int = 256):
        super().__init__()
        sizes = (64, 128, 256)
        self.layers = ModuleList(Linear(*two) for two in pairwise((2, *sizes)))
        self.norms = ModuleList(LayerNorm(size, eps=1e-6) for size in sizes)
        self.latent = Linear(2 * sizes[-1], 32)

        self.latent_in = Linear(32, cond_size)
        self.time_in = Linear(32, cond_size, bias=False)
        self.hidden = Linear(cond_size, cond_size)
        self.modulation = Linear(cond_size, 3 * depth * width)
        self.embedding = Linear(2, width)
        self.blocks = ModuleList(Linear(width, width) for _ in range(depth))
        self.out = Linear(width, 2)

    def encode(self, points: torch.Tensor) -> torch.Tensor:
        h = points
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = norm(silu(layer(h)))
        return self.latent(torch.cat([h.amax(1), h.mean(1)], 1))

    def forward(self, t, x, latents) -> torch.Tensor:
        angles = t[:, None] * 1e4 ** -torch.linspace(0, 1, 16)
        times = self.time_in(torch.cat([torch.sin(angles), torch.cos(angles)], 1))
        cond = silu(self.hidden(silu(self.latent_in(latents) + times)))
        width = self.out.in_features
        vectors = self.modulation(cond).view(len(x), -1, 3, 1, width)

        h = silu(self.embedding(x))
        for i, block in enumerate(self.blocks):
            scale, shift, gate = vectors[:, i].unbind(1)
            normal = layer_norm(h, (width,), eps=1e-6)
            h = h + gate * block(silu(normal * (1 + scale) + shift))
        return self.out(h)

    def loss(self, x0, x1, t) -> torch.Tensor:
        x_t = torch.lerp(x0, x1, t[:, None, None])
        return torch.mean((self(t, x_t, self.encode(x1)) - (x1 - x0)) ** 2)


def build(network: dict) -> torch.nn.Module:
    """The network of a request."""
    kinds = {"vectors": Vectors, "clouds": Clouds}
    options = dict(network)
    return kinds[options.pop("kind")](**options)


# Requests.


def peak(repeats: int) -> dict[str, float]:
    """The highest number of operations per second, on large square matrices."""
    a = torch.ones(2048, 2048)
    torch.matmul(a, a)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.matmul(a, a)
        times.append(time.perf_counter() - start)
    return {"rate": 2 * 2048**3 / min(times)}


def loss(network: dict, file: str) -> dict[str, float]:
    """The loss of a network whose weights, pairs and times are in a file."""
    model = build(network)
    with np.load(file) as data:
        weights = [data[f"weight{i}"] for i in range(len(data.files) - 3)]
        x0, x1, t = (torch.from_numpy(data[name]) for name in ("x0", "x1", "t"))
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            # flowkit multiplies from the right.
            parameter.copy_(torch.from_numpy(weight.T.copy()))
        value = float(model.loss(x0, x1, t))
    return {"parameters": sum(p.numel() for p in model.parameters()), "loss": value}


@functools.cache
def step(data, network: str, batch: int, points: int, mode: str, plan: bool):
    """A training step as a call without arguments."""
    model = build(json.loads(network))
    # In one kernel, for the mode that is to be as fast as it can be.
    options = {"fused": True} if mode == "compiled" else {}
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, **options)
    if points:
        data = torch.randn(batch, points, 2)

    def draw(data):
        x1 = data[torch.randint(len(data), (batch,))]
        return torch.randn_like(x1), x1

    if mode == "torchcfm":
        matchers = (ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher)
        matcher = matchers[plan](sigma=0.0)
        return lambda: torchcfm_step(model, optimizer, matcher, *draw(data))

    regression = lambda x0, x1: model.loss(x0, x1, torch.rand(len(x1)))
    if plan:
        if mode == "compiled":
            regression = torch.compile(regression)
        value = lambda data: regression(*planned(*draw(data)))
    else:
        value = lambda data: regression(*draw(data))
        if mode == "compiled":
            value = torch.compile(value)

    def call():
        optimizer.zero_grad()
        value(data).backward()
        optimizer.step()

    return call


def planned(x0: torch.Tensor, x1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The noise in the order of an exact plan."""
    costs = torch.cdist(x1, x0).square().numpy()
    _, columns = linear_sum_assignment(costs)
    return x0[torch.from_numpy(columns)], x1


def step_seconds(data, network: dict, mode: str, least: float, **options) -> dict:
    """The mean over `least` seconds, after a step that is not counted."""
    if mode == "compiled" and not has_compiler():
        return {"skipped": "torch.compile needs a C++ compiler, and there is none"}
    call = step(data, json.dumps(network), mode=mode, **options)
    try:
        call()
    except Exception as error:
        # A compiler may be there and lack what it needs; the others are still timed.
        if mode != "compiled":
            raise
        return {"skipped": f"torch.compile fails: {error}"}
    num = 0
    start = time.perf_counter()
    elapsed = 0.0
    while elapsed < least:
        call()
        num += 1
        elapsed = time.perf_counter() - start
    return {"seconds": elapsed / num}


def has_compiler() -> bool:
    names = (os.environ.get("CXX", "g++"), "clang++")
    return any(shutil.which(name) for name in names)


def serve(file: str) -> None:
    """Answers requests until there are no more."""
    data = torch.from_numpy(np.load(file))
    tasks = {
        "peak": peak,
        "loss": loss,
        "step": functools.partial(step_seconds, data),
    }
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(tasks[request.pop("task")](**request)), flush=True)


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "versions":
        names = ("torch", "torchcfm", "pot", "scipy")
        print(json.dumps({name: version(name) for name in names}))
    else:
        serve(*arguments)


if __name__ == "__main__":
    main()
