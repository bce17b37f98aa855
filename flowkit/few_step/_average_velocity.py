r"""Losses of average velocities: MeanFlow, improved MeanFlow, BackFlow.

All three regress $u_\theta(x_s, s, t)$ to $v_c + (t - s)\, \mathrm{sg}(du/ds)$, with $v_c$
the velocity of the pair. This is correct in expectation because the target is linear in
$v_c$. The losses differ in the velocity along which $u$ is differentiated, and in the
distribution of the two times.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._blocks import AutomaticBlock, Block, check_block, mean_over_batch
from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._losses import Batch, check_batch, Draw, Example
from flowkit._types import AnyArray, Cond, is_traced, PRNGKey, Scalar
from flowkit.few_step._adaptive_weight import AdaptiveWeight, mean_square, weighted
from flowkit.few_step._draw import (
    check_all_pairs,
    draw_with_times,
    path_point,
    PathPoint,
)
from flowkit.few_step._flow_map import FlowMap, total_derivative
from flowkit.few_step._time_pairs import (
    check_ordered,
    draw_ordered_pairs,
    draw_pairs,
    TimePairs,
)
from flowkit.guidance._classifier_free import null_of


class Guidance(eqx.Module):
    r"""Guidance that is built into training, so that a step costs one evaluation.

    The velocity of a pair becomes

    $$\omega v_c + \kappa\, u(x, s, s \mid c)
      + (1 - \omega - \kappa)\, u(x, s, s \mid \varnothing),$$

    network terms without gradient. That is guidance of scale $\omega / (1 - \kappa)$.
    Conditions are dropped at random; examples without one keep $v_c$.

    **Arguments:**

    - `scale`: $\omega$.
    - `mix`: $\kappa$, below 1.
    - `dropout`: the probability that a condition is dropped.
    - `null`: the condition that stands for none, as in `fk.guided`.

    **Reference:** Geng et al., Mean Flows for One-step Generative Modeling, 2025 (arXiv
    2505.13447), appendix.
    """

    scale: Scalar = 1.0
    mix: Scalar = 0.5
    dropout: Scalar = 0.1
    null: Any = None

    def __check_init__(self):
        if not is_traced(self.mix) and not self.mix < 1:
            raise ValueError(
                f"`mix` must be below 1, got {self.mix}; the scale of guidance is "
                "`scale / (1 - mix)`."
            )
        if not is_traced(self.dropout) and not 0 <= self.dropout < 1:
            raise ValueError(
                f"`dropout` must be a probability below 1, got {self.dropout}."
            )


class _Error(eqx.Module):
    """The error of one example, with its times `(s, t)` and, in `extra`, whether its
    condition is dropped."""

    along_model: bool
    weight: AdaptiveWeight | None
    guidance: Guidance | None = None

    def __call__(
        self, flow_map: FlowMap, example: Example
    ) -> tuple[Float[Array, ""], None]:
        s, t = example.t
        point = path_point(flow_map, example, s)
        if self.guidance is not None:
            point, example = _guided(self.guidance, flow_map, example, point)

        keywords = {"mask": example.mask, "key": example.key}
        x, v = point
        tangent = v
        if self.along_model:
            own_velocity = flow_map(s, s, x, example.cond, **keywords)
            tangent = jax.lax.stop_gradient(own_velocity)

        u, du = total_derivative(flow_map, s, t, x, tangent, example.cond, **keywords)
        # The target always contains the velocity of the pair, whatever the tangent is.
        # It is linear in this velocity, so its mean over pairs is correct.
        error = mean_square(u, v + (t - s) * du, example.mask)
        return weighted(error, self.weight, example), None


def _guided(
    guidance: Guidance, flow_map: FlowMap, example: Example, point: PathPoint
) -> tuple[PathPoint, Example]:
    """The point with the guided velocity, and the example with its condition or none."""
    s, _ = example.t
    x, v = point
    dropped = example.extra
    null = null_of(example.cond, guidance.null)
    keywords = {"mask": example.mask, "key": example.key}

    with_condition = flow_map(s, s, x, example.cond, **keywords)
    without = flow_map(s, s, x, null, **keywords)
    scale = jnp.asarray(guidance.scale, v.dtype)
    mix = jnp.asarray(guidance.mix, v.dtype)
    guided = scale * v + mix * with_condition + (1 - scale - mix) * without

    velocity = jax.lax.stop_gradient(jnp.where(dropped, v, guided))
    drop = lambda row, none: jnp.where(dropped, none, row)
    # Replaced only now: all examples of a batch run in one program, so the terms above
    # are computed with the condition even where it is dropped.
    cond = jax.tree.map(drop, example.cond, null)
    return PathPoint(x, velocity), example._replace(cond=cond)


@eqx.filter_jit
def _loss(
    flow_map: FlowMap,
    batch: Batch,
    draw: Draw,
    key: PRNGKey,
    error: _Error,
    *,
    pairs_of: Callable,
    block: Block,
) -> Float[Array, ""]:
    # Split with or without guidance, so that the other draws are the same.
    dkey, gkey = jr.split(key)
    examples = draw_with_times(flow_map, batch, draw, dkey, pairs_of)
    if error.guidance is not None:
        num = batch.x1.shape[0]
        dropout = jnp.asarray(error.guidance.dropout, float)
        dropped = jr.bernoulli(gkey, dropout, (num,))
        examples = examples._replace(extra=dropped)
    loss, _ = mean_over_batch(error, flow_map, examples, block=block)
    return loss


def mean_flow_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    pairs: Callable = TimePairs(),
    weight: AdaptiveWeight | None = None,
    guidance: Guidance | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: Block = AutomaticBlock(),
) -> Float[Array, ""]:
    r"""The MeanFlow loss of a batch, a scalar.

    $$\left\| u_\theta(x_s, s, t)
      - \mathrm{sg}\left(v_c + (t - s)\,(\partial_x u \cdot v_c + \partial_s u)\right)
      \right\|^2$$

    averaged over valid entries and examples. It does not go to zero. The derivative is
    taken along the velocity of the pair. This multiplies the noise in that velocity by how
    much the flow spreads points from `s` to `t`. If the data are wider than the noise, the
    target of `improved_mean_flow_loss` has the smaller variance; if they are narrower,
    this one does.

    **Arguments:**

    - `flow_map`: the map, of two times.
    - `x1`, `cond`, `source`, `coupling`, `mask`, `block`: as in `fk.flow_matching_loss`.
    - `pairs`: the distribution of the two times, `(num, *, key) -> (s, t)`, with `s <= t`.
    - `weight`: the weight of the errors; none by default.
    - `guidance`: trains a guided map; needs `cond`.

    **Raises:** `ValueError` for batches that do not fit together, guidance without a
    condition, pairs with `s > t`, and networks without a forward-mode derivative.

    **Reference:** Geng et al., Mean Flows for One-step Generative Modeling, 2025 (arXiv
    2505.13447).
    """
    check_ordered(pairs)
    _check(flow_map, x1, cond, mask, block)
    _check_guidance(guidance, cond)
    return _loss(
        flow_map,
        Batch(x1, cond, mask),
        Draw(source, coupling, pairs),
        key,
        _Error(False, weight, guidance),
        pairs_of=draw_ordered_pairs,
        block=block,
    )


def improved_mean_flow_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    pairs: Callable = TimePairs(equal=0.5),
    weight: AdaptiveWeight | None = None,
    guidance: Guidance | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: Block = AutomaticBlock(),
) -> Float[Array, ""]:
    r"""The improved MeanFlow loss, which is differentiated along the map's own velocity.

    $$\left\| u_\theta(x_s, s, t)
      - \mathrm{sg}\left(v_c + (t - s)\,(\partial_x u \cdot \hat v + \partial_s u)\right)
      \right\|^2, \qquad \hat v = u_\theta(x_s, s, s)$$

    It costs one more evaluation than `mean_flow_loss`. The variance of its target is that
    of $v_c$ whatever the flow does, which is smaller where the flow spreads points.
    Arguments and errors are those of `mean_flow_loss`.

    **Reference:** Geng et al., Improved Mean Flows, 2025 (arXiv 2512.02012).
    """
    check_ordered(pairs)
    _check(flow_map, x1, cond, mask, block)
    _check_guidance(guidance, cond)
    return _loss(
        flow_map,
        Batch(x1, cond, mask),
        Draw(source, coupling, pairs),
        key,
        _Error(True, weight, guidance),
        pairs_of=draw_ordered_pairs,
        block=block,
    )


def back_flow_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    pairs: Callable = TimePairs(equal=0.25, ordered=False),
    weight: AdaptiveWeight | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: Block = AutomaticBlock(),
) -> Float[Array, ""]:
    """The BackFlow loss: improved MeanFlow in both directions of time.

    The two times are not ordered, so the same network learns to decode, `x0 + u(x0, 0, 1)`,
    and to encode, `x1 - u(x1, 1, 0)`, each in one step: `fk.few_step.sample` and
    `fk.few_step.encode`. Arguments and errors are those of `mean_flow_loss`, without
    `guidance`; `pairs` need not be ordered.
    """
    _check(flow_map, x1, cond, mask, block)
    return _loss(
        flow_map,
        Batch(x1, cond, mask),
        Draw(source, coupling, pairs),
        key,
        _Error(True, weight),
        pairs_of=draw_pairs,
        block=block,
    )


def _check(
    flow_map: FlowMap, x1: AnyArray, cond: Cond, mask: Any, block: Block
) -> None:
    check_batch(x1, cond, mask)
    check_block(block, x1.shape[0])
    check_all_pairs(flow_map)


def _check_guidance(guidance: Guidance | None, cond: Cond) -> None:
    if guidance is not None and not jax.tree.leaves(cond):
        raise ValueError("`guidance` needs `cond`, the condition that it strengthens.")
