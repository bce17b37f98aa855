r"""Consistency: average velocities to the end, `F(x, s) = u(x, s, 1)`, with the velocity as an anchor or without.

The end $f(x, s) = x + (1 - s) F(x, s)$ of a jump is the same for all points of a trajectory, and $f(x, 1) = x$ by
construction. The derivative of $f$ along the flow is zero, which is the identity of the flow map at `t = 1`.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._blocks import check_block, mean_over_batch
from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import Velocity
from flowkit._losses import check_batch, uniform
from flowkit._masks import has_parameter
from flowkit._types import AnyArray, Cond, PRNGKey, VelocityField
from flowkit.few_step._flow_map import FlowMap, total_derivative
from flowkit.few_step._training import (
    AdaptiveWeight,
    draw,
    mean_square,
    weighted,
)


class _Error(eqx.Module):
    """`(flow_map, (example, s)) -> (error, its two parts)`."""

    anchor: bool
    weight: AdaptiveWeight | None
    clamp: float | None
    relaxation: float | None
    cosine: bool
    late_weight: bool
    teacher: VelocityField | None

    def __call__(
        self, flow_map: FlowMap, drawn
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        example, s = drawn
        keywords = {"mask": example.mask, "key": example.key}
        c = flow_map.path.coefficients(s)
        x = c.alpha * example.x1 + c.sigma * example.x0
        if self.teacher is None:
            v = Velocity().evaluate(c, example.x0, example.x1)
        else:
            masks = (
                {"mask": example.mask}
                if example.mask is not None and has_parameter(self.teacher, "mask")
                else {}
            )
            v = jax.lax.stop_gradient(self.teacher(s, x, example.cond, **masks))
        u, du = total_derivative(
            flow_map, s, jnp.ones_like(s), x, v, example.cond, **keywords
        )
        step = jax.lax.stop_gradient(u) - (v + (1 - s) * du)
        if self.clamp is not None:
            step = jnp.clip(step, -self.clamp, self.clamp)
        if self.relaxation is not None:
            step = (1 - s**self.relaxation) * step
        error = mean_square(u, jax.lax.stop_gradient(u) - step, example.mask)
        consistency = weighted(error, self.weight, example)
        if self.late_weight:
            consistency = jnp.cos(0.5 * jnp.pi * s) * consistency
        parts = {"consistency": consistency}
        if self.anchor:
            velocity = flow_map(s, s, x, example.cond, **keywords)
            anchor = mean_square(velocity, v, example.mask)
            if self.cosine:
                anchor = anchor + 1 - _cosine(velocity, v, example.mask)
            parts["anchor"] = weighted(anchor, None, example)
        return sum(parts.values(), jnp.zeros_like(s)), parts


def _cosine(
    a: Array, b: Array, mask: Array | None, eps: float = 1e-2
) -> Float[Array, ""]:
    """The mean cosine over the last axis; finite, with a finite gradient, at zero vectors."""
    dot, a2, b2 = (jnp.sum(product, axis=-1) for product in (a * b, a * a, b * b))
    value = dot / jnp.sqrt((a2 + eps**2) * (b2 + eps**2))
    if mask is None:
        return jnp.mean(value)
    return jnp.sum(jnp.where(mask, value, 0)) / jnp.sum(mask).astype(value.dtype)


@eqx.filter_jit
def _loss(flow_map, x1, cond, key, source, coupling, times, mask, block, error: _Error):
    examples, s = draw(flow_map, x1, cond, key, source, coupling, times, mask)
    loss, parts = mean_over_batch(error, flow_map, (examples, s), block=block)
    return loss, jax.tree.map(jnp.mean, parts)


def facm_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    times: Callable = uniform,
    weight: AdaptiveWeight | None = None,
    clamp: float | None = None,
    relaxation: float | None = 0.5,
    cosine: bool = False,
    late_weight: bool = True,
    teacher: VelocityField | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    r"""The loss of flow-anchored consistency models, and its two parts.

    With $F = u_\theta(x_s, s, 1)$, its derivative $dF/ds$ along the velocity $v$, and the step
    $g = \mathrm{sg}(F) - v - (1 - s)\, dF/ds$ that remains to the fixed point,

    $$\beta(s) \left\| F - \mathrm{sg}(F - a(s)\, g) \right\|^2 + \left\| u_\theta(x_s, s, s) - v \right\|^2,
    \qquad a = 1 - s^q, \quad \beta = \cos\frac{\pi s}{2}.$$

    The second term, flow matching, is the anchor without which the first forgets what the velocity is. The average
    velocity is a fixed point for every law of data with the defaults; `clamp` and `weight` keep that for symmetric
    errors only, `cosine` for symmetric errors of isotropic data.

    **Arguments:**

    - `flow_map`: of two times, or of one with `times=expanded_interval`.
    - `x1`, `cond`, `source`, `coupling`, `times`, `mask`, `block`: as in `fk.flow_matching_loss`.
    - `weight`: of the consistency error, whose mean square it sees.
    - `clamp`: bounds the entries of $g$.
    - `relaxation`: $q$; `None` for $a = 1$.
    - `cosine`: adds $1 - \cos(u, v)$ over the last axis to the anchor.
    - `late_weight`: whether $\beta$ is the cosine, or 1.
    - `teacher`: a velocity field in place of the velocity of the pair, for distillation; called `(t, x, cond)`, and
      with `mask=` if it takes one.

    **Returns:** the loss, and `{"consistency": ..., "anchor": ...}`, whose sum it is.

    **Reference:** Peng et al., FACM: Flow-Anchored Consistency Models, 2025 (arXiv 2507.03738).
    """
    check_batch(x1, cond, mask)
    check_block(block, x1.shape[0])
    for name, value in (("clamp", clamp), ("relaxation", relaxation)):
        if value is not None and not value > 0:
            raise ValueError(
                f"`{name}` must be positive, or `None` to do without, got {value}."
            )
    error = _Error(True, weight, clamp, relaxation, cosine, late_weight, teacher)
    return _loss(flow_map, x1, cond, key, source, coupling, times, mask, block, error)


def consistency_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    times: Callable = uniform,
    weight: AdaptiveWeight | None = None,
    teacher: VelocityField | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: int | None = None,
) -> Float[Array, ""]:
    r"""The loss of continuous-time consistency models, $\|F - \mathrm{sg}(v + (1 - s)\, dF/ds)\|^2$.

    It is the consistency part of `facm_loss`, whose arguments these are, without its relaxation and late weight. Give
    it a `teacher`, or use `facm_loss`, if training does not hold on to the velocity.

    **Reference:** Song et al., Consistency Models, 2023 (arXiv 2303.01469); Lu and Song, Simplifying, Stabilizing and
    Scaling Continuous-Time Consistency Models, 2024 (arXiv 2410.11081).
    """
    check_batch(x1, cond, mask)
    check_block(block, x1.shape[0])
    error = _Error(
        False, weight, None, None, cosine=False, late_weight=False, teacher=teacher
    )
    return _loss(flow_map, x1, cond, key, source, coupling, times, mask, block, error)[
        0
    ]
