"""torchcfm and torch on images, for `images_steps.py` and `mnist.py`, in their Python.

    python _torchcfm_images.py versions
    python _torchcfm_images.py convolutions
    python _torchcfm_images.py unet BATCH_SIZE NUM_STEPS
    python _torchcfm_images.py mnist DATA.npz SECONDS NUM_SAMPLES OUT.npz

The first three print JSON. The last one trains the class-conditional U-Net of torchcfm's
example on MNIST for a time, and writes samples of given classes. All run in eager mode,
with the number of threads that PyTorch chooses, in the faster memory format of the two.
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
)
from torchcfm.models.unet import UNetModel  # pyright: ignore[reportMissingImports]
from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]


CONVOLUTIONS = [(32, 28, 64), (64, 14, 128), (64, 32, 32)]
"""Batch size, side and channels."""


def seconds(call, repeats: int) -> float:
    """The median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def convolution_step(batch: int, side: int, channels: int) -> float:
    """Forward pass and gradients of a 3 x 3 convolution, channels last."""
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1)
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, side, side)
    x = x.to(memory_format=torch.channels_last).requires_grad_()

    def step():
        layer.zero_grad()
        x.grad = None
        layer(x).square().mean().backward()

    return seconds(step, 5)


def unet(**options) -> UNetModel:
    """The network of torchcfm's example on MNIST, with 1,075,361 parameters."""
    return UNetModel(dim=(1, 28, 28), num_channels=32, num_res_blocks=1, **options)


def train_step(model, optimizer, matcher, x1, labels=None) -> None:
    """One training step, as in torchcfm's example."""
    x0 = torch.randn_like(x1)
    t, x_t, velocity = matcher.sample_location_and_conditional_flow(x0, x1)
    loss = torch.mean((model(t, x_t, labels) - velocity) ** 2)

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def images_per_second(batch_size: int, num_steps: int) -> float:
    """Images in a second of training."""
    matcher = ConditionalFlowMatcher(sigma=0.0)
    best = 0.0
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = unet().to(memory_format=memory_format)
        optimizer = torch.optim.Adam(model.parameters())
        x1 = torch.randn(batch_size, 1, 28, 28).to(memory_format=memory_format)
        step = lambda m=model, o=optimizer, x=x1: train_step(m, o, matcher, x)
        best = max(best, batch_size / seconds(step, num_steps))
    return best


def train_mnist(file: str, duration: float, num_samples: int, out: str) -> None:
    """Trains for a time, and writes samples of the classes 0, ..., 9, 0, ..."""
    data = np.load(file)
    torch.manual_seed(0)
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)
    classes = torch.from_numpy(data["labels"]).long()
    model = unet(num_classes=10, class_cond=True)
    optimizer = torch.optim.Adam(model.parameters())
    matcher = ConditionalFlowMatcher(sigma=0.0)

    start = time.perf_counter()
    num_steps = 0
    while time.perf_counter() - start < duration:
        rows = torch.randint(len(images), (128,))
        train_step(model, optimizer, matcher, images[rows], classes[rows])
        num_steps += 1

    start = time.perf_counter()
    samples = draw(model.eval(), num_samples)
    np.savez(out, images=samples, labels=np.arange(num_samples) % 10)
    took = time.perf_counter() - start
    print(json.dumps({"steps": num_steps, "sampling_seconds": took}))


@torch.no_grad()
def draw(model, num_samples: int) -> np.ndarray:
    """Samples in 20 evaluations, by the midpoint rule."""
    parts = []
    for labels in (torch.arange(num_samples) % 10).split(100):
        parts.append(
            odeint(
                lambda t, x, y=labels: model(t, x, y),
                torch.randn(len(labels), 1, 28, 28),
                torch.linspace(0, 1, 11),
                method="midpoint",
            )[-1]
        )
    return torch.cat(parts).permute(0, 2, 3, 1).numpy()


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "versions":
        print(json.dumps({name: version(name) for name in ("torch", "torchcfm")}))
    elif command == "convolutions":
        times = [convolution_step(*shape) for shape in CONVOLUTIONS]
        print(json.dumps({"milliseconds": [1e3 * value for value in times]}))
    elif command == "unet":
        rate = images_per_second(*map(int, arguments))
        print(json.dumps({"images_per_second": rate}))
    else:
        file, duration, num_samples, out = arguments
        train_mnist(file, float(duration), int(num_samples), out)


if __name__ == "__main__":
    main()
