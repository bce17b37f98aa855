"""Generate images: a U-Net or a transformer, EMA, checkpoints, and samples as a picture.

    python examples/images.py
    python examples/images.py all --data.name digits --class-conditional
    python examples/images.py train --data.name mnist --data.image-size 128
    python examples/images.py train --data.name pictures/ --output artifacts/pictures
    python examples/images.py sample --sampling.solver rk4 --sampling.num-steps 100

`sample` draws from the checkpoints in the output folder, whatever the network was. Without
`--data.name` the images are MNIST if it is there, otherwise scikit-learn's digits of 8 x 8
pixels, which need no download. Interrupt the training and start it again: it resumes.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.random as jr
import numpy as np
import tyro

import flowkit as fk
from flowkit import pipelines
from flowkit.pipelines import Count, Natural, NonNegative, Within


Inside = Annotated[float, Within(above=0, at_most=0.9)]
FITS = {"center": fk.data.center_crop, "stretch": fk.data.stretch}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images to learn from."""

    # `digits`, `mnist`, `cifar10`, or a folder of pictures. Default: MNIST if it is there.
    name: str | None = None
    image_size: Count | None = None  # Default: that of the data; 64 for a folder.
    crop: Literal["center", "stretch"] = "center"  # How a picture becomes a square.
    flip: bool = False  # Whether images are mirrored from left to right at random.
    max_samples: Count | None = None  # Maximum number of training images.
    test_samples: Count = 512  # Maximum number of held-out images.
    test_fraction: Inside = 0.1  # Held-out fraction of a folder and of `digits`.
    skip_damaged: bool = False  # Whether damaged files are left out, with a count.
    num_threads: Natural = 4  # Batches of a folder that are read at the same time.


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Samples of a checkpoint, as one picture."""

    checkpoint: str = "best"  # `best`, by the held-out loss, `last`, or an epoch.
    ema: bool = True  # Whether the weights are the averaged ones.
    num_samples: Count = 100  # Number of samples.
    batch_size: Count = 64  # Samples in memory at a time.
    solver: Literal["euler", "midpoint", "heun", "rk4", "tsit5", "dopri5"] = "heun"
    num_steps: Count = 20  # Equal solver steps.
    labels: tuple[Natural, ...] = ()  # Classes, over and over. Default: all.
    guidance: NonNegative = 1.0  # Scale of the guidance; 1 is the flow itself.
    columns: Count | None = None  # Samples in a row. Default: a nearly square picture.
    file: str = "samples.png"  # Name of the picture in the output folder.


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a flow from noise to images, and draw samples from it."""

    # `sample` takes the model from the run in the output folder.
    command: tyro.conf.Positional[Literal["train", "sample", "all"]] = "all"

    class_conditional: bool = False  # Whether the flow is given the class.
    start_from: str | None = None  # Folder of an earlier run to train further.
    seed: int = 42  # Random seed.
    output: str = "artifacts/images"  # Folder for pictures, metrics and checkpoints.
    data: DataConfig = DataConfig()
    # The parts of the model by name, with their sizes.
    model: pipelines.ImageFlowConfig = pipelines.ImageFlowConfig()
    training: pipelines.ImageFlowTraining = pipelines.ImageFlowTraining()
    sampling: SamplingConfig = SamplingConfig()


def check(config: Config) -> None:
    """Invalid options and options without effect are errors, before any work."""
    idle: dict[str, str] = {}
    if config.data.name in ("mnist", "cifar10"):
        idle["data.test_fraction"] = f"{config.data.name} has its own test set"
    if config.data.name in ("digits", "mnist", "cifar10"):
        folder = ("crop", "skip_damaged", "num_threads")
        idle |= {f"data.{name}": "the images are no folder" for name in folder}
    if config.command != "sample" and not is_conditional(config):
        options = ("training.class_dropout", "sampling.labels", "sampling.guidance")
        idle |= {name: "the flow is not conditioned on classes" for name in options}
    if config.start_from is not None:
        reason = "the earlier run decides"
        idle |= {"model": reason, "class_conditional": reason}
    if config.command == "train":
        idle |= {"sampling": "`train` draws previews only"}
    if config.command == "sample":
        reason = "the run in the output folder has its own"
        names = ("data", "model", "training", "class_conditional", "start_from")
        idle = {name: reason for name in names}
    elif config.training.class_dropout == 0:
        idle["sampling.guidance"] = "it takes a --training.class-dropout above 0"
    pipelines.check_options(config, idle)

    checkpoint = config.sampling.checkpoint
    if checkpoint not in ("best", "last") and not checkpoint.isdecimal():
        raise ValueError(
            "--sampling.checkpoint must be best, last, or the number of an epoch, got "
            f"{checkpoint}."
        )
    if Path(config.sampling.file).name != config.sampling.file:
        raise ValueError("--sampling.file must be a name without a folder.")
    if not config.sampling.file.endswith(".png"):
        raise ValueError("--sampling.file must end in .png.")


