"""How a flow of images is trained: options as plain values, and a run in a folder.

An epoch has `num_train // batch_size` steps. After each epoch the held-out loss of the
averaged weights is measured, previews are drawn, and a checkpoint is saved. The one with
the lowest held-out loss is the best.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

import flowkit as fk
from flowkit import data, plotting, training
from flowkit._types import PRNGKey
from flowkit.pipelines._image_flow_config import ImageFlowConfig
from flowkit.pipelines._image_flows import (
    held_out_loss,
    image_flow_loss,
    sample_images,
)
from flowkit.pipelines._limits import (
    check_options,
    Count,
    Fraction,
    Natural,
    NonNegative,
    Positive,
)


_MIN_STEPS = 1500  # of a run, by default
_FREE = ("epochs", "keep", "previews", "devices")


@dataclasses.dataclass(frozen=True)
class ImageFlowTraining:
    """The options of `fk.pipelines.fit_image_flow`."""

    epochs: Count | None = None
    """Total number of epochs, including those before an interruption; by default 20, or as many as
    make 1500 steps. The cosine schedule ends with them: a run that goes on with more epochs
    goes on at a higher learning rate."""
    batch_size: Count = 64
    """Images per step."""
    learning_rate: Positive = 1e-3
    """Initial learning rate of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Whether the learning rate falls to 0 at the last of the epochs, or stays."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    ema_decay: Fraction = 0.999
    """Decay of the averaged weights, which are judged."""
    class_dropout: Fraction = 0.1
    """Probability in training that the class is hidden, for guidance."""
    keep: Count = 2
    """Number of last checkpoints to keep, one per epoch, in addition to the best one."""
    previews: Natural = 16
    """Samples drawn after each epoch, in 20 steps of Heun's method; 0 for none."""
    devices: Count | None = None
    """Devices that share a batch; all of them by default."""

    @property
    def fixed(self) -> dict[str, Any]:
        """The options that stay when a run goes on: those that the weights depend on.

        The weights depend on `epochs` too, by the cosine schedule.
        """
        options = dataclasses.asdict(self)
        return {name: value for name, value in options.items() if name not in _FREE}

    def num_epochs(self, steps_per_epoch: int) -> int:
        """The total number of epochs."""
        if self.epochs is not None:
            return self.epochs
        return max(20, -(-_MIN_STEPS // steps_per_epoch))

    def mesh(self) -> Mesh | None:
        """The devices that share a batch; `None` if there is only one.

        **Raises:** `ValueError` if there are fewer than `devices`, or if they cannot
        share a batch equally.
        """
        there = jax.devices()
        number = self.devices or len(there)
        if number > len(there):
            raise ValueError(f"`devices` is {number}, but there are only {len(there)}.")
        if self.batch_size % number:
            raise ValueError(
                f"`batch_size` must be a multiple of the {number} devices, got "
                f"{self.batch_size}; or use fewer `devices`."
            )
        return training.data_mesh(there[:number]) if number > 1 else None

    def make_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """AdamW with the learning rate by its schedule."""
        rate: Any = self.learning_rate
        if self.schedule == "cosine":
            rate = optax.cosine_decay_schedule(rate, num_steps)
        return optax.adamw(rate, weight_decay=self.weight_decay)


def fit_image_flow(
    options: ImageFlowTraining,
    model: ImageFlowConfig,
    flow: fk.Flow,
    split: data.ImageSplit,
    folder: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    seed: int = 0,
    key: PRNGKey,
) -> training.FitResult:
    """Trains a flow of images in a folder, from which the same call resumes.

    The folder gets `checkpoints`, `epochs/epoch_0001.png` and so on, `metrics.json` with
    the losses of all epochs, and `loss_trajectory.png`.

    **Arguments:**

    - `options`: how the flow is trained.
    - `model`, `flow`: what the flow is made of, and the flow that training starts from.
    - `split`: the images.
    - `folder`: the output folder.
    - `config`: what else the weights depend on, stored with the checkpoints.
    - `seed`: the seed of the batches.
    - `key`: the random seed.

    **Raises:** `ValueError` for options out of their range, for a model that was built for
    other images or classes, and for a batch larger than the data.
    """
    check_options(options, flags=False)
    _check_data(model, split.held_out)
    _check_batch(options.batch_size, split.num_train)
    mesh = options.mesh()
    folder = Path(folder)
    per_epoch = split.num_train // options.batch_size
    fit_key, watch_key = jr.split(key)
    stored = {"model": dataclasses.asdict(model), "training": options.fixed}
    watch = _Watch(options, model, split.held_out, per_epoch, folder, watch_key)

    num_steps = per_epoch * options.num_epochs(per_epoch)
    result = training.fit(
        _Loss(model.num_classes, options.class_dropout),
        flow,
        split.batches(options.batch_size, seed=seed),
        optimizer=options.make_optimizer(num_steps),
        num_steps=num_steps,
        ema_decay=training.WarmUpDecay(options.ema_decay),
        mesh=mesh,
        checkpoints=training.Checkpoints(
            folder / "checkpoints",
            every=per_epoch,
            keep=options.keep,
            best="held_out_loss",
            config={**config, **stored, "steps_per_epoch": per_epoch},
        ),
        # As often as checkpoints, and just before each: `best` compares what they read.
        callbacks=[training.Every(per_epoch, watch)],
        key=fit_key,
    )
    _write(result, per_epoch, folder)
    return result


def _check_data(model: ImageFlowConfig, images: data.LabeledImages) -> None:
    shape = images.images.shape[1:]
    if shape != model.shape:
        raise ValueError(
            f"`model` is built for images of shape {model.shape}, but those of `split` have "
            f"shape {shape}."
        )
    labels = images.labels
    if model.num_classes == 0:
        return
    if labels is None:
        raise ValueError(
            f"`split` has no labels, but `model` has `num_classes={model.num_classes}`; "
            "give images with labels, or build a model with `num_classes=0`."
        )
    if labels.min() < 0 or labels.max() >= model.num_classes:
        raise ValueError(
            f"`split` has labels from {labels.min()} to {labels.max()}, but those of a "
            f"`model` with `num_classes={model.num_classes}` are 0 to "
            f"{model.num_classes - 1}, and {model.num_classes} stands for none."
        )


def _check_batch(batch_size: int, num_train: int) -> None:
    # Every step would be an epoch, with a checkpoint and previews.
    if batch_size > num_train:
        raise ValueError(
            f"`batch_size` is {batch_size}, but there are only {num_train} images to train "
            "on; make it smaller."
        )


@dataclasses.dataclass(frozen=True)
class _Loss:
    """`image_flow_loss` as `fit` calls it."""

    num_classes: int
    class_dropout: float

    def __call__(self, flow: Any, batch: data.LabeledImages, key: PRNGKey) -> Any:
        return image_flow_loss(flow, batch, **vars(self), key=key)


@dataclasses.dataclass(frozen=True)
class _Watch:
    """What happens after every epoch."""

    options: ImageFlowTraining
    model: ImageFlowConfig
    held_out: data.LabeledImages
    per_epoch: int
    folder: Path
    key: PRNGKey

    def __call__(self, state: training.TrainState, step: int) -> dict[str, float]:
        images, labels = self.held_out
        loss = held_out_loss(
            state.ema,
            images,
            labels if self.model.num_classes > 0 else None,
            batch_size=self.options.batch_size,
            key=self.key,
        )
        # Through tqdm, which would otherwise write its bar over the line.
        epoch = step // self.per_epoch
        tqdm.write(f"epoch {epoch}: held-out loss {float(loss):.5g}")
        if self.options.previews > 0:
            self._draw(state.ema, epoch)
        return {"held_out_loss": float(loss)}

    def _draw(self, flow: Any, epoch: int) -> None:
        number = self.options.previews
        labels = None
        if self.model.num_classes > 0:
            labels = np.resize(np.arange(self.model.num_classes), number)
        # One key for all epochs, so that pictures differ only by the flow.
        images = sample_images(
            flow, self.model, number, labels=labels, num_steps=20, key=self.key
        )
        path = self.folder / "epochs" / f"epoch_{epoch:04d}.png"
        path.parent.mkdir(exist_ok=True)
        plotting.image_grid(images, path=path)


def _write(result: training.FitResult, per_epoch: int, folder: Path) -> None:
    """The losses of all epochs, as numbers and as curves."""
    history = result.history
    weights = jax.tree.leaves(eqx.filter(result.model, eqx.is_inexact_array))
    numbers = {
        "steps": int(result.state.step),
        "seconds": result.seconds,
        "parameters": sum(leaf.size for leaf in weights),
        "loss": history["loss"].values.reshape(-1, per_epoch).mean(1).tolist(),
        # Without the reading before the first step.
        "held_out_loss": history["held_out_loss"].values[1:].tolist(),
        "best_epoch": training.best_step(folder / "checkpoints") // per_epoch,
    }
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    plotting.loss_trajectory(history, path=folder / "loss_trajectory.png")
