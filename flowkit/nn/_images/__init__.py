"""Networks of images, channels last."""

from flowkit.nn._images.condition import ClassEmbedding as ClassEmbedding
from flowkit.nn._images.conv import Conv as Conv
from flowkit.nn._images.group_norm import GroupNorm as GroupNorm
from flowkit.nn._images.layouts import (
    SkipEveryBlock as SkipEveryBlock,
    SkipEveryLevel as SkipEveryLevel,
)
from flowkit.nn._images.parts import (
    bilinear_2x as bilinear_2x,
    nearest_2x as nearest_2x,
)
from flowkit.nn._images.patch_dit import PatchDiT as PatchDiT
from flowkit.nn._images.unet import UNet as UNet
