"""Reconstruct images from a fraction of their pixels: train, judge, draw.

    python examples/sparse_images.py
    python examples/sparse_images.py evaluate --evaluation.resolution 32
    python examples/sparse_images.py --data.name cifar10 --model.network unet

A flow is trained to move noise to the values at any coordinates, given the observed
pixels. Its samples are plausible images given these pixels, and their spread shows the
uncertainty. CIFAR-10 is used where the environment variable FLOWKIT_DATA leads to it;
otherwise scikit-learn's digits, which need no download.

Everything goes to the output folder. Interrupt the training and start it again: it resumes
from its last checkpoint.
"""

import dataclasses
import functools as ft
import json
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import jax.random as jr
import optax
import tyro

import flowkit as fk
from flowkit.pipelines import Count, Fraction, Positive


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images, and which of their pixels are observed."""

    # `auto` is cifar10 where FLOWKIT_DATA leads to it, and digits elsewhere.
    name: Literal["auto", "digits", "mnist", "cifar10"] = "auto"
    max_samples: Count | None = None  # Maximum number of training images.
    input_ratio: Positive = 0.2  # Fraction of the pixels that is observed.
    output_ratio: Positive = 0.2  # Fraction that is predicted in training.
    # Whether pixels are drawn again in every epoch, or are the same for each image.
    renew: bool = True

    @property
    def ratios(self) -> dict:
        return {"input_ratio": self.input_ratio, "output_ratio": self.output_ratio}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the flow is trained."""

    num_epochs: Count = 50  # Total number, also over an interruption.
    batch_size: Count = 64  # Images per step.
    learning_rate: Positive = 2e-3  # Of Adam; a cosine over the epochs takes it to 0.
    clip: Positive = 1.0  # Largest norm of a gradient.
    ema_decay: Fraction = 0.995  # Decay of the averaged weights, which are judged.
    checkpoint_every: Count = 10  # Epochs between checkpoints.
    keep: Count = 2  # Number of checkpoints that stay.


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How images are reconstructed and judged."""

    every: Count = 2  # Epochs between errors of the output pixels.
    monitor_batches: Count = 10  # Number of batches for them.
    num_steps: Count = 10  # Solver steps in training.
    figure_every: Count = 5  # Epochs between figures of predictions.
    solver: Literal["euler", "midpoint", "heun", "rk4"] = "heun"
    batch_size: Count = 16  # Images that are reconstructed at a time.
    num_batches: Count = 50  # Maximum number of batches at the end.
    final_steps: Count = 20  # Solver steps at the end.
    num_samples: Count = 20  # Samples of each image; 19 for coverage, 2 for the CRPS.
    keep_observed: bool = True  # Whether observed pixels keep their values at the end.
    resolution: Count | None = None  # Side of images to draw at another resolution.


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a flow that reconstructs images from some of their pixels, and judge it."""

    # `evaluate` takes data and model from the run in the output folder.
    command: tyro.conf.Positional[Literal["train", "evaluate", "all"]] = "all"

    data: DataConfig = DataConfig()
    # The parts of the model by name, with their sizes.
    model: fk.pipelines.SparseFlowConfig = fk.pipelines.SparseFlowConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = 42  # Random seed, also of the pixels.
    output: str = "artifacts/sparse_images"  # Folder of all files.


IN_TRAINING = "every monitor_batches num_steps figure_every".split()
AT_THE_END = "num_batches final_steps num_samples keep_observed resolution".split()
FIXED = "batch_size learning_rate clip ema_decay".split()


def check(config: Config) -> None:
    """Invalid options and options without effect are errors, before any work."""
    idle: dict[str, str] = {}
    if config.command == "evaluate":
        reason = "the run in the output folder has its own"
        idle |= dict.fromkeys(("data", "model", "training", "seed"), reason)
        idle |= {f"evaluation.{name}": "nothing is trained" for name in IN_TRAINING}
    else:
        of_model = config.model.without_effect()
        idle |= {f"model.{name}": reason for name, reason in of_model.items()}
        idle["model.shape"] = "it is that of the images"
    if config.command == "train":
        reason = "`train` draws no whole images"
        idle |= {f"evaluation.{name}": reason for name in AT_THE_END}
    fk.pipelines.check_options(config, idle)


def load(config: DataConfig, seed: int) -> tuple[fk.data.Split, fk.data.Split]:
    """The images to train and to test on, and the pixels of each."""
    images = fk.pipelines.small_images(config.name, seed=seed)
    images = images._replace(train=images.train[: config.max_samples])
    keys = jr.split(jr.key(seed))
    draw = ft.partial(fk.data.sparse_pixels, **config.ratios)
    pixels = [draw(part, key=key) for part, key in zip(images, keys, strict=True)]
    return images, fk.data.Split(*pixels)


