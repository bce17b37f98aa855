"""torchcfm on the tasks of `toys.py` and `toys_steps.py`, which run this in its Python.

    python _torchcfm.py versions
    python _torchcfm.py steps DATA.npy
    python _torchcfm.py train TASK.npz OPTIONS_AS_JSON OUT.npz

The first two print versions and milliseconds of a training step as JSON. The last one
writes paths of a trained flow.

It runs in eager mode, with the network of torchcfm: three layers and SELU. Steps are timed
with the number of threads that PyTorch chooses; a training takes one thread.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torchcfm.conditional_flow_matching import (  # pyright: ignore[reportMissingImports]
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)
from torchcfm.models import MLP  # pyright: ignore[reportMissingImports]
from torchcfm.optimal_transport import OTPlanSampler  # pyright: ignore[reportMissingImports]


def step(model, optimizer, matcher, x0: torch.Tensor, x1: torch.Tensor) -> None:
    """One training step on a batch of pairs."""
    t, x_t, velocity = matcher.sample_location_and_conditional_flow(x0, x1)
    predicted = model(torch.cat([x_t, t[:, None]], 1))
    loss = torch.mean((predicted - velocity) ** 2)

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def milliseconds(matcher, data: torch.Tensor, num_steps: int = 200) -> float:
    """The mean over the steps of a run."""
    model = MLP(2, w=64, time_varying=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    # The first run warms up, and the second is timed.
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(num_steps):
            x1 = data[torch.randint(len(data), (256,))]
            step(model, optimizer, matcher, torch.randn_like(x1), x1)

    return 1e3 * (time.perf_counter() - start) / num_steps


def pairs(x0: torch.Tensor, x1: torch.Tensor, batch_size: int, plan_size: int | None):
    """Batches of random pairs, or of pairs of exact plans.

    Each plan serves `plan_size / batch_size` steps.
    """

    def draw(values: torch.Tensor, num: int) -> torch.Tensor:
        return values[torch.randint(len(values), (num,))]

    sampler = OTPlanSampler("exact")
    while True:
        if plan_size is None:
            yield draw(x0, batch_size), draw(x1, batch_size)
        else:
            x0_plan, x1_plan = sampler.sample_plan(
                draw(x0, plan_size), draw(x1, plan_size)
            )
            x0_batches = x0_plan.split(batch_size)
            x1_batches = x1_plan.split(batch_size)
            yield from zip(x0_batches, x1_batches, strict=True)


def train(task, options) -> torch.nn.Module:
    """A flow from `x0` to `x1` of the task."""
    torch.manual_seed(options["seed"])
    torch.set_num_threads(1)
    model = MLP(2, w=options["width"], time_varying=True)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        options["learning_rate"],
        weight_decay=options["weight_decay"],
    )
    matcher = ConditionalFlowMatcher(sigma=options["sigma"])

    x0 = torch.from_numpy(task["x0"])
    x1 = torch.from_numpy(task["x1"])
    batches = pairs(x0, x1, options["batch_size"], options["plan_size"])
    for _ in range(options["num_steps"]):
        step(model, optimizer, matcher, *next(batches))
    return model


@torch.no_grad()
def euler(model: torch.nn.Module, x: torch.Tensor, num_steps: int) -> np.ndarray:
    """The path `(points, times, 2)` of Euler's method."""
    path = [x]
    for i in range(num_steps):
        t = torch.full((len(x), 1), i / num_steps)
        path.append(path[-1] + model(torch.cat([path[-1], t], 1)) / num_steps)
    return torch.stack(path, 1).numpy()


def time_steps(file: str) -> None:
    """Prints milliseconds of a training step on the points of a file."""
    data = torch.from_numpy(np.load(file))
    matchers = {
        "independent": ConditionalFlowMatcher(sigma=0.0),
        "exact plan per step": ExactOptimalTransportConditionalFlowMatcher(sigma=0.0),
    }
    times = {name: milliseconds(matcher, data) for name, matcher in matchers.items()}
    print(json.dumps(times))


def train_task(file: str, options: str, out: str) -> None:
    """Trains on the task of a file, and writes paths of its points."""
    task = np.load(file)
    model = train(task, json.loads(options))
    test_x0 = torch.from_numpy(task["test_x0"])
    starts = torch.from_numpy(task["starts"])
    np.savez(
        out,
        one=euler(model, test_x0, 1)[:, -1],
        ends=euler(model, test_x0, 100)[:, -1],
        moves=euler(model, starts, 100),
    )

    # The caller parses the last line.
    print("{}")


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "versions":
        names = ("torch", "torchcfm", "pot")
        print(json.dumps({name: version(name) for name in names}))
    elif command == "steps":
        time_steps(*arguments)
    else:
        train_task(*arguments)


if __name__ == "__main__":
    main()
