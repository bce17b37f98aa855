"""Which steps change nothing."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from flowkit._types import Number
from flowkit.training._step.checks import positive


def _optional_positive(value: Any) -> int | None:
    return None if value is None else positive("most_in_a_row", value)


class Skipping(eqx.Module):
    """Which steps change nothing but the step count, and how many of them end a training.

    A step whose loss or gradient is not finite is always skipped.

    **Arguments:**

    - `max_grad_norm`: a step whose gradient is longer is skipped too. Clipping by Optax
      shortens it instead.
    - `most_in_a_row`: `fit` raises `fk.training.Diverged` after that many skipped steps in a
      row, when it next looks at the metrics; `None` never stops.
    """

    max_grad_norm: Number = float("inf")
    most_in_a_row: int | None = eqx.field(default=10, converter=_optional_positive)

    def __check_init__(self):
        if not self.max_grad_norm > 0:
            raise ValueError(
                f"`max_grad_norm` must be positive, got {self.max_grad_norm}."
            )

    def is_sound(self, loss: Array, grad_norm: Array) -> Bool[Array, ""]:
        """Whether a step with this loss and norm is made."""
        is_short = grad_norm <= jnp.asarray(self.max_grad_norm, grad_norm.dtype)
        # The norm is compared with infinity, too.
        return jnp.isfinite(loss) & jnp.isfinite(grad_norm) & is_short
