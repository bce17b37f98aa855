"""Images cut into square patches, whose pixels become channels, and put together again."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def to_patches(
    image: Float[Array, "h w c"], size: int
) -> Float[Array, "h_patches w_patches patch"]:
    """`(h, w, c)` as `(h / size, w / size, size^2 c)`, row by row within a patch."""
    height, width, channels = image.shape
    image = image.reshape(height // size, size, width // size, size, channels)
    patches = jnp.swapaxes(image, 1, 2)
    return patches.reshape(height // size, width // size, size * size * channels)


def from_patches(
    patches: Float[Array, "h_patches w_patches patch"], size: int
) -> Float[Array, "h w c"]:
    """The image from which `to_patches` makes these patches."""
    height, width, _ = patches.shape
    image = patches.reshape(height, width, size, size, -1)
    image = jnp.swapaxes(image, 1, 2)
    return image.reshape(height * size, width * size, -1)
