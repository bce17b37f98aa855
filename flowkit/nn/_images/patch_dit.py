"""A transformer on the patches of an image."""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._types import Cond, FloatArray, PRNGKey, Times
from flowkit.nn._images.condition import learned_time, TimeAndCondition
from flowkit.nn._images.parts import check_image, Vector
from flowkit.nn._images.patches import from_patches, to_patches
from flowkit.nn._layers.adaln_block import adaln_blocks, AdaLNBlock
from flowkit.nn._layers.layer_norm import normalize
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.modulation import modulate, Modulation
from flowkit.nn._layers.time_embeddings import AbstractTimeEmbedding
from flowkit.nn._layers.transformer import split_or_none


class PatchDiT(eqx.Module):
    """A velocity network of images `(h, w, c)`: patches that attend to each other.

    Every patch of `patch_size x patch_size` pixels is one row, embedded by a linear map,
    with a fixed position `[sin, cos]` of its row and column. Blocks are those of
    `fk.nn.DiT`: scales, shifts and gates come from time and condition, and start at zero.
    The initial velocity is 0. Time and memory grow with the square of the number of
    patches. Positions are counted from the top left corner, so larger images than in
    training have positions that the network has not seen.

    **Arguments:**

    - `in_size`: the channels of the image.
    - `out_size`: the channels of the result; `in_size` by default.
    - `patch_size`: the side of a patch, which divides the sides of the image.
    - `width_size`, `depth`: the width and number of the blocks.
    - `cond_embedding`, `cond_image_size`: as in `fk.nn.UNet`.
    - `time_embedding`: how the time enters; by default two layers of `width_size` on
      `SinusoidalTime(64)`.
    - `stochastic_depth`: as in `Residual`; it rises linearly from 0 at the first block.
    - `key`: the key of the initial weights.
    - options of the blocks: `num_heads` (4), `num_kv_heads` as in `Attention`;
      `mlp_ratio` (2), `feed_forward` as in `AttentionBlock`; `dropout` as in `Residual`.

    **Reference:** Peebles, Xie, Scalable Diffusion Models with Transformers, 2023
    (arXiv 2212.09748).
    """

    conditioning: TimeAndCondition
    modulation: Modulation
    embedding: Linear
    blocks: tuple[AdaLNBlock, ...]
    out: Linear
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)
    patch_size: int = eqx.field(static=True, converter=operator.index)
    width_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int | None = None,
        *,
        patch_size: int = 2,
        width_size: int = 128,
        depth: int = 6,
        cond_embedding: Callable[..., Vector] | None = None,
        cond_image_size: int = 0,
        time_embedding: AbstractTimeEmbedding | None = None,
        stochastic_depth: float = 0.0,
        key: PRNGKey,
        **block_options: Any,
    ):
        _check_sizes(patch_size, width_size, depth)
        time_key, cond_key, modulation_key, embedding_key, out_key, *keys = jr.split(
            key, depth + 5
        )
        if time_embedding is None:
            time_embedding = learned_time(width_size, 64, time_key)
        self.in_size = in_size
        self.out_size = in_size if out_size is None else out_size
        check_sizes(in_size=in_size, out_size=self.out_size)
        self.patch_size = patch_size
        self.width_size = width_size

        self.conditioning = TimeAndCondition(
            time_embedding, cond_embedding, cond_image_size, key=cond_key
        )
        # Six vectors for each block, and two for the output.
        sizes = (time_embedding.out_size, width_size, 6 * depth + 2)
        self.modulation = Modulation(*sizes, zero_init=True, key=modulation_key)
        pixels = patch_size**2
        patch_channels = pixels * (in_size + cond_image_size)
        self.embedding = Linear(patch_channels, width_size, key=embedding_key)
        self.blocks = adaln_blocks(
            width_size, keys, stochastic_depth=stochastic_depth, **block_options
        )
        self.out = Linear(
            width_size, pixels * self.out_size, zero_init=True, key=out_key
        )

    def __call__(
        self,
        t: Times,
        x: FloatArray,
        cond: Cond = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "h w out_size"]:
        """The velocity of every pixel.

        The key is for dropout and stochastic depth; without one nothing is dropped.
        """
        x = jnp.asarray(x)
        check_image(x, self.in_size, self.patch_size, "the patches")
        image, vector = self.conditioning(t, x, cond)
        modulation = self.modulation(vector[None])
        of_blocks = jnp.split(modulation[:-2], len(self.blocks))
        scale, shift = modulation[-2:]

        height, width = (side // self.patch_size for side in x.shape[:2])
        patches = to_patches(image, self.patch_size)
        h = self.embedding(patches.reshape(height * width, -1))
        h = h + jnp.asarray(positions(height, width, self.width_size), h.dtype)
        keys = split_or_none(key, len(self.blocks))
        for block, vectors, block_key in zip(self.blocks, of_blocks, keys, strict=True):
            h = block(h, vectors, key=block_key)

        rows = self.out(modulate(normalize(h), scale, shift))
        return from_patches(rows.reshape(height, width, -1), self.patch_size)


def positions(height: int, width: int, size: int) -> Float[np.ndarray, "n size"]:
    """`[sin, cos]` of row and column at log-spaced frequencies, a quarter of `size` each."""
    frequencies = 1e4 ** (-np.arange(size // 4) / (size // 4))
    rows, columns = np.divmod(np.arange(height * width), width)
    of_rows = rows[:, None] * frequencies
    of_columns = columns[:, None] * frequencies
    parts = [np.sin(of_rows), np.cos(of_rows), np.sin(of_columns), np.cos(of_columns)]
    return np.concatenate(parts, axis=1)


def _check_sizes(patch_size: int, width_size: int, depth: int) -> None:
    check_sizes(patch_size=patch_size, width_size=width_size, depth=depth)
    if width_size % 4:
        raise ValueError(
            "`width_size` must be divisible by 4, for sines and cosines of rows and "
            f"columns, got {width_size}."
        )
