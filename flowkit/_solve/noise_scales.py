r"""How much noise a sampler adds over time: the $w(t)$ of `fk.sample_sde`.

| object | $w(t)$, times `scale` |
|---|---|
| `SigmaNoise` | $\sigma_t$ |
| `ConstantNoise` | $1$ |
| `LinearNoise` | $1 - t$ |
| `SineNoise` | $\sin^2(\pi t)$ |
| `DecreasingNoise` | $\tfrac14 (\cos \pi t + 1)^2$ |
| `DiffusionNoise` | $\sigma_t D_t / \alpha_t$, with $D = \alpha' \sigma - \alpha \sigma'$ |

**Reference:** Ma et al., SiT: Exploring Flow and Diffusion-based Generative Models with
Scalable Interpolant Transformers, 2024 (arXiv 2401.08740).
"""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._flow import AbstractPath
from flowkit._types import is_traced, Scalar


NoiseScale = Callable[[AbstractPath, Array], Array]
"""`(path, t) -> ()`, half the variance of the noise per unit of time."""


class AbstractNoiseScale(eqx.Module):
    """A noise scale with a factor.

    To add one: subclass, implement `profile`, and say in `singular_start` whether it is
    infinite at `t = 0`; samplers then take their first step without noise.
    """

    scale: Scalar = 1.0
    singular_start: ClassVar[bool] = False

    def __check_init__(self):
        if not is_traced(self.scale) and not 0 <= self.scale < float("inf"):
            raise ValueError(f"`scale` must not be negative, got {self.scale}.")

    def __call__(self, path: AbstractPath, t: Scalar) -> Float[Array, ""]:
        return jnp.asarray(self.scale * self.profile(path, jnp.asarray(t)))

    @abc.abstractmethod
    def profile(self, path: AbstractPath, t: Float[Array, ""]) -> Float[Array, ""]:
        """The scale over time for a factor of 1."""


class SigmaNoise(AbstractNoiseScale):
    r"""$w(t) = \eta\, \sigma_t$, which fades out with the noise of the path: the default."""

    def profile(self, path, t):
        return path.sigma(t)


class ConstantNoise(AbstractNoiseScale):
    r"""$w(t) = \eta$."""

    def profile(self, path, t):
        return jnp.ones_like(t)


class LinearNoise(AbstractNoiseScale):
    r"""$w(t) = \eta\, (1 - t)$, on every path."""

    def profile(self, path, t):
        return 1 - t


class SineNoise(AbstractNoiseScale):
    r"""$w(t) = \eta \sin^2(\pi t)$: most noise in the middle."""

    def profile(self, path, t):
        return jnp.sin(jnp.pi * t) ** 2


class DecreasingNoise(AbstractNoiseScale):
    r"""$w(t) = \tfrac14 \eta\, (\cos \pi t + 1)^2$: most noise at the start."""

    def profile(self, path, t):
        return 0.25 * (jnp.cos(jnp.pi * t) + 1) ** 2


class DiffusionNoise(AbstractNoiseScale):
    r"""$w(t) = \eta\, \sigma_t D_t / \alpha_t$, infinite at `t = 0`.

    With a `scale` of 1 the equation is the reversed diffusion with the marginals of the path.

    **Reference:** Song et al., Score-Based Generative Modeling through SDEs, 2021 (arXiv
    2011.13456).
    """

    singular_start: ClassVar[bool] = True

    def profile(self, path, t):
        alpha, sigma, d_alpha, d_sigma = path.coefficients(t)
        return sigma * (d_alpha * sigma - alpha * d_sigma) / alpha
