"""Class-conditional MNIST after half an hour of training, next to torchcfm.

    python benchmarks/mnist.py
    python benchmarks/mnist.py --peer-python PATH   # with torchcfm, one after the other

Both libraries train for the same time, each its own network: flowkit a lean U-Net on
patches, torchcfm the U-Net of its example on MNIST. Samples take 20 evaluations by the
midpoint rule with torch and flowkit alike. A classifier of real digits, whose accuracy
on test images is printed, judges the classes of samples. Its features give Frechet
distances to test images; the floor is that of training images. Results go to
`benchmarks/results/mnist.json` and `.png`.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import _report
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from _peer import peer_versions, run_peer
from _timed import fit_for
from _unets import lean_unet

import flowkit as fk
from flowkit import nn


PEER = "_torchcfm_images.py"
NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields are options of the command line."""

    peer_python: str | None = None
    """Path of a Python that can import torch and torchcfm."""
    minutes: float = 30.0
    """Time of each training, without compilation."""
    batch_size: int = 64
    """Images of a step of flowkit."""
    learning_rate: float = 2e-3
    """Peak learning rate of flowkit, with warm-up and cosine decay."""
    guidance: float = 1.5
    """Scale of the guidance of guided samples."""
    num_samples: int = 2000
    """Samples of each kind, the same number of each class."""
    classifier_steps: int = 3000
    """Training steps of the classifier, with 64 images each."""
    seed: int = 0
    """Random seed."""


class Digits(NamedTuple):
    """Images in [-1, 1], and their labels."""

    images: Any
    labels: Any


class Classifier(eqx.Module):
    """Four convolutions and a layer of 64 features, which `features` returns."""

    convs: list[nn.Conv]
    norms: list[nn.GroupNorm]
    hidden: nn.Linear
    out: nn.Linear

    def __init__(self, *, key: jax.Array):
        *conv_keys, hidden_key, out_key = jr.split(key, 6)
        sizes = [(1, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2)]
        self.convs = [
            nn.Conv(i, o, stride=stride, key=conv_key)
            for (i, o, stride), conv_key in zip(sizes, conv_keys, strict=True)
        ]
        self.norms = [nn.GroupNorm(o) for _, o, _ in sizes]
        self.hidden = nn.Linear(7 * 7 * 64, 64, key=hidden_key)
        self.out = nn.Linear(64, NUM_CLASSES, key=out_key)

    def features(self, image: jax.Array) -> jax.Array:
        h = image
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = jax.nn.silu(norm(conv(h)))
        return jax.nn.silu(self.hidden(h.reshape(-1)))

    def __call__(self, image: jax.Array) -> jax.Array:
        return self.out(self.features(image))


def load() -> tuple[Digits, Digits]:
    """The training and test images."""
    split = fk.data.load_mnist()
    return digits(split.train), digits(split.test)


def digits(part: fk.data.Images) -> Digits:
    return Digits(fk.data.as_images(part.images), np.asarray(part.labels))


def train_classifier(train: Digits, config: Config) -> Classifier:
    """A classifier of real images, which are moved by up to two pixels."""

    def moved(batch: Digits, rng: np.random.Generator) -> Digits:
        shift = tuple(rng.integers(-2, 3, 2))
        return Digits(np.roll(batch.images, shift, (1, 2)), batch.labels)

    def loss(classifier, batch, key):
        logits = jax.vmap(classifier)(batch.images)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return jnp.mean(errors)

    schedule = optax.cosine_decay_schedule(2e-3, config.classifier_steps)
    return fk.training.fit(
        loss,
        Classifier(key=jr.key(config.seed + 1)),
        fk.data.batches(train, 64, transform=moved, seed=config.seed),
        optimizer=optax.adam(schedule),
        num_steps=config.classifier_steps,
        key=jr.key(config.seed + 2),
    ).ema


def flow_loss(flow, batch: Digits, key):
    """Flow matching, with a tenth of the labels left out."""
    drop_key, key = jr.split(key)
    labels = fk.drop_condition(batch.labels, null=NUM_CLASSES, key=drop_key)
    return fk.flow_matching_loss(flow, batch.images, labels, key=key)


