r"""The exact flow of a known distribution: what a perfect network would predict.

Every prediction is a combination of $\mathbb E[x_0 \mid x_t]$ and
$\mathbb E[x_1 \mid x_t]$, the means of noise and data given a point on the path. The
distribution of the data gives these two in closed form.

**Reference:** Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants (2023), arXiv
2303.08797.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_time
from flowkit._distributions import (
    AbstractDistribution,
    AbstractExactDistribution,
    Normal,
)
from flowkit._flow.flow import Flow
from flowkit._flow.paths import AbstractPath, as_time, LinearPath
from flowkit._flow.predictions import AbstractPrediction, Score, Velocity
from flowkit._types import Cond, Scalar


def exact_flow(
    distribution: AbstractDistribution,
    path: AbstractPath = LinearPath(),
    *,
    source: Normal = Normal(),
    prediction: AbstractPrediction = Velocity(),
) -> Flow:
    """The exact flow from a Gaussian source to `distribution` along `path`, for independent pairs.

    **Arguments:**

    - `distribution`: `fk.GaussianMixture`, `fk.Normal` or `fk.Empirical`, the latter
      two of any shape; or your own `fk.AbstractExactDistribution`.
    - `path`: any path.
    - `source`: the source, `fk.Normal(mean, std)`.
    - `prediction`: what the exact network returns; each one is in closed form.

    **Returns:** a `Flow`, itself a velocity field. With `fk.Velocity()`, the default, it is
    exact on all of [0, 1], except for finite data at `t = 1`, where the noise is not determined,
    and for paths whose derivative diverges there. With any other prediction the velocity is held
    within 1e-3 of an end, as that of any `fk.Flow`.

    **Raises:** `ValueError` for any other distribution, and for scores with another
    source than the standard one.
    """
    if isinstance(prediction, Score) and not _is_standard(source):
        raise ValueError(
            "`prediction` Score() is for the standard normal source; use "
            "`fk.marginal(...).score`."
        )
    posterior = _exact(distribution).posterior(source)
    return Flow(_ExactNetwork(posterior, path, prediction), path, prediction)


def marginal(
    distribution: AbstractDistribution,
    path: AbstractPath,
    t: Scalar,
    *,
    source: Normal = Normal(),
) -> AbstractDistribution:
    """The exact marginal $p_t$ of the path, with `log_prob` and `score`, at `t = 1` as well.

    It is a `fk.Normal` for a `fk.Normal`, and a `fk.GaussianMixture` for mixtures and
    finite data.

    **Arguments:**

    - `distribution`: as in `fk.exact_flow`; `fk.Empirical` must hold vectors, and needs
      `t < 1`.
    - `path`, `t`, `source`: as in `fk.exact_flow`.
    """
    check_time("t", t)
    distribution = _exact(distribution)
    t = as_time(t, _dtype(distribution))
    return distribution.marginal(path.alpha(t), path.sigma(t), source)


class _ExactNetwork(eqx.Module):
    posterior: Callable
    path: AbstractPath
    prediction: AbstractPrediction

    def __call__(
        self, t: Float[Array, ""], x: Float[Array, "..."], cond: Cond = None
    ) -> Float[Array, "..."]:
        del cond
        c = self.path.coefficients(t)
        x0, x1 = self.posterior(x, c.alpha, c.sigma)
        return self.prediction.evaluate(c, x0, x1)


def _exact(distribution: AbstractDistribution) -> AbstractExactDistribution:
    if not isinstance(distribution, AbstractExactDistribution):
        raise ValueError(
            "`distribution` must be a `fk.GaussianMixture`, `fk.Normal`, `fk.Empirical` or "
            "another `fk.AbstractExactDistribution`, whose flow is known in closed form, "
            f"got {type(distribution).__name__}."
        )
    return distribution


def _is_standard(source: Normal) -> bool:
    if not (isinstance(source.mean, float) and isinstance(source.std, float)):
        return False
    return source.mean == 0 and source.std == 1


def _dtype(distribution: Any) -> Any:
    """The type of the parameters of a distribution."""
    leaves = jax.tree.leaves(eqx.filter(distribution, eqx.is_inexact_array))
    return jnp.result_type(leaves[0] if leaves else float)
