"""Weights that depend on the error itself."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class AdaptiveWeight(eqx.Module):
    r"""$w = (\ell + c)^{-p}$ of the squared error $\ell$ of an example; no gradient flows through it.

    It keeps rare large errors from deciding a step. With $p > 0$ the optimum is no longer the mean: it is the average
    velocity only if the errors given $x$ are symmetric, as for Gaussian data. On data with separate modes the maps are
    drawn to a mode; images bear it, toys in one and two dimensions do not.

    **Arguments:** `power` $p \geq 0$, `constant` $c > 0$.

    **Reference:** Geng et al. (2025), arXiv 2505.13447.
    """

    power: float = 1.0
    constant: float = 1e-2

    def __check_init__(self):
        if self.power < 0:
            raise ValueError(f"`power` must not be negative, got {self.power}.")
        if not self.constant > 0:
            raise ValueError(f"`constant` must be positive, got {self.constant}: an error may be zero.")

    def __call__(self, square: Float[Array, ""]) -> Float[Array, ""]:
        return (square + self.constant) ** -self.power


def cosine_decay(t: Float[Array, ""]) -> Float[Array, ""]:
    r"""$\beta(t) = \cos(\pi t / 2)$: 1 at the noise, 0 at the data.

    **Reference:** Peng et al., FACM: Flow-Anchored Consistency Models (2025), arXiv 2507.03738.
    """
    return jnp.cos(0.5 * jnp.pi * t)
