"""Time and condition of a network of images, as one vector."""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from flowkit._checks import check_sizes
from flowkit._types import AnyArray, Cond, is_traced, PRNGKey, Times
from flowkit.nn._images.parts import Image, Vector
from flowkit.nn._layers.arrays import cast
from flowkit.nn._layers.initial import normal
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.time_embeddings import (
    AbstractTimeEmbedding,
    embedded_time,
    LearnedTime,
    SinusoidalTime,
)


class ClassEmbedding(eqx.Module):
    """A learned vector for each class `0, 1, ..., num_classes - 1`, and one for "none".

    The label `num_classes` stands for "none": give it as `null=` to `fk.drop_condition`
    and `fk.guided`. Vectors are drawn from `N(0, 1 / size)`. Any other label is a
    `ValueError`; in a compiled program, such as a loss, its vector is NaN.

    **Arguments:**

    - `num_classes`: the number of classes.
    - `size`: the size of the vectors.
    - `key`: the key of the initial vectors.
    """

    vectors: Float[AnyArray, "rows size"]
    num_classes: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(self, num_classes: int, size: int, *, key: PRNGKey):
        check_sizes(num_classes=num_classes, size=size)
        self.vectors = normal((num_classes + 1, size), size**-0.5, key=key)
        self.num_classes = num_classes
        self.out_size = size

    def __call__(self, label: Integer[AnyArray, ""] | int) -> Float[Array, " size"]:
        label = jnp.asarray(label)
        if label.shape != () or not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(
                f"`label` must be one integer, got {label.dtype} of shape {label.shape}."
            )
        # Bytes could not be compared with a larger number.
        label = label.astype(int)
        inside = (label >= 0) & (label <= self.num_classes)
        if not is_traced(label) and not inside:
            raise ValueError(
                f"`label` must be one of 0 ... {self.num_classes - 1}, or "
                f"{self.num_classes} for none, got {label}."
            )
        # Inside a compiled program, a label out of range would read the nearest row.
        return jnp.where(inside, jnp.asarray(self.vectors)[label], jnp.nan)


class TimeAndCondition(eqx.Module):
    """`activation(embedding(t) + Linear(cond_embedding(cond)))`, and the image to append.

    **Arguments:**

    - `time_embedding`: how the time enters; the size of its result is that of the vector.
    - `cond_embedding`: maps the condition to a vector and has an `out_size`; `None` for
      no such part of the condition.
    - `cond_image_size`: the channels of an image in the condition; 0 for none.
    - `activation`: the function applied to the vector.
    - `key`: the key of the initial weights.
    """

    time_embedding: AbstractTimeEmbedding
    cond_embedding: Callable[..., Vector] | None
    linear: Linear | None
    activation: Callable[[Array], Array]
    cond_image_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        time_embedding: AbstractTimeEmbedding,
        cond_embedding: Callable[..., Vector] | None,
        cond_image_size: int,
        *,
        activation: Callable[[Array], Array] = jax.nn.silu,
        key: PRNGKey,
    ):
        if cond_image_size < 0:
            raise ValueError(
                f"`cond_image_size` must not be negative, got {cond_image_size}."
            )
        self.time_embedding = time_embedding
        self.cond_embedding = cond_embedding
        self.linear = None
        if cond_embedding is not None:
            size: int = getattr(cond_embedding, "out_size", 0)
            if size < 1:
                raise ValueError(
                    "`cond_embedding` must have an `out_size`, the size of its result, "
                    "as `fk.nn.ClassEmbedding` and `fk.nn.Linear` do."
                )
            self.linear = Linear(size, time_embedding.out_size, key=key)
        self.activation = activation
        self.cond_image_size = cond_image_size

    def __call__(self, t: Times, x: Image, cond: Cond) -> tuple[Image, Vector]:
        """The image with that of the condition appended, and the vector."""
        cond, image = self._split(cond)
        vector = embedded_time(self.time_embedding, t, x.dtype)
        if self.linear is not None and self.cond_embedding is not None:
            embedded = cast(self.cond_embedding, x.dtype)(cond)
            size = self.linear.in_size
            if embedded.shape != (size,):
                raise ValueError(
                    "`cond_embedding` must make one vector "
                    f"of size {size} of `cond`, got shape "
                    f"{embedded.shape}; for a batch use "
                    "`jax.vmap`."
                )
            vector = vector + self.linear(embedded.astype(x.dtype))

        if image is not None:
            image = jnp.asarray(image, x.dtype)
            expected = (*x.shape[:2], self.cond_image_size)
            if image.shape != expected:
                raise ValueError(
                    f"the image of `cond` must have the shape {expected}, got "
                    f"{image.shape}."
                )
            x = jnp.concatenate([x, image], axis=-1)
        return x, self.activation(vector)

    def _split(self, cond: Cond) -> tuple[Cond, Any]:
        """What is embedded, and the image; each `None` if the network takes none."""
        has_vector = self.cond_embedding is not None
        has_image = self.cond_image_size > 0
        if has_vector and has_image:
            if not isinstance(cond, tuple) or len(cond) != 2:
                raise ValueError(
                    "`cond` must be a tuple of two: the input of `cond_embedding`, and an "
                    f"image; got {type(cond).__name__}."
                )
            return cond
        if (cond is None) == (has_vector or has_image):
            raise ValueError(
                "`cond` must be given to a network that was built with `cond_embedding=` "
                "or `cond_image_size=`, and to no other."
            )
        return (cond, None) if has_vector else (None, cond)


def learned_time(
    size: int, num_frequencies: int, key: PRNGKey
) -> AbstractTimeEmbedding:
    """Two layers on sines and cosines: the default of networks of images."""
    embedding = SinusoidalTime(num_frequencies)
    return LearnedTime(size, embedding=embedding, key=key)
