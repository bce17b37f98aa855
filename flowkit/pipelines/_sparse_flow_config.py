"""A `SparseFlow` as plain values, which a command line sets and a checkpoint stores."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.random as jr

from flowkit import nn
from flowkit._flow import Flow
from flowkit.inverse import GaussianProcess
from flowkit.pipelines._limits import (
    check_options,
    Count,
    Fraction,
    Natural,
    Positive,
)
from flowkit.pipelines._sparse_flow import SparseFlow
from flowkit.pipelines._sparse_flow_parts import OnGrid, WithMean


@dataclasses.dataclass(frozen=True)
class SparseFlowConfig:
    """The parts of a `fk.pipelines.SparseFlow` by name, with their sizes.

    ```python
    config = fk.pipelines.SparseFlowConfig(shape=(32, 32, 3), network="unet")
    model = config.build(key=key)
    checkpoints = fk.training.Checkpoints("run", config=config)
    ...
    build = lambda stored: fk.pipelines.SparseFlowConfig.from_json(stored).build()
    model = fk.training.restore_model("run", build)
    ```
    """

    shape: tuple[Count, Count, Count] | None = None
    """Height, width and channels of the images. Examples take it from the data."""
    network: Literal["pixel-field", "perceiver", "unet"] = "pixel-field"
    """pixel-field: `fk.nn.PixelField`. perceiver: `fk.nn.PerceiverField`, a plain Perceiver IO.
    unet: `fk.nn.UNet` on whole images, with the observed pixels and their mask as condition."""
    start: Literal["noise", "gaussian-process"] = "gaussian-process"
    """What the flow starts from: white noise, or a draw of `fk.inverse.GaussianProcess` given the
    observed pixels, whose mean the network then sees and whose velocity it corrects."""
    length_scale: Positive = 0.3
    """Length scale of the process; the sides of an image have length 1."""
    width_size: Count = 64
    """Width of the network. With unet, channels at the full size, a multiple of 8."""
    num_latents: Count = 32
    """Number of latents of pixel-field and perceiver."""
    depth: Count = 3
    """Number of blocks of pixel-field and perceiver."""
    num_heads: Count = 4
    """Heads of each attention of pixel-field and perceiver, a divisor of the width."""
    num_frequencies: Count = 64
    """Number of random Fourier features of the coordinates of pixel-field and perceiver."""
    frequency_scale: Positive | None = None
    """Standard deviation of their frequencies. Default: a quarter of the pixels of a side, half
    of the highest frequency that a grid of them shows."""
    num_neighbors: Natural = 4
    """Number of nearest observed pixels that a query of pixel-field sees."""
    state_tokens: Natural | None = None
    """Maximum number of queried pixels that the latents of pixel-field read. Default: all.
    Examples take as many as in training, so that more of them can be queried."""
    multipliers: tuple[Count, ...] = (1, 2)
    """Channels of the levels of unet, in units of its width. Sides are halved between levels."""
    patch_size: Count = 1
    """Side of the patches of unet, whose pixels become channels: with 2 it costs a quarter."""
    dropout: Fraction = 0.0
    """Probability that an entry is dropped within a block in training."""

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "SparseFlowConfig":
        """The configuration that `dataclasses.asdict` and JSON have made into a dictionary."""
        lists = {
            name: tuple(value)
            for name, value in stored.items()
            if isinstance(value, list)
        }
        return cls(**{**stored, **lists})

    def for_data(
        self, shape: tuple[int, int, int], num_outputs: int
    ) -> "SparseFlowConfig":
        """The configuration for images of this shape; a shape that was set must agree.

        **Arguments:** the `shape` of one image, and the number of output pixels of each in
        training.
        """
        if self.shape not in (None, shape):
            raise ValueError(
                f"`shape` is {self.shape}, but {shape} for these images: leave it out."
            )
        tokens = self.state_tokens
        # Latents that read more states than in training would see what they never saw.
        if tokens is None and self.network == "pixel-field":
            tokens = num_outputs
        return dataclasses.replace(self, shape=shape, state_tokens=tokens)

    def without_effect(self) -> dict[str, str]:
        """The fields that the others leave without effect, each with the reason."""
        only = {
            "pixel-field": ("num_neighbors", "state_tokens"),
            "unet": ("multipliers", "patch_size"),
        }
        idle = {
            name: f"only {network} has it, not {self.network}"
            for network, names in only.items()
            for name in names
            if network != self.network
        }
        if self.start == "noise":
            idle["length_scale"] = "white noise has none"
        if self.network == "unet":
            reason = "unet is made of convolutions"
            names = "num_latents depth num_heads num_frequencies frequency_scale"
            idle |= {name: reason for name in names.split()}
        return idle

    def check(self) -> None:
        """Raises a `ValueError` for a field out of range or without effect."""
        check_options(self, self.without_effect(), flags=False)

    def build(self, *, process: Any = None, key: jax.Array = jr.key(0)) -> SparseFlow:
        """The model, with random weights.

        **Arguments:** the `process` that the flow starts from, as in `SparseFlow`, in place
        of the one that `start` names.

        **Raises:** `ValueError` for sizes that do not fit together, and for a
        `length_scale` next to a `process`.
        """
        if self.shape is None:
            raise ValueError(
                "`shape` is missing: give height, width and channels of the images."
            )
        idle = self.without_effect()
        if process is not None:
            idle["length_scale"] = "`process` has its own"
        check_options(self, idle, flags=False)

        height, width, channels = self.shape
        if process is None and self.start == "gaussian-process":
            process = GaussianProcess(self.length_scale)
        # The mean comes as further channels, next to those of the values.
        seen = channels if process is None else 2 * channels
        network: Any = self._network(seen, key)
        grid = None
        if self.network == "unet":
            network = OnGrid(network, height, width)
            grid = (height, width)
            self._check_sides(height, width)
        elif process is not None and not hasattr(process, "sample"):
            raise ValueError(
                f"`process` is a {type(process).__name__}, which draws whole images: it "
                'needs `network="unet"`.'
            )
        if process is not None:
            network = WithMean(network)
        return SparseFlow(Flow(network), process, grid)

    def _check_sides(self, height: int, width: int) -> None:
        # The network itself would only see the images once the run has begun.
        divisor = self.patch_size * 2 ** (len(self.multipliers) - 1)
        if height % divisor or width % divisor:
            raise ValueError(
                f"`multipliers` {self.multipliers} and `patch_size` {self.patch_size} need "
                f"sides divisible by {divisor}, and images have {height} x {width} pixels."
            )

    def _network(self, channels: int, key: jax.Array) -> Any:
        if self.network == "unet":
            return nn.UNet(
                channels,
                self.shape[2],  # pyright: ignore[reportOptionalSubscript]
                width_size=self.width_size,
                multipliers=self.multipliers,
                patch_size=self.patch_size,
                # The observed pixels, and which they are.
                cond_image_size=channels + 1,
                dropout=self.dropout,
                key=key,
            )
        if self.width_size % self.num_heads:
            raise ValueError(
                f"`width_size` {self.width_size} must be divisible by `num_heads` "
                f"{self.num_heads}."
            )

        options: Any = {
            "width_size": self.width_size,
            "num_latents": self.num_latents,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
        }
        frequencies: Any = {"num_frequencies": self.num_frequencies}
        scale = self._frequency_scale()
        if self.network == "perceiver":
            options |= frequencies | {"frequency_scale": scale}
            return nn.PerceiverField(channels, **options, key=key)

        feature_key, key = jr.split(key)
        features = nn.FourierFeatures(2, **frequencies, scale=scale, key=feature_key)
        return nn.PixelField(
            channels,
            features=features,
            num_neighbors=self.num_neighbors,
            state_tokens=self.state_tokens,
            **options,
            key=key,
        )

    def _frequency_scale(self) -> float:
        if self.frequency_scale is not None:
            return self.frequency_scale
        height, width, _ = self.shape  # pyright: ignore[reportGeneralTypeIssues]
        # A grid of n pixels shows (n - 1) / 2 periods; twice the deviation reaches that.
        return max(max(height, width) - 1, 1) / 4