def is_conditional(config: Config) -> bool:
    """Whether the flow is given the class, which an earlier run has decided."""
    if config.start_from is None:
        return config.class_conditional
    _, stored = pipelines.load_image_flow(config.start_from)
    return stored["model"]["num_classes"] > 0


def chosen(config: Config) -> Config:
    """The configuration with the name of a data set: without one, of what is there."""
    if config.data.name is not None:
        return config
    name = "mnist"
    try:
        fk.data.load_mnist(download=False)
    except FileNotFoundError:
        name = "digits"
        print("MNIST is not here: using scikit-learn's digits. For MNIST, give")
        print("--data.name mnist, which downloads it, or set FLOWKIT_DATA.")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, name=name))


def with_sizes(config: Config, split: fk.data.ImageSplit) -> Config:
    """The configuration with a network for these images, checked."""
    model = config.model
    if config.start_from is not None:
        _, stored = pipelines.load_image_flow(config.start_from)
        # Its networks take images of any size.
        earlier = pipelines.ImageFlowConfig.from_json(stored["model"])
        model = dataclasses.replace(earlier, image_size=None)

    num_classes = 0
    if config.class_conditional or model.num_classes > 0:
        num_classes = split.num_classes
        if num_classes == 0:
            raise ValueError(
                f"A class-conditional flow needs labels: {config.data.name} has none."
            )
    size, _, channels = split.held_out.images.shape[1:]
    model = model.with_sizes(
        channels=channels, image_size=size, num_classes=num_classes
    )
    model.check()
    labels_of(config.sampling, model, 1)
    return dataclasses.replace(config, model=model)


def labels_of(
    config: SamplingConfig, model: pipelines.ImageFlowConfig, number: int
) -> Any:
    """The class of each sample; `None` without classes."""
    if model.num_classes == 0 and not config.labels:
        return None
    outside = [label for label in config.labels if label >= model.num_classes]
    if outside:
        raise ValueError(
            f"--sampling.labels: the flow has {model.num_classes} classes from 0, got {outside[0]}."
        )
    return np.resize(config.labels or np.arange(model.num_classes), number)


def train(config: Config) -> None:
    config.training.mesh()  # raises before the images are read
    data = config.data
    names = ("flip", "max_samples", "test_samples", "test_fraction", "skip_damaged")
    split = fk.data.image_split(
        data.name or "",
        data.image_size,
        fit=FITS[data.crop],
        num_threads=data.num_threads,
        **{name: getattr(data, name) for name in names},
        seed=config.seed,
    )
    config = with_sizes(config, split)
    init_key, fit_key = jr.split(jr.key(config.seed))
    flow = config.model.build(key=init_key)
    if config.start_from is not None:
        flow, _ = pipelines.load_image_flow(config.start_from)

    # What the weights depend on; all else may change when a run goes on.
    fixed = {name: value for name, value in vars(data).items() if name != "num_threads"}
    stored = {"data": fixed, "start_from": config.start_from, "seed": config.seed}
    pipelines.fit_image_flow(
        config.training,
        config.model,
        flow,
        split,
        config.output,
        config=stored,
        seed=config.seed,
        key=fit_key,
    )
    print(f"Losses, previews and checkpoints are in {config.output}/.")


def sample(config: Config) -> None:
    """One picture from the checkpoints alone."""
    options = config.sampling
    folder = Path(config.output)
    flow, run = pipelines.load_image_flow(
        folder, checkpoint=options.checkpoint, ema=options.ema
    )
    if options.guidance != 1 and run["training"]["class_dropout"] == 0:
        raise ValueError("--sampling.guidance: the flow has always seen its class.")
    model = pipelines.ImageFlowConfig.from_json(run["model"])
    images = pipelines.sample_images(
        flow,
        model,
        options.num_samples,
        labels=labels_of(options, model, options.num_samples),
        guidance=options.guidance,
        solver=pipelines.SOLVERS[options.solver],
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        key=jr.key(config.seed),
    )
    path = folder / options.file
    fk.plotting.image_grid(images, columns=options.columns, path=path)
    print(f"{options.num_samples} samples are in {path}.")


def main(config: Config) -> None:
    if config.command != "sample":
        config = chosen(config)
    check(config)
    if config.command != "sample":
        train(config)
    if config.command != "train":
        sample(config)


if __name__ == "__main__":
    with pipelines.exit_on_misuse(interrupted="The same command resumes the run."):
        main(pipelines.parse(Config))
