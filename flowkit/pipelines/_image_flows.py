"""Flows of images: their loss, what a run left in its folder, and pictures from it."""

import os
from pathlib import Path
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

import flowkit as fk
from flowkit import data, training
from flowkit._checks import as_size, check_units
from flowkit._types import AnyArray, PRNGKey
from flowkit.pipelines._folders import checkpoint_steps, stored_run
from flowkit.pipelines._image_flow_config import ImageFlowConfig


def image_flow_loss(
    flow: fk.Flow,
    batch: data.LabeledImages,
    *,
    num_classes: int = 0,
    class_dropout: float = 0.1,
    key: PRNGKey,
) -> Float[Array, ""]:
    """The flow-matching loss of a batch, in the error of what the network predicts.

    **Arguments:**

    - `flow`: a flow of images, see `ImageFlowConfig`.
    - `batch`: the images, in [-1, 1], with labels for a conditional flow.
    - `num_classes`: the number of classes; 0 for a flow without a condition.
    - `class_dropout`: the probability that a label is replaced by `num_classes`, which
        stands for none.
    - `key`: the random seed.
    """
    check_units("batch.images", batch.images)
    drop_key, key = jr.split(key)
    labels = None
    if num_classes > 0:
        labels = fk.drop_condition(
            batch.labels, class_dropout, null=num_classes, key=drop_key
        )
    # The error of the velocity would give some times up to a million times the weight.
    targets = (flow.prediction,)
    return fk.flow_matching_loss(flow, batch.images, labels, targets=targets, key=key)


@eqx.filter_jit
def held_out_loss(
    flow: fk.Flow,
    images: Float[AnyArray, "n h w c"],
    labels: Int[AnyArray, " n"] | None = None,
    *,
    batch_size: int = 64,
    key: PRNGKey,
) -> Float[Array, ""]:
    """The loss of `image_flow_loss` on held-out images, without dropout.

    The same key gives the same times and noise, so that two readings differ only by the
    flow. Times are stratified over all images.

    **Arguments:**

    - `flow`: a flow of images.
    - `images`, `labels`: the held-out images, with labels for a conditional flow. Images
      that do not fill a batch are left out.
    - `batch_size`: the number of images in memory at a time.
    - `key`: the random seed.
    """
    # A block must divide the number of images, and a prime number has no divisor.
    block = min(batch_size, len(images))
    whole = len(images) // block * block
    return fk.flow_matching_loss(
        eqx.nn.inference_mode(flow),
        images[:whole],
        None if labels is None else labels[:whole],
        targets=(flow.prediction,),
        times=fk.stratified,
        block=block,
        key=key,
    )


def sample_images(
    flow: fk.Flow,
    config: ImageFlowConfig,
    num_samples: int,
    *,
    labels: Int[AnyArray, " n"] | None = None,
    guidance: float = 1.0,
    solver: dfx.AbstractSolver = dfx.Heun(),
    num_steps: int = 50,
    batch_size: int = 64,
    key: PRNGKey,
) -> Float[np.ndarray, "n h w c"]:
    """Samples in batches of one size, so that a program is compiled once.

    The size of the batches does not change what comes out.

    **Arguments:**

    - `flow`, `config`: a flow of images, and what it was built from.
    - `num_samples`: the number of samples.
    - `labels`: the class of each sample, for a conditional flow.
    - `guidance`: the scale of classifier-free guidance; 1 is the flow itself.
    - `solver`, `num_steps`: as in `fk.sample`.
    - `batch_size`: the number of samples in memory at a time.
    - `key`: the random seed of the noise.

    **Raises:** `ValueError` for labels that do not fit the flow, and for guidance without
    labels.
    """
    num_samples = as_size("num_samples", num_samples)
    _check_labels(config, num_samples, labels, guidance)
    guided: Any = flow
    if guidance != 1:
        guided = fk.guided(flow, guidance, null=config.num_classes)
    # Drawn at once, so that the size of the batches has no effect on the samples.
    x0 = np.asarray(jr.normal(key, (num_samples, *config.shape)))

    size = min(as_size("batch_size", batch_size), num_samples)
    found = []
    for start in range(0, num_samples, size):
        # The last batch is filled with its first rows, which are cut off again.
        rows = np.resize(np.arange(start, min(start + size, num_samples)), size)
        samples = fk.sample(
            guided,
            config.shape,
            num_samples=size,
            x0=x0[rows],
            cond=None if labels is None else np.asarray(labels)[rows],
            solver=solver,
            num_steps=num_steps,
        )
        found.append(np.asarray(samples.values))
    return np.concatenate(found)[:num_samples]


def load_image_flow(
    folder: str | os.PathLike[str],
    *,
    checkpoint: str | int = "best",
    ema: bool = True,
) -> tuple[fk.Flow, dict[str, Any]]:
    """The flow of a run, and the stored options of the run.

    The stored options say what the flow is made of, so it is always the one that was
    trained.

    **Arguments:**

    - `folder`: the output folder of `fk.pipelines.fit_image_flow`.
    - `checkpoint`: `"best"` for the one with the lowest held-out loss, `"last"`, or the
        number of the epoch that it was saved after.
    - `ema`: the averaged weights, or those of the last step.

    **Raises:** `FileNotFoundError` for a folder without checkpoints, and `ValueError` for
    one that holds a run of something else, or not the `checkpoint`.
    """
    epoch = _as_epoch(checkpoint)
    checkpoints, options = stored_run(folder, "images")
    step = None
    if checkpoint == "best":
        step = training.best_step(checkpoints)
    elif epoch is not None:
        step = _step_after(epoch, checkpoints, options["steps_per_epoch"])

    def build(stored: Any) -> fk.Flow:
        return ImageFlowConfig.from_json(stored["model"]).build()

    flow = training.restore_model(checkpoints, build, step=step, ema=ema)
    return flow, options


def _as_epoch(checkpoint: str | int) -> int | None:
    if checkpoint in ("best", "last"):
        return None
    if not str(checkpoint).isdecimal():
        raise ValueError(
            '`checkpoint` must be "best", "last" or the number of an epoch, got '
            f"{checkpoint!r}."
        )
    return int(checkpoint)


def _step_after(epoch: int, checkpoints: Path, per_epoch: int) -> int:
    steps = checkpoint_steps(checkpoints)
    epochs = [step // per_epoch for step in steps if step % per_epoch == 0]
    if epoch not in epochs:
        raise ValueError(
            f"`checkpoint` is the epoch {epoch}, but only those after the epochs {epochs} "
            "were kept; `keep` of the training says how many."
        )
    return epoch * per_epoch


def _check_labels(
    config: ImageFlowConfig, num_samples: int, labels: Any, guidance: float
) -> None:
    if config.num_classes == 0 and (labels is not None or guidance != 1):
        raise ValueError(
            "`labels` and `guidance` are for a flow with classes; this one has none."
        )
    if config.num_classes == 0:
        return

    if labels is None or np.shape(labels) != (num_samples,):
        raise ValueError(
            f"`labels` must be one class for each of the {num_samples} samples."
        )
    outside = [int(one) for one in labels if not 0 <= one < config.num_classes]
    if outside:
        raise ValueError(
            f"`labels` must lie in 0 ... {config.num_classes - 1}, got {outside[0]}."
        )