def report_of(
    config: EvaluationConfig, images: fk.data.Split, pixels: fk.data.Split
) -> fk.pipelines.SparseFlowReport:
    return fk.pipelines.SparseFlowReport(
        images.test,
        pixels.test,
        batch_size=min(config.batch_size, len(images.test)),
        solver=fk.pipelines.SOLVERS[config.solver],
        keep_observed=config.keep_observed,
    )


def rebuild(stored: dict) -> fk.pipelines.SparseFlow:
    return fk.pipelines.SparseFlowConfig.from_json(stored["model"]).build()


def train(config: Config) -> None:
    options = config.training
    images, pixels = load(config.data, config.seed)
    num_outputs = pixels.test.output_indices.shape[1]
    model_config = config.model.for_data(images.train.shape[1:], num_outputs)
    model_key, fit_key, watch_key = jr.split(jr.key(config.seed), 3)
    model = model_config.build(key=model_key)

    per_epoch = -(-len(images.train) // options.batch_size)
    cosine = optax.cosine_decay_schedule(options.learning_rate, options.num_epochs)
    # The rate is that of the epoch, as in the original.
    optimizer = optax.chain(
        optax.clip_by_global_norm(options.clip),
        optax.adam(lambda step: cosine(jnp.floor_divide(step, per_epoch))),
    )
    # What the weights depend on; all else may change when a run goes on.
    stored: dict = {"data": vars(config.data), "model": vars(model_config)}
    stored["training"] = {name: getattr(options, name) for name in FIXED}
    stored["seed"] = config.seed

    folder = Path(config.output)
    report = report_of(config.evaluation, images, pixels)
    result = fk.training.fit(
        loss_of(config.data),
        model,
        fk.data.batches(
            (images.train, None if config.data.renew else pixels.train),
            options.batch_size,
            seed=config.seed,
        ),
        optimizer=optimizer,
        num_steps=options.num_epochs * per_epoch,
        ema_decay=fk.training.WarmUpDecay(options.ema_decay),
        trainable=lambda model: model.flow,
        checkpoints=fk.training.Checkpoints(
            folder / "checkpoints",
            every=options.checkpoint_every * per_epoch,
            keep=options.keep,
            config=stored,
        ),
        callbacks=report.callbacks(
            folder / "predictions",
            steps_per_epoch=per_epoch,
            measure_every=config.evaluation.every,
            draw_every=config.evaluation.figure_every,
            num_batches=config.evaluation.monitor_batches,
            num_steps=config.evaluation.num_steps,
            key=watch_key,
        ),
        key=fit_key,
    )
    fk.plotting.loss_trajectory(
        result.history,
        panels={"training": ["loss"], "test": ["test_mse", "test_mae"]},
        path=folder / "loss.png",
    )
    print(f"Trained for {result.seconds:.0f} s; see {folder}/.")


def loss_of(config: DataConfig):
    def loss(model, batch, key):
        images, pixels = batch
        pixel_key, key = jr.split(key)
        if pixels is None:
            pixels = fk.data.sparse_pixels(images, **config.ratios, key=pixel_key)
        return model.loss(images, pixels, key=key)

    return loss


def evaluate(config: Config) -> None:
    """Whole images, in numbers and figures, from the last checkpoint alone."""
    options = config.evaluation
    folder = Path(config.output)
    checkpoints, stored = fk.pipelines.stored_run(folder, "sparse images")
    model = fk.training.restore_model(checkpoints, rebuild)
    images, pixels = load(DataConfig(**stored["data"]), stored["seed"])

    print("Reconstructing whole images ...", flush=True)
    numbers = report_of(options, images, pixels).write(
        model,
        folder,
        num_batches=options.num_batches,
        num_samples=options.num_samples,
        num_steps=options.final_steps,
        resolution=options.resolution,
        key=jr.key(stored["seed"] + 1),
    )
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"Figures and metrics are in {folder}/.")


def main(config: Config) -> None:
    check(config)
    if config.command != "evaluate" and config.data.name == "auto":
        name = fk.pipelines.found_images()
        print(f"The images are those of {name}; --data.name names others.")
        data = dataclasses.replace(config.data, name=name)
        config = dataclasses.replace(config, data=data)
    if config.command != "evaluate":
        train(config)
    if config.command != "train":
        evaluate(config)


if __name__ == "__main__":
    with fk.pipelines.exit_on_misuse(interrupted="The same command resumes the run."):
        main(fk.pipelines.parse(Config))