def train_flow(train: Digits, config: Config) -> tuple[fk.Flow, dict[str, float]]:
    """A flow that was trained for the given time, and what that took."""
    return fit_for(
        config.minutes,
        flow_loss,
        fk.Flow(lean_unet(NUM_CLASSES)),
        train,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        key=jr.key(config.seed + 3),
    )


def draw(flow: Any, labels: np.ndarray, *, key: jax.Array) -> np.ndarray:
    """Samples of the labels, in 20 evaluations."""
    parts = []
    for i, part in enumerate(np.split(labels, len(labels) // 100)):
        samples = fk.sample(
            flow,
            (28, 28, 1),
            num_samples=len(part),
            cond=part,
            solver=dfx.Midpoint(),
            num_steps=10,
            key=jr.fold_in(key, i),
        )
        parts.append(np.asarray(samples.values))
    return np.concatenate(parts)


def train_peer(train: Digits, config: Config) -> tuple[np.ndarray, dict[str, Any]]:
    """Samples of torchcfm's network after the same time, and what that took."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "data.npz"))
        out = str(Path(folder, "out.npz"))
        np.savez(file, **train._asdict())
        arguments = (str(60 * config.minutes), str(config.num_samples), out)
        numbers = run_peer(config.peer_python, PEER, "mnist", file, *arguments)
        with np.load(out) as made:
            return made["images"], numbers


def judge(samples, labels, classifier: Classifier, test: Digits) -> dict[str, float]:
    """Accuracy of the classes, and the Frechet distance to as many test images."""
    predicted = predict(classifier, samples)
    real = test.images[: len(samples)]
    distance = fk.metrics.frechet_distance(samples, real, classifier.features)
    return {
        "right classes": float(np.mean(predicted == labels)),
        "Frechet": float(distance),
    }


@eqx.filter_jit
def logits_of(classifier: Classifier, images: Any) -> jax.Array:
    return jax.vmap(classifier)(images)


def predict(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    parts = np.split(images, len(images) // 500)
    return np.concatenate([np.argmax(logits_of(classifier, p), -1) for p in parts])


def main(config: Config) -> None:
    if config.num_samples % 500:
        raise SystemExit("`num_samples` must be a multiple of 500.")
    versions = peer_versions(config.peer_python, PEER)
    train, test = load()
    labels = np.arange(config.num_samples) % NUM_CLASSES

    classifier = train_classifier(train, config)
    accuracy = float(np.mean(predict(classifier, test.images) == test.labels))
    floor = judge(
        train.images[: config.num_samples],
        train.labels[: config.num_samples],
        classifier,
        test,
    )
    rows = [{"images": "training images (floor)"} | floor]

    flow, costs = train_flow(train, config)
    guided = fk.guided(flow, config.guidance, null=NUM_CLASSES)
    key = jr.key(config.seed + 4)
    kinds = {
        "flowkit": draw(flow, labels, key=key),
        f"flowkit, guidance {config.guidance}": draw(guided, labels, key=key),
    }
    numbers = {"classifier accuracy": accuracy, "flowkit": costs}
    if config.peer_python is not None:
        kinds["torchcfm"], numbers["torchcfm"] = train_peer(train, config)
    for name, samples in kinds.items():
        rows.append({"images": name} | judge(samples, labels, classifier, test))

    print(numbers)
    _report.show("MNIST", rows)
    _report.save(
        "mnist",
        config.seed,
        peer_versions=versions,
        config=dataclasses.asdict(config) | {"peer_python": None},
        results={"training": numbers, "samples": rows},
    )
    picture(np.concatenate([samples[:30] for samples in kinds.values()]))


def picture(samples: np.ndarray) -> None:
    """Draws three rows of digits of each kind."""
    figure = fk.plotting.image_grid(samples, columns=10)
    figure.savefig(_report.RESULTS / "mnist.png", dpi=70)


if __name__ == "__main__":
    main(tyro.cli(Config))
