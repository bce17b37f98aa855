r"""Distributions of the training time: `(num, *, key) -> times (num,)` in [0, 1].

Drawing from a density $p(t)$ and weighting the loss by $w(t)$ are the same freedom:
uniform times with weight $w(t)\, p(t)$ have the same expectation.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import is_traced, PRNGKey, Scalar


def stays_inside(times: Callable) -> bool:
    """Whether a distribution is one of this file, whose times are in [0, 1] by construction."""
    # A function has a module of its own, an instance that of its class.
    return getattr(times, "__module__", None) == __name__


def uniform(num: int, *, key: PRNGKey) -> Float[Array, " num"]:
    """Independent times, uniform on [0, 1)."""
    return jr.uniform(key, (num,))


def stratified(num: int, *, key: PRNGKey) -> Float[Array, " num"]:
    """Uniform times, one in each of `num` equal strata, in random order.

    Each of them is uniform on [0, 1], and their mean varies less than that of independent
    ones.
    """
    ukey, pkey = jr.split(key)
    offsets = jr.uniform(ukey, (num,))
    return (jr.permutation(pkey, num).astype(offsets.dtype) + offsets) / num


class LogitNormal(eqx.Module):
    r"""$t = \mathrm{sigmoid}(m + s n)$ with $n \sim \mathcal N(0, 1)$.

    The median is $\mathrm{sigmoid}(m)$.

    If a paper gives the mean for a time that runs from data to noise, change its sign
    here.

    **Reference:** Esser et al., Scaling Rectified Flow Transformers (2024), arXiv
    2403.03206.
    """

    mean: Scalar = 0.0
    std: Scalar = 1.0

    def __check_init__(self):
        if not is_traced(self.std) and not self.std > 0:
            raise ValueError(f"`std` must be positive, got {self.std}.")

    def __call__(self, num: int, *, key: PRNGKey) -> Float[Array, " num"]:
        return jax.nn.sigmoid(self.mean + self.std * jr.normal(key, (num,)))


class ArctanLogNormal(eqx.Module):
    r"""$t = 1 - \tfrac{2}{\pi} \arctan(\exp(s n - m))$ with $n \sim \mathcal N(0, 1)$.

    **Reference:** Peng et al., FACM: Flow-Anchored Consistency Models (2025), arXiv
    2507.03738.
    """

    mean: Scalar = 0.8
    std: Scalar = 1.6

    def __check_init__(self):
        if not is_traced(self.std) and not self.std > 0:
            raise ValueError(f"`std` must be positive, got {self.std}.")

    def __call__(self, num: int, *, key: PRNGKey) -> Float[Array, " num"]:
        log_tangent = self.std * jr.normal(key, (num,)) - self.mean
        return 1 - 2 / jnp.pi * jnp.arctan(jnp.exp(log_tangent))


class Beta(eqx.Module):
    r"""$t \sim \mathrm{Beta}(a, b)$, mean $a / (a + b)$."""

    a: Scalar = 1.0
    b: Scalar = 1.0

    def __check_init__(self):
        if not is_traced(self.a, self.b) and not (self.a > 0 and self.b > 0):
            raise ValueError(
                f"`a` and `b` must be positive, got {self.a} and {self.b}."
            )

    def __call__(self, num: int, *, key: PRNGKey) -> Float[Array, " num"]:
        return jr.beta(key, self.a, self.b, (num,))


def cosmap(num: int, *, key: PRNGKey) -> Float[Array, " num"]:
    r"""$t = 1 - 1 / (\tan(\pi u / 2) + 1)$ with uniform $u$.

    The signal-to-noise ratio then has the density that it has in the cosine schedule.

    **Reference:** Esser et al., Scaling Rectified Flow Transformers (2024), arXiv
    2403.03206.
    """
    # The same map with sine and cosine, finite at both ends.
    angle = 0.5 * jnp.pi * jr.uniform(key, (num,))
    return jnp.sin(angle) / (jnp.sin(angle) + jnp.cos(angle))
