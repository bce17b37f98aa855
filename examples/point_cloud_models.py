"""The models of `point_clouds.py`: every part by its name."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.random as jr

import flowkit as fk


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The networks. Stored with every checkpoint, so that the model can be restored without this file's defaults."""

    in_size: int = 2
    """Dimension of the points; taken from the data."""
    num_classes: int = 0
    """Classes that the prior is conditioned on; taken from the data with `--class-conditional`."""
    encoder: Literal[
        "point-net",
        "set-transformer",
        "dgcnn",
        "slot-attention",
        "cross-attention",
        "gmm",
    ] = "point-net"
    """What maps a cloud to latents: one for the cloud (point-net), one for each point (set-transformer, dgcnn), or
    `num_latents` (the others)."""
    pooling: Literal[
        "none", "max", "mean", "max-mean", "attention", "pma", "set2set"
    ] = "none"
    """Reduces the latents of any encoder but point-net to a single one."""
    latent_size: int = 16
    """Size of a latent."""
    num_latents: int = 8
    """Number of latents of encoders that give several; of Gaussians, for gmm."""
    encoder_sizes: Sequence[int] = (64, 128, 256)
    """Widths of point-net."""
    backbone: Literal["adaln-mlp", "dit", "cross-attention", "concat-squash"] = (
        "adaln-mlp"
    )
    """The conditional network that moves the points."""
    conditioner: Literal["auto", "broadcast", "per-point", "pool", "select"] = "auto"
    """How latents reach the points; auto is broadcast for one latent, per-point for one each, pool for several. The
    backbone cross-attention has none: its points attend to the latents."""
    width_size: int = 64
    """Width of the backbone."""
    depth: int = 6
    """Its number of layers."""
    features: bool = False
    """Whether the networks see sines and cosines of the coordinates too: for detail that is fine within a cloud."""
    path: Literal["linear", "cosine"] = "linear"
    """From noise to data."""
    prediction: Literal["velocity", "noise", "target"] = "velocity"
    """What the backbone predicts."""
    num_components: int = 1
    """With more than one it predicts a mixture of so many Gaussians instead of a value."""
    prior: Literal["flow", "mixture", "normal"] = "flow"
    """The distribution of the latents. A flow over several latents is blind to their order."""
    prior_width: int = 128
    """Width of the flow over latents."""
    prior_depth: int = 4
    """Its number of layers."""
    variational: bool = False
    """Whether the encoder gives means and variances."""
    normalize: bool = False
    """Whether every latent is scaled to length one."""


def build(config: ModelConfig, *, key: jax.Array = jr.key(0)) -> fk.latent.SetFlow:
    """The model: every part by its name."""
    ekey, fkey, pkey = jr.split(key, 3)
    path = {"linear": fk.LinearPath, "cosine": fk.CosinePath}[config.path]()
    prediction = {"velocity": fk.Velocity, "noise": fk.Noise, "target": fk.Target}[
        config.prediction
    ]()
    flow = fk.Flow(
        build_backbone(config, key=fkey), path, prediction, head=build_head(config)
    )
    return fk.latent.SetFlow(
        build_encoder(config, key=ekey),
        flow,
        build_prior(config, key=pkey),
        variational=config.variational,
        normalize=config.normalize,
    )


def build_head(config: ModelConfig) -> fk.AbstractHead:
    return (
        fk.PointHead()
        if config.num_components == 1
        else fk.MixtureHead(config.num_components)
    )


def features(config: ModelConfig) -> fk.nn.AbstractFeatures | None:
    return fk.nn.SinusoidalFeatures(fk.nn.banded()) if config.features else None


