"""The parts of a flow of images by name: networks, paths, predictions."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

import flowkit as fk
from flowkit import nn


def build_image_flow(config: Any, *, key: jax.Array) -> fk.Flow:
    """The flow that an `ImageFlowConfig` describes."""
    paths = {
        "linear": fk.LinearPath(),
        "cosine": fk.CosinePath(),
        "polynomial": fk.PolynomialPath(),
        "variance-preserving": fk.VariancePreservingPath(),
    }
    predictions = {
        "velocity": fk.Velocity(),
        "noise": fk.Noise(),
        "target": fk.Target(),
    }
    networks = {"unet": _unet, "level-unet": _level_unet, "dit": _dit}
    network = networks[config.backbone](config, key)
    return fk.Flow(network, paths[config.path], predictions[config.prediction])


def _unet(config: Any, key: jax.Array) -> nn.UNet:
    width = config.width_size or 16
    time_key, class_key, network_key = jr.split(key, 3)
    time = nn.LearnedTime(
        4 * width,
        embedding=nn.SinusoidalTime(config.time_size or width),
        key=time_key,
    )
    return nn.UNet(
        config.channels,
        layout=nn.SkipEveryBlock(config.num_blocks),
        time_embedding=time,
        **_unet_options(config, width, class_key),
        key=network_key,
    )


def _level_unet(config: Any, key: jax.Array) -> nn.UNet:
    """One skip for each level, bilinear upsampling, and a linear output."""
    width = config.width_size or 16
    time_key, class_key, network_key = jr.split(key, 3)
    size = config.time_size or width
    time = nn.LearnedTime(
        size,
        embedding=nn.SinusoidalTime(size),
        width_size=4 * size,
        key=time_key,
    )
    return nn.UNet(
        config.channels,
        layout=nn.SkipEveryLevel(config.num_blocks, config.num_blocks + 1),
        time_embedding=time,
        vector_activation=_same,
        resize=nn.bilinear_2x,
        zero_init=False,
        **_unet_options(config, width, class_key),
        key=network_key,
    )


def _dit(config: Any, key: jax.Array) -> nn.PatchDiT:
    width = config.width_size or 128
    time_key, class_key, network_key = jr.split(key, 3)
    time = nn.LearnedTime(
        width, embedding=nn.SinusoidalTime(config.time_size or 64), key=time_key
    )
    return nn.PatchDiT(
        config.channels,
        patch_size=config.patch_size or 2,
        width_size=width,
        depth=config.depth,
        num_heads=config.num_heads,
        dropout=config.dropout,
        cond_embedding=_classes(config, width, class_key),
        time_embedding=time,
        key=network_key,
    )


def _unet_options(config: Any, width: int, class_key: jax.Array) -> dict[str, Any]:
    """What both U-Nets have in common."""
    return {
        "width_size": width,
        "multipliers": config.multipliers,
        "patch_size": config.patch_size or 1,
        "attention_levels": config.attention_levels,
        "num_heads": config.num_heads,
        "num_groups": config.num_groups,
        "dropout": config.dropout,
        "dtype": None if config.dtype == "float32" else jnp.bfloat16,
        "rematerialize": config.rematerialize,
        "cond_embedding": _classes(config, 4 * width, class_key),
    }


def _classes(config: Any, size: int, key: jax.Array) -> nn.ClassEmbedding | None:
    if config.num_classes == 0:
        return None
    return nn.ClassEmbedding(config.num_classes, size, key=key)


def _same(vector: jax.Array) -> jax.Array:
    return vector
