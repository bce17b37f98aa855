"""The training step of torchcfm, run by `toys.py` in a Python that has torch and torchcfm; prints JSON.

The same network, batch, data and optimiser as there, in eager mode and with as many threads as PyTorch takes.
"""

import json
import statistics
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


def milliseconds(matcher, data: torch.Tensor, num_steps: int, repeats: int) -> float:
    """The median over `repeats` runs of the mean time of a step."""
    model = MLP(2, w=64, time_varying=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(num_steps):
            x1 = data[torch.randint(len(data), (256,))]
            t, x_t, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            loss = torch.mean((model(torch.cat([x_t, t[:, None]], 1)) - velocity) ** 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        times.append((time.perf_counter() - start) / num_steps)
    return 1e3 * statistics.median(times[1:])


def main() -> None:
    data, num_steps, repeats = torch.from_numpy(np.load(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    times = {
        "independent": milliseconds(ConditionalFlowMatcher(sigma=0.0), data, num_steps, repeats),
        "exact plan per step": milliseconds(
            ExactOptimalTransportConditionalFlowMatcher(sigma=0.0), data, num_steps, repeats
        ),
    }
    print(json.dumps({"milliseconds": times, "versions": {n: version(n) for n in ("torch", "torchcfm", "pot")}}))


if __name__ == "__main__":
    main()
