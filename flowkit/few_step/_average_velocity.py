r"""Losses of average velocities: MeanFlow, improved MeanFlow, BackFlow.

All three regress $u_\theta(x_s, s, t)$ to $v_c + (t - s)\, \mathrm{sg}(du/ds)$, with $v_c$ the velocity of the pair,
which is right in expectation because the target is linear in it. They differ in the velocity along which $u$ is
differentiated, and in the law of the two times.
"""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._blocks import check_block, mean_over_batch
from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import Velocity
from flowkit._losses import check_batch, Example
from flowkit._types import AnyArray, Cond, is_traced, PRNGKey
from flowkit.few_step._flow_map import FlowMap, total_derivative
from flowkit.few_step._training import (
    AdaptiveWeight,
    check_all_pairs,
    check_ordered,
    draw,
    draw_pairs,
    mean_square,
    TimePairs,
    weighted,
)
from flowkit.guidance._classifier_free import null_of


class Guidance(eqx.Module):
    r"""Guidance that is trained in, so that a step costs one evaluation: the velocity of a pair becomes

    $$\omega v_c + \kappa\, u(x, s, s \mid c) + (1 - \omega - \kappa)\, u(x, s, s \mid \varnothing),$$

    network terms without gradient. That is guidance of scale $\omega / (1 - \kappa)$. Conditions are left out with the
    given probability; such examples keep $v_c$.

    **Arguments:** `scale` $\omega$, `mix` $\kappa$ below 1, the `dropout` probability, and `null`, the condition of one
    example that stands for none, zeros by default.

    **Reference:** Geng et al., Mean Flows for One-step Generative Modeling, 2025 (arXiv 2505.13447), appendix.
    """

    scale: float = 1.0
    mix: float = 0.5
    dropout: float = 0.1
    null: Any = None

    def __check_init__(self):
        if not is_traced(self.mix) and not self.mix < 1:
            raise ValueError(
                f"`mix` must be below 1, got {self.mix}; the scale is `scale / (1 - mix)`."
            )
        if not is_traced(self.dropout) and not 0 <= self.dropout < 1:
            raise ValueError(
                f"`dropout` must be a probability below 1, got {self.dropout}."
            )

    def velocity(self, flow_map, example: Example, s, x, v, dropped, keywords):
        """The guided velocity of an example, and its condition."""
        null = null_of(example.cond, self.null)
        cond = jax.tree.map(
            lambda row, none: jnp.where(dropped, none, row), example.cond, null
        )
        conditional, without = (
            flow_map(s, s, x, c, **keywords) for c in (example.cond, null)
        )
        guided = (
            self.scale * v
            + self.mix * conditional
            + (1 - self.scale - self.mix) * without
        )
        return jax.lax.stop_gradient(jnp.where(dropped, v, guided)), cond


class _Error(eqx.Module):
    """The error of one example, `(flow_map, (example, s, t, dropped)) -> (error, None)`."""

    along_model: bool
    weight: AdaptiveWeight | None
    guidance: Guidance | None

    def __call__(self, flow_map: FlowMap, drawn) -> tuple[Float[Array, ""], None]:
        example, s, t, dropped = drawn
        keywords = {"mask": example.mask, "key": example.key}
        c = flow_map.path.coefficients(s)
        x = c.alpha * example.x1 + c.sigma * example.x0
        v, cond = Velocity().evaluate(c, example.x0, example.x1), example.cond
        if self.guidance is not None:
            v, cond = self.guidance.velocity(
                flow_map, example, s, x, v, dropped, keywords
            )
        tangent = (
            jax.lax.stop_gradient(flow_map(s, s, x, cond, **keywords))
            if self.along_model
            else v
        )
        u, du = total_derivative(flow_map, s, t, x, tangent, cond, **keywords)
        return weighted(
            mean_square(u, v + (t - s) * du, example.mask), self.weight, example
        ), None


