"""Weights of the squared error over time."""

from collections.abc import Callable

from jaxtyping import Array, Float

from flowkit._flow import (
    AbstractPath,
    AbstractPrediction,
    as_time,
    clip_time,
    Coefficients,
    CUT,
    Velocity,
)
from flowkit._types import Scalar


Weighting = Callable[[AbstractPath, Array], Array]
"""`(path, t) -> ()`, multiplies the squared error of the velocity."""


def likelihood_weighting(path: AbstractPath, t: Scalar) -> Float[Array, ""]:
    r"""The "optimal" weight $\alpha / (\sigma D)$ of the velocity error.

    With it the loss bounds the likelihood.

    The same weight is $D / (\alpha \sigma)$ on the noise and $\alpha D / \sigma^3$ on
    the target error. It diverges at $t = 1$, and is evaluated at $t = 1 - 10^{-3}$ at
    the latest (and at $t = 10^{-5}$ at the earliest, where it is 0/0 on some paths).

    **Reference:** Kingma and Gao (2023), arXiv 2303.00848; Song et al., Maximum
    Likelihood Training of Score-Based Diffusion Models (2021), arXiv 2101.09258.
    """
    t = clip_time(as_time(t), 1e-5, 1 - CUT)
    c = path.coefficients(t)
    return c.alpha / (c.sigma * error_scale(Velocity(), c))


def error_scale(prediction: AbstractPrediction, c: Coefficients) -> Array:
    a, b = prediction.row(c)
    return a * c.sigma - b * c.alpha
