"""U-Nets for MNIST at 28 x 28 pixels, and their loss."""

import jax.random as jr

import flowkit as fk
from flowkit import nn


def torchcfm_unet() -> nn.UNet:
    """The network of torchcfm's example on MNIST, with 1,075,361 parameters."""
    return nn.UNet(1, attention_levels=(0,), num_heads=1, key=jr.key(0))


def lean_unet(num_classes: int = 0) -> nn.UNet:
    """A network on patches of 2 x 2 pixels, where a convolution costs a quarter."""
    classes = None
    if num_classes > 0:
        classes = nn.ClassEmbedding(num_classes, 64, key=jr.key(1))
    return nn.UNet(
        1,
        width_size=32,
        multipliers=(1, 2),
        patch_size=2,
        cond_embedding=classes,
        key=jr.key(0),
    )


def flow_loss(flow, x1, key):
    """Flow matching without a condition."""
    return fk.flow_matching_loss(flow, x1, key=key)
