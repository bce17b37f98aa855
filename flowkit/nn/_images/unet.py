"""The U-Net: a network for images, with skips between equal resolutions."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._types import Cond, FloatArray, PRNGKey, Times
from flowkit.nn._images.condition import learned_time, TimeAndCondition
from flowkit.nn._images.layouts import AbstractLayout, SkipEveryBlock, Stages
from flowkit.nn._images.parts import check_image, Image, Parts, Stage, Vector
from flowkit.nn._images.patches import from_patches, to_patches
from flowkit.nn._layers.time_embeddings import AbstractTimeEmbedding
from flowkit.nn._layers.transformer import split_or_none


class UNet(eqx.Module):
    """A velocity network for images `(h, w, c)`, with convolutions at several scales.

    On the way down each level halves the sides of the image, and on the way up each level
    doubles them. The results of the way down are appended on the way up. The initial
    velocity is 0.

    ```python
    network = fk.nn.UNet(1, attention_levels=(2,), key=key)
    labeled = fk.nn.ClassEmbedding(10, 64, key=label_key)
    network = fk.nn.UNet(1, cond_embedding=labeled, key=key)
    ```

    **Arguments:**

    - `in_size`: the channels of the image.
    - `out_size`: the channels of the result; `in_size` by default.
    - `width_size`: the channels at full resolution.
    - `multipliers`: the channels of each level, from full resolution to the lowest, in
      units of `width_size`. With `n` levels the sides must be divisible by `2^(n - 1)`.
    - `patch_size`: the side of the patches whose pixels become channels in the first step.
      With 2, convolutions take a quarter of the time at equal width. The sides of the image
      must be divisible by it, too.
    - `layout`: the blocks and their skips, `SkipEveryBlock(num_blocks)` or
      `SkipEveryLevel(num_down, num_up)`.
    - `attention_levels`: the levels whose pixels attend to each other; level 0 is full
      resolution. Time and memory grow with the square of the number of pixels there.
    - `cond_embedding`: makes a vector of the condition: `ClassEmbedding`, `Linear`, or
      any module with an `out_size`.
    - `cond_image_size`: the channels of an image that is appended to `x`. If there is
      also a `cond_embedding`, the condition is a pair: its input, and this image.
    - `time_embedding`: how the time enters; by default two layers of `4 width_size` on
      `SinusoidalTime(width_size)`.
    - `vector_activation`: the activation of the sum of the time and condition vectors.
    - `dtype`: the type to compute in, such as `jnp.bfloat16`; that of `x` by default.
      Parameters and the result keep their own.
    - `rematerialize`: whether activations are computed again for the gradient, to save
      memory.
    - `key`: the key of the initial weights.
    - options of the parts: `num_heads` of attention (4); `num_groups` of `GroupNorm` (8),
      which divides all numbers of channels; `dropout`, the probability that an entry is
      dropped within a block (0); `resize`, what doubles the sides, `nearest_2x` (default)
      or `bilinear_2x`; `zero_init`, whether the last layer starts at zero (true).

    **Reference:** Ronneberger, Fischer, Brox, U-Net, 2015 (arXiv 1505.04597); Ho, Jain,
    Abbeel, Denoising Diffusion Probabilistic Models, 2020 (arXiv 2006.11239); Hoogeboom,
    Heek, Salimans, Simple Diffusion, 2023 (arXiv 2301.11093), for patches.
    """

    conditioning: TimeAndCondition
    stages: Stages
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)
    num_levels: int = eqx.field(static=True, converter=operator.index)
    patch_size: int = eqx.field(static=True, converter=operator.index)
    dtype: Any = eqx.field(static=True)
    rematerialize: bool = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int | None = None,
        *,
        width_size: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        patch_size: int = 1,
        layout: AbstractLayout = SkipEveryBlock(),
        attention_levels: Sequence[int] = (),
        cond_embedding: Callable[..., Vector] | None = None,
        cond_image_size: int = 0,
        time_embedding: AbstractTimeEmbedding | None = None,
        vector_activation: Callable[[Array], Array] = jax.nn.silu,
        dtype: Any = None,
        rematerialize: bool = False,
        key: PRNGKey,
        **part_options: Any,
    ):
        check_sizes(width_size=width_size, patch_size=patch_size)
        _check_levels(multipliers, attention_levels)
        time_key, cond_key, parts_key = jr.split(key, 3)
        if time_embedding is None:
            time_embedding = learned_time(4 * width_size, width_size, time_key)
        self.in_size = in_size
        self.out_size = in_size if out_size is None else out_size
        self.num_levels = len(multipliers)
        self.patch_size = patch_size
        self.dtype = None if dtype is None else jnp.dtype(dtype)
        self.rematerialize = rematerialize

        self.conditioning = TimeAndCondition(
            time_embedding,
            cond_embedding,
            cond_image_size,
            activation=vector_activation,
            key=cond_key,
        )
        inputs = patch_size**2 * (in_size + cond_image_size)
        outputs = patch_size**2 * self.out_size
        parts = Parts(
            inputs, outputs, time_embedding.out_size, **part_options, key=parts_key
        )
        sizes = [width_size * multiplier for multiplier in multipliers]
        self.stages = layout.stages(parts, sizes, attention_levels)

    def __call__(
        self,
        t: Times,
        x: FloatArray,
        cond: Cond = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "h w out_size"]:
        """The velocity of every pixel.

        The key is for dropout; without one nothing is dropped.
        """
        x = jnp.asarray(x)
        divisor = self.patch_size * 2 ** (self.num_levels - 1)
        reason = f"{self.num_levels} levels"
        if self.patch_size > 1:
            reason += f" on patches of side {self.patch_size}"
        check_image(x, self.in_size, divisor, reason)
        image, vector = self.conditioning(t, x, cond)
        h = to_patches(image, self.patch_size)
        if self.dtype is not None:
            h = h.astype(self.dtype)
            vector = vector.astype(self.dtype)

        down, middle, up, out = self.stages
        keys = iter(split_or_none(key, len(down) + 1 + len(up)))
        kept = []
        for stage in down:
            h = self._run(stage, h, vector, next(keys))
            kept.append(h)
        h = self._run(middle, h, vector, next(keys))

        for stage in up:
            if stage.skips:
                h = jnp.concatenate([h, kept.pop()], axis=-1)
            h = self._run(stage, h, vector, next(keys))
        return from_patches(out(h, vector).astype(x.dtype), self.patch_size)

    def _run(
        self, stage: Stage, h: Image, vector: Vector, key: PRNGKey | None
    ) -> Image:
        if self.rematerialize:
            return eqx.filter_checkpoint(stage)(h, vector, key)
        return stage(h, vector, key)


def _check_levels(multipliers: Sequence[int], attention_levels: Sequence[int]) -> None:
    if not multipliers or min(multipliers) < 1:
        raise ValueError(
            f"`multipliers` must be positive, one for each level, got {multipliers}."
        )
    outside = [level for level in attention_levels if not 0 <= level < len(multipliers)]
    if outside:
        raise ValueError(
            f"`attention_levels` must lie in 0 ... {len(multipliers) - 1}, got {outside}."
        )
