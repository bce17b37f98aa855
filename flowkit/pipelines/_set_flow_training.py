"""How a `SetFlow` is trained, as plain values: lengths, weights, and choices by name."""

import dataclasses
from typing import Any, Literal

import optax

from flowkit import latent, training
from flowkit.pipelines._limits import (
    check_options,
    Count,
    Fraction,
    Natural,
    NonNegative,
    Positive,
)
from flowkit.pipelines._set_flow_config import SetFlowConfig


@dataclasses.dataclass(frozen=True)
class SetFlowTraining:
    """The options of `fk.pipelines.set_flow_stages`."""

    stages: Literal["joint", "two-stage", "flow", "prior"] = "joint"
    """Joint: everything, then the prior alone. Two-stage: encoder and flow, then the prior.
    Flow, prior: one of the two. The prior is trained for the encoder of an earlier run."""
    num_steps: Count = 4000
    """Total number of steps of the first stage, including those before an interruption."""
    prior_steps: Natural = 4000
    """Total number of steps of the prior alone, which are about twenty times as fast."""
    batch_size: Count = 64
    """Clouds per step. The prior alone takes the latents of four times as many."""
    block: Count | None = None
    """Clouds in memory at a time, by default the library's choice. The result is the same."""
    augment: bool = False
    """Whether training clouds are rotated, scaled and moved at random."""
    learning_rate: Positive = 2e-3
    """Peak learning rate, with cosine decay. The first stage has a warm-up."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Muon makes the updates of matrices orthogonal. It needs half as many steps, which take
    up to twice as long for small clouds; it pays off for large ones."""
    momentum: Literal["default", "doubled"] = "default"
    """Decay rates of Adam (with Muon, for all but matrices): (0.9, 0.999), or twice the
    window."""
    ema_decay: Fraction = 0.995
    """Decay of the averaged weights, which are the ones that are judged."""
    times: Literal["uniform", "late"] = "uniform"
    """Distribution of the times at which the points learn. Late: logit-normal with median
    0.73, for thin shapes: at late times the noise is as small as they are."""
    coupling: Literal["independent", "points", "aligned"] = "independent"
    """How the noise and the points of a cloud are paired: at random, by optimal assignment,
    or by optimal assignment after a rotation."""
    class_dropout: Fraction = 0.1
    """Probability in training that the class is hidden from the prior, for guidance."""
    vae_kl_weight: NonNegative = 0.0
    """Weight of the divergence of each cloud's latents, for variational models."""
    marginal_kl_weight: NonNegative = 0.0
    """Weight of the divergence of the moments of all latents."""
    grid_mask: bool = False
    """Whether cells of a grid over each cloud are hidden from the encoder in training."""
    grid_size: Count = 3
    """Number of cells of that grid along each axis."""
    grid_mask_probability: Fraction = 0.33
    """Probability that a cell is hidden."""

    def __post_init__(self):
        idle = {}
        if not self.grid_mask:
            reason = "`grid_mask` is off"
            idle = {"grid_size": reason, "grid_mask_probability": reason}
        check_options(self, idle, flags=False)

        if self.stages == "prior" and self.prior_steps == 0:
            raise ValueError(
                "`prior_steps` is 0; the stage of the prior takes at least 1."
            )

    @property
    def hide(self) -> latent.GridMask | None:
        """The mask of the encoder in training."""
        if not self.grid_mask:
            return None
        return latent.GridMask(self.grid_size, self.grid_mask_probability)

    def check(self, model: SetFlowConfig) -> None:
        """Raises a `ValueError` for an option that would be ignored with this model."""
        idle = {}
        if not model.variational:
            idle["vae_kl_weight"] = "the model is not `variational`"
        if model.num_classes == 0:
            idle["class_dropout"] = "the prior is not conditioned on classes"
        if not model.has_trainable_prior:
            reason = f"a {model.prior} prior has nothing to train"
            if model.is_local:
                reason = (
                    f"the encoder {model.encoder} without pooling returns a latent for each "
                    "point, over which there is no prior to train"
                )
            idle["prior_steps"] = reason
            if self.stages in ("prior", "two-stage"):
                idle["stages"] = reason
        check_options(self, idle, flags=False)

    def make_optimizer(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The optimizer that was chosen, with a learning rate by a schedule."""
        momentum: Any = {
            "default": training.DEFAULT_MOMENTUM,
            "doubled": training.DOUBLED_MOMENTUM,
        }[self.momentum]
        if self.optimizer == "adam":
            return optax.adam(schedule, **momentum)

        # Updates as large as those of Adam, so that one learning rate suits both.
        momentum = {f"adam_{name}": value for name, value in momentum.items()}
        return optax.contrib.muon(schedule, consistent_rms=0.2, **momentum)
