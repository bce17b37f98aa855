"""A `SetFlow` as plain values, which a command line sets and a checkpoint stores.

A field that the other fields leave without effect must have its default value, so that
nothing is accepted and then ignored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.random as jr

from flowkit.latent import SetFlow
from flowkit.pipelines._limits import check_options, Count, Natural, Positive
from flowkit.pipelines._set_flow_parts import build_set_flow, is_local


LEGACY: dict[str, Any] = {"time_scale": 1000.0}
"""Values of the fields that configurations stored by flowkit 0.2.0 do not have."""

_SEVERAL_LATENTS = ("slot-attention", "cross-attention", "gmm")


@dataclasses.dataclass(frozen=True)
class SetFlowConfig:
    """The parts of a `fk.latent.SetFlow` by name, with their sizes.

    ```python
    config = fk.pipelines.SetFlowConfig(in_size=3, encoder="dgcnn", pooling="attention")
    model = config.build(key=key)
    checkpoints = fk.training.Checkpoints("run", config=config)
    ...
    build = lambda stored: fk.pipelines.SetFlowConfig.from_json(stored).build()
    model = fk.training.restore_model("run", build)
    ```
    """

    in_size: Count | None = None
    """Dimension of the points. Examples take it from the data."""
    num_classes: Natural = 0
    """Number of classes that the prior is conditioned on; 0 for an unconditional prior."""
    encoder: Literal[
        "point-net",
        "set-transformer",
        "dgcnn",
        "slot-attention",
        "cross-attention",
        "gmm",
    ] = "point-net"
    """What maps a cloud to latents: to one (point-net), to one for each point (set-transformer,
    dgcnn), or to `num_latents` (the others)."""
    pooling: Literal[
        "none", "max", "mean", "max-mean", "attention", "pma", "set2set"
    ] = "none"
    """How the latents of a cloud are reduced to one."""
    latent_size: Count = 16
    """Size of a latent."""
    num_latents: Count = 8
    """Number of latents of slot-attention and cross-attention; number of Gaussians of gmm."""
    encoder_sizes: tuple[Count, ...] = (64, 128, 256)
    """Widths of the hidden layers of point-net."""
    backbone: Literal["adaln-mlp", "dit", "cross-attention", "concat-squash"] = (
        "adaln-mlp"
    )
    """The conditional network that moves the points."""
    conditioner: Literal["auto", "broadcast", "per-point", "pool", "select"] = "auto"
    """How latents reach the points. Auto: broadcast for one latent, per-point for one latent per
    point, pool for several. The points of the backbone cross-attention attend to the latents, so
    that it has no conditioner."""
    width_size: Count = 64
    """Width of the backbone."""
    depth: Count = 6
    """Number of layers of the backbone."""
    features: bool = False
    """Whether the networks also see sines and cosines of the coordinates, for fine detail."""
    time_scale: Positive = 1.0
    """Highest frequency of the sinusoidal embeddings of time."""
    path: Literal["linear", "cosine"] = "linear"
    """The path from noise to data."""
    prediction: Literal["velocity", "noise", "target"] = "velocity"
    """What the backbone predicts."""
    num_components: Count = 1
    """Number of Gaussians in the predicted mixture; 1 predicts a value."""
    prior: Literal["flow", "mixture", "normal"] = "flow"
    """The distribution of the latents. A flow over several latents is blind to their order. With a
    latent for each point nothing is trained here."""
    prior_width: Count = 128
    """Width of the flow over latents."""
    prior_depth: Count = 4
    """Number of layers of the flow over latents."""
    variational: bool = False
    """Whether the encoder returns means and variances."""
    normalize: bool = False
    """Whether every latent is scaled to length one."""

    @property
    def has_trainable_prior(self) -> bool:
        """Whether there is a prior to train: not with a normal one or a latent per point."""
        return self.prior != "normal" and not is_local(self)

    @property
    def is_local(self) -> bool:
        """Whether each point has a latent of its own, so that nothing can be generated."""
        return is_local(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "SetFlowConfig":
        """The configuration that `dataclasses.asdict` and JSON have made into a dictionary.

        What flowkit 0.2.0 stored is read as well, with its defaults.
        """
        values = LEGACY | dict(stored)
        values["encoder_sizes"] = tuple(values["encoder_sizes"])
        config = cls(**values)

        # 0.2.0 accepted fields without effect; here they have their defaults.
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        idle = {name: fields[name] for name in _without_effect(config)}
        return dataclasses.replace(config, **idle)

    def with_sizes(self, *, in_size: int, num_classes: int = 0) -> "SetFlowConfig":
        """The configuration for data of these sizes; a size that was set must agree."""
        sizes = {"in_size": in_size, "num_classes": num_classes}
        for name, size in sizes.items():
            given = getattr(self, name)
            # `None` and 0 leave a size to the data.
            if given not in (None, 0, size):
                raise ValueError(
                    f"`{name}` is {given}, but {size} for these data: leave it out."
                )
        return dataclasses.replace(self, **sizes)

    def check(self) -> None:
        """Raises a `ValueError` for a field out of range or without effect."""
        check_options(self, _without_effect(self), flags=False)

    def build(self, *, key: jax.Array = jr.key(0)) -> SetFlow:
        """The model, with random weights."""
        if self.in_size is None:
            raise ValueError("`in_size` is missing: give the dimension of the points.")
        self.check()
        return build_set_flow(self, key=key)


def _without_effect(config: SetFlowConfig) -> dict[str, str]:
    """The fields that the others leave without effect, each with the reason."""
    idle = {}

    if config.encoder != "point-net":
        idle["encoder_sizes"] = (
            f"only the encoder point-net has them, not {config.encoder}"
        )
    if config.encoder not in _SEVERAL_LATENTS:
        idle["num_latents"] = (
            f"the encoder {config.encoder} sets the number of latents itself"
        )

    attends = config.backbone == "cross-attention"
    if attends:
        idle["conditioner"] = (
            "the points of the backbone cross-attention attend to the latents"
        )

    local = is_local(config)
    if local and config.prior == "mixture":
        idle["prior"] = "with a latent for each point there is no prior over them"
    has_flow = config.prior == "flow" and not local
    if not has_flow:
        reason = "only a flow as prior has them, and there is none"
        idle |= {"prior_width": reason, "prior_depth": reason}
        idle["num_classes"] = "only a flow as prior takes a class, and there is none"

    plain_time = config.backbone == "concat-squash" and config.conditioner != "select"
    if plain_time and not has_flow:
        idle["time_scale"] = "the backbone concat-squash takes the time as it is"
    return idle
