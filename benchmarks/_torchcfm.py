"""torchcfm on the tasks of `toys.py` and `toys_steps.py`, which run this in its Python.

    python _torchcfm.py versions                                # as JSON
    python _torchcfm.py steps DATA.npy                          # milliseconds of a training step, as JSON
    python _torchcfm.py train TASK.npz OPTIONS_AS_JSON OUT.npz  # paths of a trained flow

Eager mode; the network is that of the library, three layers and SELU. Steps are timed with as many threads as PyTorch
takes, trainings take one.
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
    t, x_t, velocity = matcher.sample_location_and_conditional_flow(x0, x1)
    loss = torch.mean((model(torch.cat([x_t, t[:, None]], 1)) - velocity) ** 2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def milliseconds(matcher, data: torch.Tensor, num_steps: int = 200) -> float:
    """The mean over the steps of a run; a run before it warms up."""
    model = MLP(2, w=64, time_varying=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(num_steps):
            x1 = data[torch.randint(len(data), (256,))]
            step(model, optimizer, matcher, torch.randn_like(x1), x1)
    return 1e3 * (time.perf_counter() - start) / num_steps


def pairs(x0: torch.Tensor, x1: torch.Tensor, batch_size: int, plan_size: int | None):
    """Batches of random pairs, or of those of exact plans, each of which serves `plan_size / batch_size` steps."""
    draw = lambda values, num: values[torch.randint(len(values), (num,))]
    sampler = OTPlanSampler("exact")
    while True:
        if plan_size is None:
            yield draw(x0, batch_size), draw(x1, batch_size)
        else:
            planned = sampler.sample_plan(draw(x0, plan_size), draw(x1, plan_size))
            yield from zip(
                *(values.split(batch_size) for values in planned), strict=True
            )


def train(task, options) -> torch.nn.Module:
    """A flow from `x0` to `x1`, rows of the task."""
    torch.manual_seed(options["seed"])
    torch.set_num_threads(1)
    model = MLP(2, w=options["width"], time_varying=True)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        options["learning_rate"],
        weight_decay=options["weight_decay"],
    )
    matcher = ConditionalFlowMatcher(sigma=options["sigma"])
    x0, x1 = torch.from_numpy(task["x0"]), torch.from_numpy(task["x1"])
    batches = pairs(x0, x1, options["batch_size"], options["plan_size"])
    for _ in range(options["num_steps"]):
        step(model, optimizer, matcher, *next(batches))
    return model


@torch.no_grad()
def euler(model: torch.nn.Module, x: torch.Tensor, num_steps: int) -> np.ndarray:
    """`(points, times, 2)`."""
    path = [x]
    for i in range(num_steps):
        t = torch.full((len(x), 1), i / num_steps)
        path.append(path[-1] + model(torch.cat([path[-1], t], 1)) / num_steps)
    return torch.stack(path, 1).numpy()


def main() -> None:
    command, *rest = sys.argv[1:]
    if command == "versions":
        print(
            json.dumps({name: version(name) for name in ("torch", "torchcfm", "pot")})
        )
        return
    file, *rest = rest
    if command == "steps":
        data = torch.from_numpy(np.load(file))
        matchers = {
            "independent": ConditionalFlowMatcher(sigma=0.0),
            "exact plan per step": ExactOptimalTransportConditionalFlowMatcher(
                sigma=0.0
            ),
        }
        times = {
            name: milliseconds(matcher, data) for name, matcher in matchers.items()
        }
        print(json.dumps(times))
        return
    options, out = json.loads(rest[0]), rest[1]
    task = np.load(file)
    model = train(task, options)
    starts = {name: torch.from_numpy(task[name]) for name in ("test_x0", "starts")}
    np.savez(
        out,
        one=euler(model, starts["test_x0"], 1)[:, -1],
        ends=euler(model, starts["test_x0"], 100)[:, -1],
        moves=euler(model, starts["starts"], 100),
    )
    print("{}")


if __name__ == "__main__":
    main()
