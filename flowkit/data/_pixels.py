r"""Images as functions on the unit square, known at some of their pixels.

The pixel in row $r$ and column $c$ of an image of $h \times w$ pixels is at

$$ \left( \frac{c}{w - 1}, \frac{r}{h - 1} \right) \in [0, 1]^2, $$

so the first coordinate points to the right, the second one down, and the corners of the
square are the centers of the corner pixels at every resolution. Pixels are numbered row by
row, $r w + c$.
"""

import functools as ft
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from flowkit._checks import as_size, check_units
from flowkit._types import AnyArray, is_traced, PRNGKey


_BLOCK = 1024


class SparsePixels(NamedTuple):
    """Some pixels of each image to start from, and others to predict.

    - `input_coords`, `output_coords`: `(b, n_in, 2)` and `(b, n_out, 2)`, in `[0, 1]`.
    - `input_values`, `output_values`: `(b, n_in, c)` and `(b, n_out, c)`.
    - `input_indices`, `output_indices`: `(b, n_in)` and `(b, n_out)`, the numbers of the
        pixels, row by row.
    """

    input_coords: Float[AnyArray, "b n 2"]
    input_values: Float[AnyArray, "b n c"]
    output_coords: Float[AnyArray, "b m 2"]
    output_values: Float[AnyArray, "b m c"]
    input_indices: Int[AnyArray, "b n"]
    output_indices: Int[AnyArray, "b m"]


def sparse_pixels(
    images: Float[AnyArray, "b h w c"],
    *,
    input_ratio: float = 0.2,
    output_ratio: float = 0.2,
    key: PRNGKey,
) -> SparsePixels:
    """Draws two disjoint sets of pixels from each image, the inputs and the outputs.

    The pixels of each image are permuted at random. The first `floor(input_ratio * h * w)`
    of them are the inputs, the next `floor(output_ratio * h * w)` the outputs. Image `i`
    has the same pixels for the same key, however many images follow it.

    Call it once for pixels that stay the same throughout training. Call it within the loss
    to draw other pixels in every step; it can be compiled. Gray images need an axis of
    channels: `images[..., None]`.

    **Arguments:**

    - `images`: `(b, h, w, c)`, in [0, 1] or [-1, 1].
    - `input_ratio`, `output_ratio`: fractions of all pixels in [0, 1], with a sum of at
        most 1. A ratio of 0 gives arrays whose axis of pixels is empty: no inputs for a
        model without conditions, no outputs where only inputs are wanted. With
        `input_ratio=1` all pixels are inputs, and `output_ratio` has to be 0.

    **Returns:** `SparsePixels` in the type of the images.

    **Raises:** `ValueError` if a ratio is outside [0, 1], if a positive one gives no pixel,
    if both together exceed the pixels of an image, and for known images of 0 to 255.
    """
    check_units("images", images)
    b, h, w, _ = images.shape
    num_inputs = _count("input_ratio", input_ratio, h * w)
    num_outputs = _count("output_ratio", output_ratio, h * w)
    num = num_inputs + num_outputs
    if num > h * w:
        raise ValueError(
            f"`input_ratio` and `output_ratio` must sum to at most 1, got {input_ratio} "
            f"and {output_ratio}; inputs and outputs are different pixels."
        )

    values = jnp.asarray(images).reshape(b, h * w, -1)
    indices = _first_pixels(key, b, h * w, num)
    coords = pixel_coords(h, w).astype(values.dtype)[indices]
    values = jnp.take_along_axis(values, indices[..., None], axis=1)
    return SparsePixels(
        coords[:, :num_inputs],
        values[:, :num_inputs],
        coords[:, num_inputs:],
        values[:, num_inputs:],
        indices[:, :num_inputs],
        indices[:, num_inputs:],
    )


def pixel_coords(h: int, w: int) -> Float[Array, "{h}*{w} 2"]:
    """The coordinates of all pixels in the unit square, row by row.

    They are `(column / (w - 1), row / (h - 1))`. The square is the same at every
    resolution: a model that was trained at 32 x 32 pixels can be asked for 64 x 64. An
    axis of a single pixel has the coordinate 0.

    **Returns:** `(h * w, 2)`; with the values there, `values.reshape(h, w, c)` is the image.
    """
    h = as_size("h", h)
    w = as_size("w", w)
    # NumPy, so that this is a constant of a program and nothing is compiled for it.
    x, y = np.meshgrid(np.linspace(0, 1, w), np.linspace(0, 1, h))
    coords = np.stack([x, y], axis=-1).reshape(h * w, 2)
    return jnp.asarray(coords.astype(jax.dtypes.canonicalize_dtype(float)))


def pixel_mask(
    indices: Integer[AnyArray, "*b n"], h: int, w: int
) -> Bool[Array, "*b {h} {w}"]:
    """Which pixels of an image have one of these numbers.

    `jnp.where(mask[..., None], image, 0)` shows what a model was given.

    **Arguments:**

    - `indices`: `(n,)` or `(b, n)`, such as `SparsePixels.input_indices`.
    - `h`, `w`: the size of the image.

    **Returns:** `(h, w)` or `(b, h, w)`, true at those pixels.
    """
    h = as_size("h", h)
    w = as_size("w", w)
    if not is_traced(indices) and indices.size:
        low = np.min(indices)
        high = np.max(indices)
        if low < 0 or high >= h * w:
            raise ValueError(
                f"`indices` must be in 0 ... {h * w - 1} for an image of {h} x {w} pixels, "
                f"got {low} to {high}."
            )

    lead = indices.shape[:-1]
    mask = jnp.zeros((math.prod(lead), h * w), bool)
    rows = np.arange(len(mask))[:, None]
    mask = mask.at[rows, jnp.asarray(indices).reshape(len(mask), -1)].set(True)
    return mask.reshape(*lead, h, w)


def _count(name: str, ratio: float, num: int) -> int:
    """The number of pixels of a ratio, rounded down."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {ratio}.")
    # 0.29 * 100 is a little less than 29.
    count = math.floor(ratio * num + 1e-9 * num)
    if ratio > 0 and count == 0:
        raise ValueError(
            f"`{name}` is {ratio}, which is less than one of {num} pixels; raise it to "
            f"{1 / num:.2g} or more, or give 0 for none."
        )
    return count


@ft.partial(jax.jit, static_argnums=(1, 2, 3))
def _first_pixels(key: PRNGKey, b: int, size: int, num: int) -> Int[Array, "b num"]:
    """The first places of a permutation of all pixels, one for each image."""

    def draw(index: Array) -> Array:
        # The order of random numbers is a random permutation, and its first places need no
        # full sort. Two of 1,024 numbers are equal for one image in 8,000.
        ranks = jr.bits(jr.fold_in(key, index), (size,), jnp.uint32)
        return jax.lax.top_k(ranks, num)[1]

    images = jnp.arange(b)
    if b <= _BLOCK:
        return jax.vmap(draw)(images)
    # Numbers for all pixels of a large data set at once would take gigabytes.
    return jax.lax.map(draw, images, batch_size=_BLOCK)
