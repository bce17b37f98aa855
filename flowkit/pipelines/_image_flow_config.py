"""A flow of images as plain values, which a command line sets and a checkpoint stores.

A field that the other fields leave without effect must have its default value, so that
nothing is accepted and then ignored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import flowkit as fk
from flowkit.pipelines._image_flow_parts import build_image_flow
from flowkit.pipelines._limits import check_options, Count, Natural, Within


@dataclasses.dataclass(frozen=True)
class ImageFlowConfig:
    """The parts of a `fk.Flow` of images by name, with their sizes.

    ```python
    config = fk.pipelines.ImageFlowConfig(channels=1, image_size=28, num_classes=10)
    flow = config.build(key=key)
    checkpoints = fk.training.Checkpoints("run/checkpoints", config={"model": vars(config)})
    ...
    flow, _ = fk.pipelines.load_image_flow("run", checkpoint="last")
    ```

    A condition is an integer label. The label `num_classes` stands for none.
    """

    channels: Count | None = None
    """Channels of the images. Examples take them from the data."""
    image_size: Count | None = None
    """Height and width of the images. Examples take them from the data."""
    num_classes: Natural = 0
    """Number of classes that the flow is conditioned on; 0 for an unconditional flow."""
    backbone: Literal["unet", "level-unet", "dit"] = "unet"
    """The network. Unet: a skip from every block. Level-unet: one skip and one attention for each
    level, bilinear upsampling and a linear output. Dit: a transformer on patches."""
    width_size: Count | None = None
    """Channels of a U-Net at the full sides, by default 16; width of a transformer, by default
    128."""
    multipliers: tuple[Count, ...] = (1, 2, 4)
    """Channels of each level of a U-Net in units of the width, from the full sides down."""
    num_blocks: Count = 1
    """Blocks of a U-Net at each level on the way down; there is one more on the way up."""
    attention_levels: tuple[Natural, ...] = ()
    """Levels of a U-Net whose pixels attend to each other, counted from 0 at the full sides. Those
    in the middle always do."""
    num_groups: Count = 8
    """Groups of channels that a U-Net normalizes; they divide all numbers of channels."""
    patch_size: Count | None = None
    """Height and width of the patches that a network sees as one pixel, by default 1 for a U-Net
    and 2 for a transformer."""
    depth: Count = 6
    """Number of blocks of a transformer."""
    num_heads: Count = 4
    """Heads of attention."""
    dropout: Annotated[float, Within(at_least=0, at_most=0.9)] = 0.0
    """Probability that an entry is dropped within a block in training."""
    time_size: Annotated[int, Within(at_least=4)] | None = None
    """Sines and cosines of the time, by default the width of a U-Net, or 64."""
    path: Literal["linear", "cosine", "polynomial", "variance-preserving"] = "linear"
    """The path from noise to data."""
    prediction: Literal["velocity", "noise", "target"] = "velocity"
    """What the network predicts; it is trained on the squared error of this prediction."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that a U-Net computes in. Its weights stay float32."""
    rematerialize: bool = False
    """Whether a U-Net computes activations again for the gradient, to save memory."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image, `(h, w, c)`."""
        if self.channels is None or self.image_size is None:
            raise ValueError(
                "`channels` and `image_size` are missing: give those of the images."
            )
        return self.image_size, self.image_size, self.channels

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "ImageFlowConfig":
        """The configuration that `vars` and JSON have made into a dictionary."""
        values = dict(stored)
        for name in ("multipliers", "attention_levels"):
            values[name] = tuple(values[name])
        return cls(**values)

    def with_sizes(
        self, *, channels: int, image_size: int, num_classes: int = 0
    ) -> "ImageFlowConfig":
        """The configuration for data of these sizes; a size that was set must agree."""
        sizes = {
            "channels": channels,
            "image_size": image_size,
            "num_classes": num_classes,
        }
        for name, size in sizes.items():
            given = getattr(self, name)
            # `None` and 0 leave a size to the data.
            if given not in (None, 0, size):
                raise ValueError(
                    f"`{name}` is {given}, but {size} for these data: leave it out."
                )
        return dataclasses.replace(self, **sizes)

    def check(self) -> None:
        """Raises a `ValueError` for invalid fields or combinations of fields.

        With the sizes of the images the network is also traced, so that sides, widths,
        groups and heads that do not fit are found before any work.
        """
        check_options(self, _without_effect(self), flags=False)
        if self.time_size is not None and self.time_size % 2:
            raise ValueError(
                f"`time_size` must be even, sines and cosines, got {self.time_size}."
            )
        # Networks know their own limits; tracing one costs a second and no memory.
        if self.channels is not None and self.image_size is not None:
            eqx.filter_eval_shape(_velocity, self, jr.key(0))

    def build(self, *, key: jax.Array = jr.key(0)) -> fk.Flow:
        """The flow, with random weights."""
        # It raises without sizes, for which `check` does not ask.
        _ = self.shape
        self.check()
        return build_image_flow(self, key=key)


def _velocity(config: ImageFlowConfig, key: jax.Array) -> jax.Array:
    """One evaluation, to be traced."""
    label = jnp.zeros((), int) if config.num_classes else None
    return build_image_flow(config, key=key)(0.5, jnp.zeros(config.shape), label)


def _without_effect(config: ImageFlowConfig) -> dict[str, str]:
    """The fields that the others leave without effect, each with the reason."""
    if config.backbone == "dit":
        reason = "only a U-Net has them, not the backbone dit"
        names = ("multipliers", "num_blocks", "attention_levels", "num_groups")
        return {name: reason for name in (*names, "dtype", "rematerialize")}

    reason = f"only the backbone dit has one, not {config.backbone}"
    return {"depth": reason}
