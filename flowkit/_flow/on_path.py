r"""A trained flow seen along another path.

Points on two affine paths whose ratios of data and noise agree,
$\alpha_t / \sigma_t = \tilde\alpha_s / \tilde\sigma_s$, differ in scale alone. So one network
gives the predictions along every path: with $c = (\alpha_t + \sigma_t) / (\tilde\alpha_s +
\tilde\sigma_s)$

$$\mathbb E[x_1 \mid x_t = x] = \mathbb E[x_1 \mid \tilde x_s = x / c],$$

and the same for the noise.

**Reference:** Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models,
2022 (arXiv 2206.00364), section 2; Lipman et al., Flow Matching Guide and Code, 2024 (arXiv
2412.06264), section 4.6.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._flow.flow import Flow
from flowkit._flow.paths import AbstractPath, as_time, clip_time
from flowkit._flow.predictions import (
    away_from_poles,
    CUT,
    Noise,
    Target,
    Velocity,
)
from flowkit._flow.standardized import Standardized
from flowkit._types import Cond, FloatArray, is_traced, Mask, PRNGKey, Scalar


def on_path(flow: Any, path: AbstractPath) -> Any:
    """The same flow along another path: the same samples, by other trajectories.

    Train along the path that is best to train on, and solve along another one:

    ```python
    curved = fk.on_path(flow, fk.CosinePath())
    samples = fk.sample(curved, (2,), num_samples=1000, num_steps=10, key=key)
    ```

    Samples agree within the error of the solver, and so do log-probabilities and encodings. It
    holds for every source and coupling.

    Where the path of a `fk.Velocity()` network has $D = 0$ at an end, as at $t = 0$ of
    `fk.PolynomialPath(2)`, an error $e$ of the network becomes about $e\\, \\tilde D / D$ along
    `path`, which has no bound. So the new velocity is evaluated at a distance of $10^{-3}$ from
    such an end at the least: on the linear path that is $16\\, e$ for degree 2, $33\\, e$ for 3.

    **Arguments:**

    - `flow`: a `fk.Flow`, or a `fk.Standardized` one.
    - `path`: the path to see it along. Both must begin in noise alone: `VariancePreservingPath`
        does up to its $\\alpha_0$ of 0.0066. Both must end with the same ratio of noise and
        data, which is 0 unless `sigma_min` is given.

    **Returns:** a flow with the same prediction.
    """
    if isinstance(flow, Standardized):
        inner = on_path(flow.flow, path)
        return eqx.tree_at(lambda flow: flow.flow, flow, inner)
    if not isinstance(flow, Flow):
        raise ValueError(
            f"`flow` must be a `fk.Flow`, which knows its path, got {type(flow).__name__}."
        )
    _check_ends(flow.path, path)
    return Flow(_OnPath(flow, path), path, flow.prediction)


def _check_ends(trained: AbstractPath, path: AbstractPath) -> None:
    """Where one path ends in more noise than the other, its samples are others."""
    ends = [each.coefficients(jnp.ones(())) for each in (trained, path)]
    ratios = [end.sigma / end.alpha for end in ends]
    if not is_traced(ratios) and abs(ratios[0] - ratios[1]) > 1e-5:
        raise ValueError(
            f"`path` ends with {float(ratios[1]):.3g} of noise for one of data, and the path of "
            f"`flow` with {float(ratios[0]):.3g}; only paths with equal ends have the same samples."
        )


class _OnPath(eqx.Module):
    """The network of a flow at the time and the scale of another path."""

    flow: Flow
    path: AbstractPath

    def __call__(
        self,
        t: Scalar,
        x: FloatArray,
        cond: Cond = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        flow = self.flow
        here = self.path.coefficients(self._cut(as_time(t, x.dtype)))
        # The same ratio of data and noise, and so the same conditional means.
        s = flow.path.time_of(here.alpha, here.sigma)
        # The ends of time of a network that is not to be evaluated there.
        s = clip_time(s, flow.t_start, flow.t_end)

        there = flow.path.coefficients(s)
        # By the sum of both coefficients, which is not 0 at either end.
        x = x * (there.alpha + there.sigma) / (here.alpha + here.sigma)
        predict = lambda target: flow.predict(target, s, x, cond, mask=mask, key=key)
        return flow.prediction.evaluate(here, predict(Noise()), predict(Target()))

    def _cut(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Away from ends at which the trained velocity says nothing about data and noise."""
        if not isinstance(self.flow.prediction, Velocity):
            return t
        velocity = self.flow.prediction
        return away_from_poles(t, self.flow.path, velocity, velocity, CUT)
