"""Errors of one example: their mean square and their adaptive weight."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._flow import PointHead
from flowkit._losses import Example
from flowkit._types import is_traced, Scalar, sum_dtype


class AdaptiveWeight(eqx.Module):
    r"""Divides the error of an example by a power of itself.

    $$\ell / \mathrm{sg}\big((\ell + c)^p\big)$$

    With $p > 0$ large errors count less. The expected gradient is then zero at the average
    velocity only if errors are symmetric. This is fine for images but wrong for points in
    few dimensions, so losses have no such weight by default.

    **Arguments:**

    - `power`: $p$.
    - `constant`: $c$.
    - `summed`: whether $\ell$ is the sum of the squares, or their mean.

    **Reference:** Geng et al., Consistency Models Made Easy, 2024 (arXiv 2406.14548).
    """

    power: Scalar = 1.0
    constant: Scalar = 1e-3
    summed: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if is_traced(self.power, self.constant):
            return
        if not (self.power >= 0 and self.constant > 0):
            raise ValueError(
                "`power` must not be negative, and `constant` must be positive because an "
                f"error may be zero; got {self.power} and {self.constant}."
            )

    def __call__(
        self, error: Float[Array, ""], num_entries: Scalar
    ) -> Float[Array, ""]:
        """The weighted error, given the mean square of the valid entries and their number."""
        error = error * num_entries if self.summed else error
        power = jnp.asarray(self.power, error.dtype)
        constant = jnp.asarray(self.constant, error.dtype)
        return error / jax.lax.stop_gradient((error + constant) ** power)


def mean_square(value: Array, target: Array, mask: Array | None) -> Float[Array, ""]:
    """The mean square of the valid entries, in at least float32, whose squares do not overflow.

    No gradient flows through the target.
    """
    wide = sum_dtype(value.dtype)
    target = jax.lax.stop_gradient(target).astype(wide)
    return PointHead().error(value.astype(wide), target, mask)


def weighted(
    error: Array, weight: AdaptiveWeight | None, example: Example
) -> Float[Array, ""]:
    """The error of an example times its adaptive weight and that of the coupling."""
    if weight is not None:
        num_entries = jnp.asarray(example.x1.size, error.dtype)
        if example.mask is not None:
            # The valid fraction of all entries, however many entries a point has.
            num_entries *= jnp.mean(example.mask.astype(error.dtype))
        error = weight(error, num_entries)

    if example.weight is not None:
        error = example.weight * error
    # The loss has the type of the data.
    return error.astype(example.x1.dtype)