def build_encoder(config: ModelConfig, *, key: jax.Array) -> fk.nn.AbstractEncoder:
    ekey, pkey = jr.split(key)
    d, c, k = (
        config.in_size,
        config.latent_size * (2 if config.variational else 1),
        config.num_latents,
    )
    inputs = {"features": features(config), "key": ekey}
    encoders = {
        "point-net": lambda: fk.nn.PointNet(
            d, c, hidden_sizes=config.encoder_sizes, **inputs
        ),
        "set-transformer": lambda: fk.nn.SetTransformer(d, c, **inputs),
        "dgcnn": lambda: fk.nn.DGCNN(d, c, **inputs),
        "slot-attention": lambda: fk.nn.SlotAttention(d, c, num_slots=k, **inputs),
        "cross-attention": lambda: fk.nn.CrossAttentionEncoder(
            d, c, num_latents=k, **inputs
        ),
        "gmm": lambda: fk.nn.Chained(
            fk.nn.GMMFeaturizer(d, num_components=k),
            fk.nn.SetTransformer(d, c, **inputs),
        ),
    }
    encoder = encoders[config.encoder]()
    if config.pooling == "none":
        return encoder
    poolings = {
        "max": lambda: fk.nn.max_pool,
        "mean": lambda: fk.nn.mean_pool,
        "max-mean": lambda: fk.nn.max_mean_pool,
        "attention": lambda: fk.nn.AttentionPool(c, key=pkey),
        "pma": lambda: fk.nn.PMA(c, key=pkey),
        "set2set": lambda: fk.nn.Set2Set(c, key=pkey),
    }
    return fk.nn.Pooled(encoder, poolings[config.pooling](), out_size=c, key=pkey)


def build_backbone(config: ModelConfig, *, key: jax.Array) -> fk.nn.AbstractCRN:
    bkey, ckey = jr.split(key)
    d, c = config.in_size, config.latent_size
    options: dict[str, Any] = {
        "width_size": config.width_size,
        "depth": config.depth,
        "out_size": d
        if config.num_components == 1
        else fk.MixtureHead(config.num_components).out_size(d),
        "features": features(config),
        "key": bkey,
    }
    if (
        config.backbone == "cross-attention"
    ):  # whose points attend to the latents themselves
        return fk.nn.CrossAttentionCRN(
            d, c, num_tokens=32 if is_global(config) else 1, **options
        )
    conditioners = {
        "broadcast": fk.nn.Broadcast,
        "per-point": fk.nn.PerPoint,
        "pool": fk.nn.Pool,
        "select": lambda: fk.nn.Select(d, c, key=ckey),
    }
    backbones = {
        "adaln-mlp": fk.nn.AdaLNMLP,
        "dit": fk.nn.DiT,
        "concat-squash": fk.nn.ConcatSquashMLP,
    }
    name = conditioner_of(config)
    if name in ("per-point", "select") and config.backbone != "concat-squash":
        options["cond_size"] = 64  # of every point, where others have one for the cloud
    return backbones[config.backbone](d, c, conditioner=conditioners[name](), **options)


def conditioner_of(config: ModelConfig) -> str:
    """The one asked for, or what suits the number of latents."""
    if config.conditioner != "auto":
        return config.conditioner
    return (
        "broadcast"
        if is_global(config)
        else "per-point"
        if is_local(config)
        else "pool"
    )


def is_global(config: ModelConfig) -> bool:
    """Whether a cloud has one latent."""
    return config.encoder == "point-net" or config.pooling != "none"


def is_local(config: ModelConfig) -> bool:
    """Whether each point has its own."""
    return config.encoder in ("set-transformer", "dgcnn") and config.pooling == "none"


def has_trainable_prior(config: ModelConfig) -> bool:
    return config.prior != "normal" and not is_local(config)


def build_prior(config: ModelConfig, *, key: jax.Array) -> fk.AbstractDistribution:
    c = config.latent_size
    if not has_trainable_prior(config):
        return fk.Normal()
    if config.prior == "mixture":
        return fk.latent.mixture_prior(16, c, key=key)
    network = (fk.nn.AdaLNMLP if is_global(config) else fk.nn.DiT)(
        c,
        config.num_classes,
        width_size=config.prior_width,
        depth=config.prior_depth,
        time_embedding=fk.nn.SinusoidalTime(128),
        key=key,
    )
    return fk.latent.FlowPrior(fk.Flow(network), c)


def class_condition(labels: Any, model: ModelConfig) -> jax.Array | None:
    """Labels as the condition of the prior, `(b, 1, num_classes)`; `None` if it has none."""
    return (
        None
        if model.num_classes == 0
        else jax.nn.one_hot(labels, model.num_classes)[:, None]
    )
