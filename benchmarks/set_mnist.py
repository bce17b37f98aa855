"""Generated MNIST point clouds against real ones.

    python benchmarks/set_mnist.py                # trains a model first, about 15 minutes
    python benchmarks/set_mnist.py --run FOLDER   # scores a model that was trained there

It measures 1-NN accuracy, coverage, reconstructions, classes and cardinality. Each score has
its floor: training clouds in place of generated ones, the distance between two draws of one
image for reconstructions, and the accuracy on test clouds for the classifier. Results go to
`benchmarks/results/set_mnist.json`, with pictures in the same folder.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import _report
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro

import flowkit as fk


NUM_POINTS = 256
"""Points of every cloud that is scored or that the classifier sees."""

GUIDANCE = 2.0
"""Scale of the guidance of guided clouds."""

CHAMFER = jax.jit(jax.vmap(fk.metrics.chamfer))
"""Distances between corresponding clouds of two batches."""

SOLVER = {"solver": fk.RK4(), "num_steps": 5}
"""A sample takes 20 evaluations."""

EXAMPLE = Path(__file__).parents[1] / "examples" / "point_clouds.py"
RUN = "artifacts/set_mnist"
OPTIONS = """
    --data mnist --class-conditional --stages two-stage --num-points 128
    --num-steps 5000 --prior-steps 7000 --batch-size 64 --optimizer muon
    --learning-rate 5e-3 --times late --checkpoint-every 2000
    --model.latent-size 64 --model.features --model.prior-width 256
"""
"""The run that is scored by default."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The run that is scored, and the sizes of the scores."""

    run: str | None = None
    """Folder of a run of `examples/point_clouds.py`. None trains the default model."""
    num_chamfer: int = 1000
    """Number of clouds of each kind for the scores by Chamfer distance."""
    num_emd: int = 200
    """Number of clouds of each kind for the scores by earth mover's distance."""
    classifier_steps: int = 4000
    """Training steps of the classifier, with 64 clouds each."""
    seed: int = 0
    """Random seed."""


class Clouds(NamedTuple):
    """Real clouds, and generated ones with their labels."""

    train: Any
    test: Any
    generated: np.ndarray
    guided: np.ndarray
    labels: np.ndarray


def main(config: Config) -> None:
    if config.run is None:
        command = [sys.executable, str(EXAMPLE), *OPTIONS.split(), "--output", RUN]
        subprocess.run(command, check=True)
    folder = Path(config.run or RUN)
    model, run = fk.pipelines.load_set_flow(folder)
    trained = json.loads((folder / "metrics.json").read_text())

    images = fk.data.load_mnist()
    tkey, hkey, gkey, ckey, rkey, skey = jr.split(jr.key(config.seed), 6)
    train = fk.data.image_clouds(images.train, NUM_POINTS, key=tkey)
    test = fk.data.image_clouds(images.test, 2 * NUM_POINTS, key=hkey)

    labels = jr.choice(ckey, images.train.labels, (config.num_chamfer,))
    generated = generate(model, run, labels, key=gkey)
    guided = generate(with_guidance(model), run, labels, key=gkey)
    picture(guided, np.asarray(labels))
    clouds = Clouds(train, test, generated, guided, np.asarray(labels))

    steps = {f"{stage}_steps": steps for stage, steps in trained["steps"].items()}
    results = steps | {
        "train_seconds": trained["seconds"],
        "evaluations_per_sample": 20,
    }
    for part in scores(model, run, clouds, (rkey, skey), config):
        results |= part
        rounded = {name: round(float(value), 4) for name, value in results.items()}
        print(rounded, flush=True)

    table = [{"number": name, "value": value} for name, value in results.items()]
    _report.show("Set-MNIST", table)
    _report.save("set_mnist", config.seed, run=run, results=results)


def with_guidance(model: Any) -> Any:
    """The model with guidance of its prior."""
    flow = fk.guided(model.prior.flow, GUIDANCE)
    return eqx.tree_at(lambda model: model.prior.flow, model, flow)


def scores(model, run, clouds: Clouds, keys, config: Config):
    """All scores, the fast ones first, of clouds without and with guidance."""
    rkey, skey = keys
    points = clouds.test.points
    yield reconstruction(model, run, points[: config.num_chamfer], key=rkey)
    yield cardinality(model, run, key=skey)
    yield classes(clouds, config)

    samples = {
        "": clouds.generated,
        "_guided": clouds.guided,
        "_floor": clouds.train.points,
    }
    yield two_samples("chamfer", config.num_chamfer, samples, points)
    yield two_samples("emd", config.num_emd, samples, points)


def generate(
    model, run, labels, *, key, num_points: int = NUM_POINTS, mask=None
) -> np.ndarray:
    """Clouds of the classes of `labels`, if the model knows classes."""
    num_classes = run["model"]["num_classes"]
    cond = None
    if num_classes:
        cond = jax.nn.one_hot(labels, num_classes)[:, None]

    options = {"num_samples": len(labels), "cond": cond, "mask": mask, "key": key}
    return np.asarray(model.sample(num_points, **options, **SOLVER).values)