@eqx.filter_jit
def _loss(
    flow_map,
    x1,
    cond,
    key,
    source,
    coupling,
    pairs,
    mask,
    block,
    error: _Error,
    ordered: bool,
):
    dkey, gkey = jr.split(key)
    law = ft.partial(draw_pairs, ordered=ordered)
    examples, (s, t) = draw(
        flow_map, x1, cond, dkey, source, coupling, pairs, mask, law=law
    )
    dropped = (
        None
        if error.guidance is None
        else jr.bernoulli(gkey, error.guidance.dropout, s.shape)
    )
    return mean_over_batch(error, flow_map, (examples, s, t, dropped), block=block)[0]


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
    block: int | None = None,
) -> Float[Array, ""]:
    r"""The MeanFlow loss of a batch, a scalar.

    $$\left\| u_\theta(x_s, s, t) - \mathrm{sg}\left(v_c + (t - s)\,(\partial_x u \cdot v_c + \partial_s u)\right)
    \right\|^2$$

    the mean over valid entries and examples. It does not go to zero. The derivative is taken along the velocity of the
    pair, whose noise it multiplies by how much the flow spreads points from `s` to `t`: where data are wider than
    noise the target of `improved_mean_flow_loss` has the smaller variance, where they are narrower this one.

    **Arguments:**

    - `flow_map`: the map, of two times.
    - `x1`, `cond`, `source`, `coupling`, `mask`, `block`: as in `fk.flow_matching_loss`.
    - `pairs`: the law of the two times, `(num, *, key) -> (s, t)`, with `s <= t`.
    - `weight`: of the errors; none by default.
    - `guidance`: trains a guided map; needs `cond`.

    **Raises:** `ValueError` for batches that do not fit together, guidance without a condition, pairs with `s > t`, and
    networks without a forward-mode derivative.

    **Reference:** Geng et al., Mean Flows for One-step Generative Modeling, 2025 (arXiv 2505.13447).
    """
    check_ordered(pairs)
    _check(flow_map, x1, cond, mask, guidance, block)
    error = _Error(along_model=False, weight=weight, guidance=guidance)
    return _loss(
        flow_map, x1, cond, key, source, coupling, pairs, mask, block, error, True
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
    block: int | None = None,
) -> Float[Array, ""]:
    r"""The improved MeanFlow loss: as `mean_flow_loss`, but differentiated along the map's own velocity.

    $$\left\| u_\theta(x_s, s, t) - \mathrm{sg}\left(v_c + (t - s)\,(\partial_x u \cdot \hat v + \partial_s u)\right)
    \right\|^2, \qquad \hat v = u_\theta(x_s, s, s)$$

    One more evaluation, and a target whose variance is that of $v_c$ whatever the flow does, less than that of
    `mean_flow_loss` where the flow spreads points. Arguments and errors are those of `mean_flow_loss`.

    **Reference:** Geng et al., Improved Mean Flows, 2025 (arXiv 2512.02012).
    """
    check_ordered(pairs)
    _check(flow_map, x1, cond, mask, guidance, block)
    error = _Error(along_model=True, weight=weight, guidance=guidance)
    return _loss(
        flow_map, x1, cond, key, source, coupling, pairs, mask, block, error, True
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
    block: int | None = None,
) -> Float[Array, ""]:
    """The BackFlow loss: improved MeanFlow in both directions of time.

    The two times are not ordered, so the same network learns to decode, `x0 + u(x0, 0, 1)`, and to encode,
    `x1 - u(x1, 1, 0)`, each in one step: `fk.few_step.sample` and `fk.few_step.encode`. Arguments and errors are those
    of `mean_flow_loss`.
    """
    _check(flow_map, x1, cond, mask, None, block)
    error = _Error(along_model=True, weight=weight, guidance=None)
    return _loss(
        flow_map, x1, cond, key, source, coupling, pairs, mask, block, error, False
    )


def _check(flow_map, x1, cond, mask, guidance, block) -> None:
    check_batch(x1, cond, mask)
    check_block(block, x1.shape[0])
    check_all_pairs(flow_map)
    if guidance is None:
        return
    if not jax.tree.leaves(cond):
        raise ValueError("`guidance` needs `cond`, the condition that it strengthens.")
    if guidance.null is not None:
        of_example = jax.tree.map(lambda leaf: leaf.shape[1:], cond)
        of_null = jax.tree.map(jnp.shape, guidance.null)
        if of_example != of_null:
            raise ValueError(
                f"`null` must be the condition of one example, of shape {of_example}, got {of_null}."
            )
