"""The planar sets of published comparisons, under the name of the paper.

The papers draw a fixed number of points once, partly on grids of angles. Here all points are
independent draws of the same distribution, and where the papers standardize by the moments of
a sample, those of the distribution are used.
"""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import PRNGKey, Scalar
from flowkit.data._toys import (
    check_draw,
    eight_gaussians,
    moons,
    MOONS_MEAN,
    MOONS_VARIANCE,
    s_curve,
    sampler,
)


def tong_eight_gaussians(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """Eight Gaussians of standard deviation 1 on a circle of radius 5.

    The source is a standard normal.

    **Reference:** Tong et al., Improving and Generalizing Flow-Based Generative Models with
    Minibatch Optimal Transport (2024), arXiv 2302.00482, and its code; also for the other
    sets with this name.
    """
    return eight_gaussians(num, std=1.0, key=key)


def tong_moons(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """The `moons` with noise 0.05, doubled and moved by 1 to the left.

    The source is a standard normal.
    """
    return 2 * moons(num, noise=0.05, key=key) - jnp.array([[1.0, 0.0]])


def tong_s_curve(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """The `s_curve` with noise 0.05, times 1.5; the source is a standard normal."""
    return 1.5 * s_curve(num, noise=0.05, key=key)


def tong_wide_moons(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """The `moons` with noise 0.1, of mean 0 and standard deviation 7.

    This is the source of the task from moons to eight Gaussians, `tong_wide_gaussians`.
    Mean and standard deviation are those of all entries together, not of each axis.
    """
    mean = float(MOONS_MEAN.mean())
    std = float(np.sqrt(np.mean(MOONS_VARIANCE + 0.1**2 + (MOONS_MEAN - mean) ** 2)))
    return 7 * (moons(num, noise=0.1, key=key) - mean) / std


def tong_wide_gaussians(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """Eight Gaussians of standard deviation 1.5 on a circle of radius 12.

    This is the target of `tong_wide_moons`.
    """
    return eight_gaussians(num, radius=12.0, std=1.5, key=key)


def c2ot_eight_gaussians(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """Eight Gaussians of standard deviation 0.1^(1/4) on a circle of radius 5.

    This is the source of `c2ot_moons`. The code of the paper passes the root of the
    variance 0.1 as a covariance, so the variance is the root of 0.1.

    **Reference:** Cheng and Schwing, The Curse of Conditions: Analyzing and Improving
    Optimal Transport for Conditional Flow-Based Generation (2025), arXiv 2503.10636, and
    its code.
    """
    return eight_gaussians(num, std=0.1**0.25, key=key)


def c2ot_moons(
    num: int, *, shift: Scalar = 0.2, key: PRNGKey
) -> Float[Array, "{num} 2"]:
    """Both half circles of `moons`, each point moved along the diagonal, then times 3 minus 1.

    The move adds one number, uniform in `(0, shift)`, to both coordinates, as in Cheng and
    Schwing (2025), arXiv 2503.10636. Angles lie on a grid there; here they are uniform.
    """
    check_draw(num, shift=shift)
    return _c2ot_moons(num, shift, key)


@sampler
def _c2ot_moons(num: int, shift: Array, key: PRNGKey):
    moons_key, shift_key = jr.split(key)
    points = moons(num, noise=0.0, key=moons_key)
    return 3 * (points + shift * jr.uniform(shift_key, (num, 1))) - 1