def reconstruction(model, run, clouds: np.ndarray, *, key) -> dict:
    """Chamfer distance of reconstructions to other draws of their images, and its floor.

    The encoder sees as many points as in training; what is compared has more and more of them.
    """
    seen, other = np.split(clouds, 2, axis=1)
    latents = fk.latent.encode_sets(model, seen[:, : run["num_points"]])
    options = {"num_samples": len(seen), "cond": latents, "key": key, **SOLVER}
    rebuilt = fk.sample(model.flow, seen.shape[1:], **options).values
    results = {}
    for n in (64, 128, NUM_POINTS):
        value = float(jnp.mean(CHAMFER(rebuilt[:, :n], other[:, :n])))
        floor = float(jnp.mean(CHAMFER(seen[:, :n], other[:, :n])))
        results |= {
            f"chamfer_{n}": value,
            f"chamfer_floor_{n}": floor,
            f"chamfer/floor_{n}": value / floor,
        }
    return results


def two_samples(
    name: str, num: int, samples: dict[str, np.ndarray], test: np.ndarray
) -> dict:
    """1-NN accuracy and coverage of each kind of samples, against test clouds."""
    distance = getattr(fk.metrics, name)
    reference = test[:num, :NUM_POINTS]
    within = fk.metrics.pairwise(distance, reference)
    results = {}
    for suffix, clouds in samples.items():
        among = fk.metrics.pairwise(distance, clouds[:num])
        across = fk.metrics.pairwise(distance, clouds[:num], reference)
        nearest = fk.metrics.one_nna(among, across, within)
        results[f"one_nna_{name}{suffix}"] = float(nearest)
        results[f"coverage_{name}{suffix}"] = float(fk.metrics.coverage(across))
    return results


def train_classifier(clouds: Any, config: Config) -> Any:
    """A classifier of real clouds."""
    ikey, tkey = jr.split(jr.key(config.seed + 1))
    features = fk.nn.SinusoidalFeatures(fk.nn.banded())
    classifier = fk.nn.PointNet(2, 10, features=features, key=ikey)

    def loss(classifier, batch, key):
        logits = jax.vmap(classifier)(batch.points)[:, 0]
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return jnp.mean(errors)

    num_steps = config.classifier_steps
    schedule = optax.cosine_decay_schedule(5e-3, num_steps)
    return fk.training.fit(
        loss,
        classifier,
        fk.data.batches(clouds.sets(), 64, seed=config.seed),
        optimizer=optax.contrib.muon(schedule, consistent_rms=0.2),
        num_steps=num_steps,
        key=tkey,
    ).ema


def classes(clouds: Clouds, config: Config) -> dict:
    """The fraction of generated clouds that a classifier puts into the requested class."""
    classifier = train_classifier(clouds.train, config)

    @jax.jit
    def predict(points):
        return jnp.argmax(jax.vmap(classifier)(points)[:, 0], axis=-1)

    # In parts, as all test clouds at once take too much memory.
    parts = np.split(clouds.test.points[:, :NUM_POINTS], 10)
    predicted = np.concatenate([predict(part) for part in parts])
    return {
        "class_accuracy": accuracy(predict(clouds.generated), clouds.labels),
        "class_accuracy_guided": accuracy(predict(clouds.guided), clouds.labels),
        "class_accuracy_real": accuracy(predicted, clouds.test.labels),
    }


def accuracy(predicted, labels) -> float:
    return float(np.mean(predicted == labels))


def cardinality(model, run, *, key) -> dict:
    """Seconds to generate clouds of 50 to 500 points with one compiled program.

    The first call compiles, and the second has other sizes.
    """
    ckey, lkey, gkey = jr.split(key, 3)
    counts = np.asarray(jr.randint(ckey, (100,), 50, 501))
    labels = jr.randint(lkey, (100,), 0, 10)
    seconds = []
    for shift in (0, 1):
        mask = np.arange(500) < np.roll(counts, shift)[:, None]
        start = time.perf_counter()
        clouds = generate(model, run, labels, key=gkey, num_points=500, mask=mask)
        seconds.append(time.perf_counter() - start)
    assert np.all(clouds[~mask] == 0)
    return {
        "cardinality_compile_seconds": seconds[0] - seconds[1],
        "cardinality_call_seconds": seconds[1],
    }


def picture(generated: np.ndarray, labels: np.ndarray) -> None:
    """Draws six clouds of each class."""
    rows = np.concatenate([np.flatnonzero(labels == label)[:6] for label in range(10)])
    _report.RESULTS.mkdir(exist_ok=True)
    figure = fk.plotting.point_clouds(generated[rows], columns=6, limits=(-1.2, 1.2))
    figure.savefig(_report.RESULTS / "set_mnist.png", dpi=70)


if __name__ == "__main__":
    main(tyro.cli(Config))
