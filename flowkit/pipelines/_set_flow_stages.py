"""The stages in which a `SetFlow` is trained.

First encoder and flow, alone or jointly with the prior, which then learns from the latents
without moving the encoder. Then the prior alone, on the latents of an encoder that no
longer moves: they are computed once, so that a step costs a fraction of the others.
"""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import flowkit as fk
from flowkit import data, latent, training
from flowkit.pipelines._runs import saved_step
from flowkit.pipelines._set_flow_config import SetFlowConfig
from flowkit.pipelines._set_flow_training import SetFlowTraining


_COUPLINGS = {
    "independent": fk.independent,
    "points": fk.point_assignment,
    "aligned": fk.AlignedAssignment(),
}
_TIMES = {"uniform": fk.uniform, "late": fk.LogitNormal(1.0, 1.0)}
_PRIOR_BATCH = 4  # batches of clouds in a batch of their latents


def set_flow_stages(
    options: SetFlowTraining,
    model: SetFlowConfig,
    train: data.PointSets,
    *,
    num_points: int,
    folder: str | os.PathLike[str] | None = None,
    up: int = 2,
    seed: int = 0,
) -> list[training.Stage]:
    """The stages that train a `SetFlow`, for `fk.training.fit_stages`.

    **Arguments:**

    - `options`: how the model is trained.
    - `model`: what the model is made of.
    - `train`: the training clouds, with labels for a class-conditional prior.
    - `num_points`: the maximum number of points of a cloud in a step.
    - `folder`: the folder of the run. With `stages="prior"` it may hold the stage of the
        encoder, which then comes first in the list, with the length that it was trained
        for. Without a folder, the model must already be trained.
    - `up`: the axis about which clouds in space are turned by `augment`.
    - `seed`: the seed of the batches.
    """
    options.check(model)
    source = _Clouds(train, num_points, up, seed)
    if options.stages in ("joint", "flow", "two-stage"):
        first = "joint" if options.stages == "joint" else "flow"
        stages = [_flow_stage(first, options.num_steps, options, model, source)]
    else:
        stages = _trained_stages(options, model, source, folder)
    if options.stages != "flow" and options.prior_steps and model.has_trainable_prior:
        stages.append(_prior_stage(options, model, source))

    return stages


class _Clouds(NamedTuple):
    """Training clouds, and how they become batches."""

    sets: data.PointSets
    num_points: int
    up: int
    seed: int

    def cut(self, sets: data.PointSets, rng: np.random.Generator) -> data.PointSets:
        if sets.points.shape[1] <= self.num_points:
            return sets
        return data.subsample(sets, rng, num_points=self.num_points)

    def batches(self, options: SetFlowTraining, *, labels: bool) -> Any:
        augment = self._augment()

        def transform(batch, rng):
            batch = self.cut(batch, rng)
            return augment(batch, rng) if options.augment else batch

        # Labels that nothing reads would still be copied to the device at every step.
        sets = self.sets if labels else self.sets._replace(labels=None)
        return data.batches(
            sets, options.batch_size, seed=self.seed, transform=transform
        )

    def _augment(self) -> data.Augment:
        dim = self.sets.points.shape[-1]
        if dim == 2:
            return data.Augment()
        if dim == 3:
            x, y, z = (float(axis == self.up) for axis in range(3))
            return data.Augment(rotate=data.AboutAxis((x, y, z)))
        return data.Augment(rotate=data.any_rotation)


def _trained_stages(
    options: SetFlowTraining,
    model: SetFlowConfig,
    source: _Clouds,
    folder: str | os.PathLike[str] | None,
) -> list[training.Stage]:
    """The encoder's stage in the folder, at its saved length: nothing is left to do."""
    # Without a folder the model comes trained, and has no stage to restore.
    if folder is None:
        return []
    for name in ("joint", "flow"):
        num_steps = saved_step(folder, name)
        if num_steps:
            return [_flow_stage(name, num_steps, options, model, source)]

    raise ValueError(
        f"`stages` is 'prior', but {folder} holds no trained encoder: train one there with "
        "`stages='flow'`, or start from the model of another run."
    )


def _flow_stage(
    name: str,
    num_steps: int,
    options: SetFlowTraining,
    model: SetFlowConfig,
    source: _Clouds,
) -> training.Stage:
    """Encoder and flow; in the joint stage the prior as well."""
    joint = name == "joint"
    # A Python number: with 0 the loss leaves the prior out of the program.
    prior_weight = float(joint and model.has_trainable_prior)

    def loss(model_, batch, key):
        drop_key, key = jr.split(key)
        cond = None
        if joint:
            cond = _classes(batch.labels, options, model, key=drop_key)
        return latent.set_flow_loss(
            model_,
            batch.points,
            mask=batch.mask,
            encoder_mask=options.hide,
            cond=cond,
            prior_weight=prior_weight,
            vae_kl_weight=options.vae_kl_weight,
            marginal_kl_weight=options.marginal_kl_weight,
            coupling=_COUPLINGS[options.coupling],
            times=_TIMES[options.times],
            block=_block(options),
            key=key,
        )

    # In a short run the warm-up is a tenth of it.
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, min(200, num_steps // 10), num_steps
    )
    return training.Stage(
        name,
        loss,
        num_steps,
        optax.chain(optax.clip_by_global_norm(1.0), options.make_optimizer(schedule)),
        # The prior keeps its initial weights for a stage of its own.
        None if joint else lambda model: (model.encoder, model.flow),
        batches=source.batches(options, labels=model.num_classes > 0),
    )


def _block(options: SetFlowTraining) -> int | fk.AutomaticBlock:
    # On the command line None stands for the default of the library.
    return fk.AutomaticBlock() if options.block is None else options.block


def _prior_stage(
    options: SetFlowTraining, model: SetFlowConfig, source: _Clouds
) -> training.Stage:
    """The prior alone, on latents of clouds as the encoder saw them in training."""

    def latents_of(trained: latent.SetFlow) -> tuple[Any, Any]:
        # The latents are computed once, so every cloud is cut once, by a generator that
        # a restarted run makes again.
        sets = source.cut(source.sets, np.random.default_rng(source.seed))
        latents = latent.encode_sets(trained, sets.points, mask=sets.mask)
        labels = jnp.asarray(sets.labels) if model.num_classes else None
        return latents, labels

    def loss(trained, batch, key):
        latents, labels = batch
        drop_key, key = jr.split(key)
        cond = _classes(labels, options, model, key=drop_key)
        value = latent.prior_loss(trained.prior, latents, cond, key=key)
        return value, {"prior_loss": value}

    schedule = optax.cosine_decay_schedule(options.learning_rate, options.prior_steps)
    batch_size = min(_PRIOR_BATCH * options.batch_size, len(source.sets.points))
    return training.Stage(
        "prior",
        loss,
        options.prior_steps,
        options.make_optimizer(schedule),
        lambda model: model.prior,
        batches=latents_of,
        batch_size=batch_size,
        steps_per_call=50,
    )


def _classes(
    labels: Any, options: SetFlowTraining, model: SetFlowConfig, *, key: jax.Array
) -> jax.Array | None:
    """The condition of the prior in training, now and then left out."""
    if model.num_classes == 0:
        return None
    cond = jax.nn.one_hot(labels, model.num_classes)[:, None]
    return fk.drop_condition(cond, options.class_dropout, key=key)
