r"""Consistency models in continuous time, and FACM, which anchors them by flow matching.

Only two slices of the map are trained, the jumps to $t = 1$ and the velocity. With $F = u(x, s, 1)$, its total
derivative along the velocity $v$ of a pair (or of a teacher), and sg for no gradient, the residual of the consistency
term is

$$g = \mathrm{sg}(F) - \Big(v + (1 - s)\, \mathrm{sg}\Big(\frac{dF}{ds}\Big)\Big),$$

perhaps clipped to $[-c, c]$ or normalised to $g / (\|g\| + c)$, and

$$e = \mathrm{mean}\, \|F - \mathrm{sg}(F - a(s)\, g)\|^2, \qquad a(s) = 1 - s^q, \qquad
L = \beta(s)\, e\, \mathrm{sg}(w(e)) + L_{\mathrm{anchor}}.$$

The gradient of $e$ is that of $2 a(s) \langle g, F \rangle$, so the optimum has $\mathbb E[g \mid x] = 0$, which is the
average velocity, as long as neither clipping nor weights bias it.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._checks import accepts
from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._losses import Example
from flowkit._times import uniform
from flowkit._types import AnyArray, Cond, PRNGKey, VelocityField
from flowkit.few_step._errors import check_batch, keywords, mean_loss, reduced, Start, start, weighted
from flowkit.few_step._flow_map import FlowMap, total_derivative
from flowkit.few_step._mean_flow import Loss
from flowkit.few_step._weights import cosine_decay


def consistency_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    times: Callable = uniform,
    weight: Callable | None = None,
    clamp: float | None = None,
    normalize: float | None = None,
    relaxation: float | None = None,
    time_weight: Callable | None = None,
    teacher: VelocityField | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: int | None = None,
) -> Loss:
    r"""The consistency term alone, in continuous time: see the formula at the top of the page.

    It trains jumps to $t = 1$, and no velocity: without a teacher, or a start from a trained flow, it is the least
    stable of these losses, and `velocity_of` such a map means nothing.

    **Arguments:**

    - `flow_map`: the flow map.
    - `x1`, `cond`, `source`, `coupling`, `times`, `mask`, `block`: as in `fk.flow_matching_loss`.
    - `weight`: $w$, `AdaptiveWeight(...)`, or any function of the squared error of an example; `None` is 1.
    - `clamp`: clips the entries of $g$ to $[-c, c]$.
    - `normalize`: $c$ of $g / (\|g\| + c)$, the norm over an example.
    - `relaxation`: $q$ of $a(s) = 1 - s^q$; `None` is $a = 1$.
    - `time_weight`: $\beta$, such as `cosine_decay`; `None` is 1.
    - `teacher`: a velocity field `(t, x, cond)` in the place of the velocity of the pair: distillation. A guided field
      gives a guided map.

    **Returns:** the loss, and the part `consistency_error`, the mean square of $g$ as it was before clipping.

    **Raises:** `ValueError` for batches that do not fit together, for a network without a forward-mode derivative, and
    for `clamp` together with `normalize`.

    **Reference:** Song et al., Consistency Models (2023), arXiv 2303.01469; Lu and Song, Simplifying, Stabilizing and
    Scaling Continuous-Time Consistency Models (2024), arXiv 2410.11081, for normalised residuals.
    """
    error = _consistency(weight, clamp, normalize, relaxation, time_weight)
    check_batch(x1, cond, mask, block)
    error = _TwoSlices(error, None, teacher)
    return mean_loss(error, flow_map, x1, cond, key, source, coupling, times, mask, block)


def facm_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    times: Callable = uniform,
    weight: Callable | None = None,
    clamp: float | None = None,
    relaxation: float | None = 0.5,
    time_weight: Callable | None = cosine_decay,
    cosine: bool = False,
    teacher: VelocityField | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: int | None = None,
) -> Loss:
    r"""The loss of a flow-anchored consistency model: the consistency term, and flow matching of $u(x, s, s)$ to $v$.

    $$L_{\mathrm{anchor}} = \mathrm{mean}\, \|u(x, s, s) - v\|^2 + \big[1 - \cos(u, v)\big]$$

    One evaluation with a forward-mode derivative and one without for each example. The map may have
    `times=both_times`, or `times=expanded_interval` for a network of one time.

    **Arguments:** as in `consistency_loss`, and

    - `cosine`: the term in brackets, the cosine taken along the last axis of an example (all of a vector, each point
      of a cloud, each pixel of an image). It moves the velocity away from the mean unless data are isotropic.

    **Returns:** the loss, and the parts `consistency_error`, the mean square of $g$, and `anchor_error`, the mean
    square of the anchor.

    **Reference:** Peng et al., FACM: Flow-Anchored Consistency Models (2025), arXiv 2507.03738.
    """
    error = _consistency(weight, clamp, None, relaxation, time_weight)
    check_batch(x1, cond, mask, block)
    error = _TwoSlices(error, _Anchor(cosine), teacher)
    return mean_loss(error, flow_map, x1, cond, key, source, coupling, times, mask, block)


def _consistency(weight, clamp, normalize, relaxation, time_weight) -> "_Consistency":
    if clamp is not None and normalize is not None:
        raise ValueError("give `clamp` or `normalize`, not both: each bounds the residual.")
    for name, value in (("clamp", clamp), ("normalize", normalize), ("relaxation", relaxation)):
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` must be positive, or None to leave it out; got {value}.")
    return _Consistency(weight, clamp, normalize, relaxation, time_weight)


class _Consistency(eqx.Module):
    """The consistency term of one example."""

    weight: Callable | None
    clamp: float | None
    normalize: float | None
    relaxation: float | None
    time_weight: Callable | None

    def __call__(self, flow_map: FlowMap, example: Example, at: Start):
        s, x, velocity = at
        end = jnp.ones_like(s)
        value, derivative = total_derivative(flow_map, s, end, x, velocity, example.cond, **keywords(example))
        residual = jax.lax.stop_gradient(value - velocity - (end - s) * derivative)
        relaxed = 1.0 if self.relaxation is None else 1 - s**self.relaxation
        target = jax.lax.stop_gradient(value - relaxed * self._bounded(residual))
        square = reduced((value - target) ** 2, example.mask, jnp.mean)
        loss = weighted(square, self.weight)
        loss = loss if self.time_weight is None else self.time_weight(s) * loss
        return loss, {"consistency_error": reduced(residual**2, example.mask, jnp.mean)}

    def _bounded(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.clamp is not None:
            return jnp.clip(residual, -self.clamp, self.clamp)
        if self.normalize is not None:
            return residual / (jnp.sqrt(jnp.sum(residual**2)) + self.normalize)
        return residual


_NORM_FLOOR = 1e-2
"""Added to norms in the cosine, whose gradient would be NaN at an output of zero, where networks start."""


class _Anchor(eqx.Module):
    """The flow-matching term of one example."""

    cosine: bool

    def __call__(self, flow_map: FlowMap, example: Example, at: Start):
        s, x, velocity = at
        value = flow_map(s, s, x, example.cond, **keywords(example))
        square = reduced((value - velocity) ** 2, example.mask, jnp.mean)
        loss = square + self._angle(value, velocity, example.mask) if self.cosine else square
        return loss, {"anchor_error": square}

    def _angle(self, value, velocity, mask) -> Float[Array, ""]:
        along = lambda product: jnp.sum(product, axis=-1, keepdims=True)
        norms = (along(value**2) + _NORM_FLOOR**2) * (along(velocity**2) + _NORM_FLOOR**2)
        return 1 - reduced(along(value * velocity) / jnp.sqrt(norms), mask, jnp.mean)


class _TwoSlices(eqx.Module):
    """The terms of one example, along the velocity of the pair or that of a teacher."""

    consistency: _Consistency
    anchor: _Anchor | None
    teacher: VelocityField | None

    def __call__(self, flow_map: FlowMap, example: Example):
        at = start(flow_map, example, example.t)
        if self.teacher is not None:
            at = at._replace(velocity=self._taught(at, example))
        loss, parts = self.consistency(flow_map, example, at)
        if self.anchor is None:
            return loss, parts
        anchor, anchor_parts = self.anchor(flow_map, example, at)
        return loss + anchor, parts | anchor_parts

    def _taught(self, at: Start, example: Example) -> Float[Array, "..."]:
        teacher = eqx.nn.inference_mode(self.teacher)
        masks = {"mask": example.mask} if example.mask is not None and accepts(teacher, "mask") else {}
        return jax.lax.stop_gradient(teacher(at.s, at.x, example.cond, **masks))
