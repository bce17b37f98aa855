r"""Consistency: average velocities to the end, with or without the velocity as an anchor.

With $F(x, s) = u(x, s, 1)$, the end $f(x, s) = x + (1 - s) F(x, s)$ of a jump is the same
for all points of a trajectory, and $f(x, 1) = x$ by construction. The derivative of $f$
along the flow is zero, which is the identity of the flow map at `t = 1`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._blocks import AutomaticBlock, Block, check_block, mean_over_batch
from flowkit._checks import check_call, check_instance
from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import check_bare
from flowkit._losses import Batch, check_batch, Draw, Example, uniform
from flowkit._masks import has_parameter, masked_mean
from flowkit._types import AnyArray, Cond, PRNGKey, sum_dtype, VelocityField
from flowkit.few_step._adaptive_weight import AdaptiveWeight, mean_square, weighted
from flowkit.few_step._draw import draw_with_times, path_point, PathPoint
from flowkit.few_step._flow_map import FlowMap, total_derivative


class _ConsistencyError(eqx.Module):
    """The consistency error of one example."""

    weight: AdaptiveWeight | None
    teacher: VelocityField | None

    def __call__(
        self, flow_map: FlowMap, example: Example
    ) -> tuple[Float[Array, ""], None]:
        point = _taught_point(flow_map, example, self.teacher)
        u, step = _remaining_step(flow_map, example, point)
        return weighted(_step_error(u, step, example), self.weight, example), None


class _AnchoredError(eqx.Module):
    """The consistency error of one example and its anchor, a flow-matching error."""

    weight: AdaptiveWeight | None
    clamp: float | None
    relaxation: float | None
    cosine: bool
    late_weight: bool
    teacher: VelocityField | None

    def __call__(
        self, flow_map: FlowMap, example: Example
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        point = _taught_point(flow_map, example, self.teacher)
        parts = {
            "consistency": self._consistency(flow_map, example, point),
            "anchor": self._anchor(flow_map, example, point),
        }
        return parts["consistency"] + parts["anchor"], parts

    def _consistency(
        self, flow_map: FlowMap, example: Example, point: PathPoint
    ) -> Float[Array, ""]:
        s = example.t
        u, step = _remaining_step(flow_map, example, point)
        if self.clamp is not None:
            # Clamped before it is relaxed: the bound is for the step itself.
            step = jnp.clip(step, -self.clamp, self.clamp)
        if self.relaxation is not None:
            step = (1 - s**self.relaxation) * step

        error = weighted(_step_error(u, step, example), self.weight, example)
        if self.late_weight:
            error = jnp.cos(0.5 * jnp.pi * s) * error
        return error

    def _anchor(
        self, flow_map: FlowMap, example: Example, point: PathPoint
    ) -> Float[Array, ""]:
        x, v = point
        s = example.t
        keywords = {"mask": example.mask, "key": example.key}
        # Equal times: the network as a velocity, not as a jump.
        velocity = flow_map(s, s, x, example.cond, **keywords)

        error = mean_square(velocity, v, example.mask)
        if self.cosine:
            error = error + 1 - _cosine(velocity, v, example.mask)
        return weighted(error, None, example)


def _check_teacher(teacher: VelocityField | None) -> None:
    """Raises for what is no velocity field, or has units."""
    check_bare("teacher", teacher)
    if isinstance(teacher, FlowMap):
        raise ValueError(
            "`teacher` is a `fk.few_step.FlowMap`; "
            "give `fk.few_step.velocity_of(teacher)`."
        )
    if teacher is not None:
        check_instance("teacher", teacher)
        check_call("teacher", teacher, "t, x, cond")


def _taught_point(
    flow_map: FlowMap, example: Example, teacher: VelocityField | None
) -> PathPoint:
    """The point of an example, with the velocity of the pair or that of a teacher."""
    point = path_point(flow_map, example, example.t)
    if teacher is None:
        return point

    # A teacher does not learn, so it has no dropout.
    field: Any = eqx.nn.inference_mode(teacher)
    keywords = {}
    if example.mask is not None and has_parameter(field, "mask"):
        keywords = {"mask": example.mask}
    velocity = field(example.t, point.x, example.cond, **keywords)
    return point._replace(velocity=jax.lax.stop_gradient(velocity))


def _remaining_step(
    flow_map: FlowMap, example: Example, point: PathPoint
) -> tuple[Array, Array]:
    """`F`, and what remains from it to the fixed point, `F - v - (1 - s) dF/ds`."""
    x, v = point
    s = example.t
    keywords = {"mask": example.mask, "key": example.key}
    u, du = total_derivative(
        flow_map, s, jnp.ones_like(s), x, v, example.cond, **keywords
    )
    return u, jax.lax.stop_gradient(u) - (v + (1 - s) * du)


def _step_error(u: Array, step: Array, example: Example) -> Float[Array, ""]:
    """The square of a step, whose gradient moves `u` against it."""
    return mean_square(u, jax.lax.stop_gradient(u) - step, example.mask)


def _cosine(a: Array, b: Array, mask: Array | None) -> Float[Array, ""]:
    """The mean cosine over the last axis; finite, with a finite gradient, at zero vectors."""
    # Far below the length of a velocity, and large enough for the derivative of its root.
    tiny = 1e-4
    wide = sum_dtype(a.dtype)
    a = a.astype(wide)
    b = b.astype(wide)
    squares_a = jnp.sum(a * a, axis=-1) + tiny
    squares_b = jnp.sum(b * b, axis=-1) + tiny
    cosines = jnp.sum(a * b, axis=-1) / jnp.sqrt(squares_a * squares_b)
    return masked_mean(cosines, mask)


@eqx.filter_jit
def _loss(
    flow_map: FlowMap,
    batch: Batch,
    draw: Draw,
    key: PRNGKey,
    error: Callable,
    *,
    block: Block,
) -> tuple[Float[Array, ""], Any]:
    examples = draw_with_times(flow_map, batch, draw, key)
    loss, parts = mean_over_batch(error, flow_map, examples, block=block)

    # The loss without an anchor has no parts: `None` maps to `None`.
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
    block: Block = AutomaticBlock(),
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    r"""The loss of flow-anchored consistency models, and its two parts.

    With $F = u_\theta(x_s, s, 1)$, its derivative $dF/ds$ along the velocity $v$, and the
    step $g = \mathrm{sg}(F) - v - (1 - s)\, dF/ds$ that remains to the fixed point,

    $$\beta(s) \left\| F - \mathrm{sg}(F - a(s)\, g) \right\|^2
      + \left\| u_\theta(x_s, s, s) - v \right\|^2,
      \qquad a = 1 - s^q, \quad \beta = \cos\frac{\pi s}{2}.$$

    The second term, flow matching, is the anchor without which the first forgets the
    velocity. With the defaults the average velocity is a fixed point for every distribution
    of data. With `clamp` or `weight`, this holds only for symmetric errors, and with
    `cosine`, only for symmetric errors of isotropic data.

    **Arguments:**

    - `flow_map`: a map of two times, or of one with `times=expanded_interval`.
    - `x1`, `cond`, `source`, `coupling`, `times`, `mask`, `block`: as in
      `fk.flow_matching_loss`.
    - `weight`: the weight of the consistency error, computed from its mean square.
    - `clamp`: the bound of the entries of $g$.
    - `relaxation`: $q$; `None` for $a = 1$.
    - `cosine`: whether to add $1 - \cos(u, v)$ over the last axis to the anchor.
    - `late_weight`: whether $\beta$ is the cosine, or 1.
    - `teacher`: a velocity field that replaces the velocity of the pair, for distillation;
      called `(t, x, cond)` in inference mode, and with `mask=` if it takes one. It is
      evaluated on the same data as the map: if it is a `fk.Standardized`, give its `flow`,
      and standardize the data.

    **Returns:** the loss, and `{"consistency": ..., "anchor": ...}`, whose sum it is.

    **Reference:** Peng et al., FACM: Flow-Anchored Consistency Models, 2025 (arXiv
    2507.03738).
    """
    check_batch(x1, cond, mask)
    check_block(block, x1.shape[0])
    _check_teacher(teacher)
    for name, value in (("clamp", clamp), ("relaxation", relaxation)):
        if value is not None and not value > 0:
            raise ValueError(
                f"`{name}` must be positive, or `None` to do without, got {value}."
            )

    return _loss(
        flow_map,
        Batch(x1, cond, mask),
        Draw(source, coupling, times),
        key,
        _AnchoredError(weight, clamp, relaxation, cosine, late_weight, teacher),
        block=block,
    )


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
    block: Block = AutomaticBlock(),
) -> Float[Array, ""]:
    r"""The loss of continuous-time consistency models.

    $$\left\| F - \mathrm{sg}(v + (1 - s)\, dF/ds) \right\|^2$$

    This is the consistency part of `facm_loss`, without its relaxation and late weight. The
    arguments are the same. Pass a `teacher`, or use `facm_loss`, if training loses the
    velocity.

    **Reference:** Song et al., Consistency Models, 2023 (arXiv 2303.01469); Lu and Song,
    Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, 2024 (arXiv
    2410.11081).
    """
    check_batch(x1, cond, mask)
    check_block(block, x1.shape[0])
    _check_teacher(teacher)
    loss, _ = _loss(
        flow_map,
        Batch(x1, cond, mask),
        Draw(source, coupling, times),
        key,
        _ConsistencyError(weight, teacher),
        block=block,
    )

    return loss
