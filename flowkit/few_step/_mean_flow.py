r"""Mean flow, improved mean flow and BackFlow: regression of the average velocity on its own total derivative.

With the velocity $v_c$ of a pair, and $u$, $du/ds$ as in `total_derivative` for a tangent $v$,

$$\ell = \Big\| u - \mathrm{sg}\Big(v_c + (t - s) \frac{du}{ds}\Big) \Big\|^2, \qquad L = \ell\, \mathrm{sg}(w(\ell)),$$

where sg stops the gradient. The three differ in two choices only:

| loss | tangent | pairs |
|---|---|---|
| `mean_flow_loss` | $v_c$ | $s \leq t$ |
| `improved_mean_flow_loss` | $u(x, s, s)$, without gradient | $s \leq t$ |
| `back_flow_loss` | $u(x, s, s)$, without gradient | both directions |

The target is linear in $v_c$, whose mean given $x$ is the velocity: the optimum is the average velocity. With the
tangent $v_c$ the variance of the target is larger by the square of $1 + (t - s) \partial_x u$.

The papers let time run from data to noise; here it runs from noise to data, and their laws of time are turned round.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._losses import Example
from flowkit._types import AnyArray, Cond, PRNGKey
from flowkit.few_step._errors import check_all_pairs, check_batch, keywords, mean_loss, reduced, start, weighted
from flowkit.few_step._flow_map import FlowMap, total_derivative
from flowkit.few_step._guidance import check_guidance, Guidance
from flowkit.few_step._pairs import any_order, check_ordered, PairDraw, TimePairs


Loss = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


def mean_flow_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    pairs: Callable = TimePairs(),
    weight: Callable | None = None,
    reduction: Callable = jnp.sum,
    guidance: Guidance | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: int | None = None,
) -> Loss:
    r"""The loss of mean flow, with the tangent $v_c$: see the formula at the top of the page.

    One evaluation with a forward-mode derivative for each example. The loss does not go to zero, and with
    `AdaptiveWeight(1.0)` it hardly moves: look at the part `squared_error`, and at samples.

    ```python
    loss, parts = fk.few_step.mean_flow_loss(flow_map, x1, key=key)
    ```

    **Arguments:**

    - `flow_map`: the flow map, with `times=both_times`.
    - `x1`, `cond`, `source`, `coupling`, `mask`, `block`: as in `fk.flow_matching_loss`.
    - `pairs`: the law of `(s, t)`, with `s <= t`.
    - `weight`: `AdaptiveWeight(...)`, or any function of the squared error of an example; `None` is 1.
    - `reduction`: `jnp.sum`, or `jnp.mean`, over the squared errors of the valid entries of an example.
    - `guidance`: `Guidance(...)`, to train a guided map.

    **Returns:** the loss, and the part `squared_error`, the same without weights.

    **Raises:** `ValueError` for batches that do not fit together, for pairs with `s > t`, and for a network without a
    forward-mode derivative.

    **Reference:** Geng et al., Mean Flows for One-step Generative Modeling (2025), arXiv 2505.13447.
    """
    check_ordered(pairs)
    error = _AverageVelocityError(False, weight, reduction, guidance)
    return _loss(error, True, flow_map, x1, cond, key, source, coupling, pairs, mask, block)


def improved_mean_flow_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    pairs: Callable = TimePairs(equal=0.5),
    weight: Callable | None = None,
    reduction: Callable = jnp.sum,
    guidance: Guidance | None = None,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: int | None = None,
) -> Loss:
    r"""The loss of improved mean flow: that of `mean_flow_loss` with the network's own velocity as tangent.

    The same optimum with less variance wherever the map spreads points, for one evaluation more.

    **Arguments, returns and errors:** as in `mean_flow_loss`. The paper's guidance with scale $w$ is
    `Guidance(null, scale=1.0, mix=1 - 1 / w)`.

    **Reference:** Geng et al., Improved Mean Flows (2025), arXiv 2512.02012.
    """
    check_ordered(pairs)
    error = _AverageVelocityError(True, weight, reduction, guidance)
    return _loss(error, True, flow_map, x1, cond, key, source, coupling, pairs, mask, block)


def back_flow_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    pairs: Callable = TimePairs(order=any_order, equal=0.25),
    weight: Callable | None = None,
    reduction: Callable = jnp.sum,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: int | None = None,
) -> Loss:
    r"""Improved mean flow in both directions of time: one map that decodes noise and encodes data, in one step each.

    The whole jumps between 0 and 1 are learnt from pairs near the two ends: a law that seldom draws them, such as
    `fk.LogitNormal(2.0, 2.0)`, learns them last.

    **Arguments, returns and errors:** as in `mean_flow_loss`, with pairs in any order and without guidance.

    **Reference:** Geng et al., Improved Mean Flows (2025), arXiv 2512.02012, for the loss.
    """
    error = _AverageVelocityError(True, weight, reduction, None)
    return _loss(error, False, flow_map, x1, cond, key, source, coupling, pairs, mask, block)


def _loss(error, ordered, flow_map, x1, cond, key, source, coupling, pairs, mask, block) -> Loss:
    check_batch(x1, cond, mask, block)
    check_all_pairs(flow_map)
    check_guidance(error.guidance, cond)
    draw = PairDraw(ordered, None if error.guidance is None else error.guidance.drop)
    return mean_loss(error, flow_map, x1, cond, key, source, coupling, pairs, mask, block, draw)


class _AverageVelocityError(eqx.Module):
    """The loss of one example, with the network's own velocity as tangent or that of the pair."""

    own_tangent: bool
    weight: Callable | None
    reduction: Callable
    guidance: Guidance | None

    def __call__(self, flow_map: FlowMap, example: Example):
        s, x, velocity = start(flow_map, example, example.t.s)
        t = jnp.minimum(example.t.t, flow_map.path.t_end)
        cond, others = example.cond, keywords(example)
        if self.guidance is not None:
            cond = self.guidance.replace(cond, example.t.dropped)
            velocity = self.guidance.velocity(flow_map, s, x, velocity, cond, example.t.dropped, **others)
        tangent = jax.lax.stop_gradient(flow_map(s, s, x, cond, **others)) if self.own_tangent else velocity
        u, derivative = total_derivative(flow_map, s, t, x, tangent, cond, **others)
        target = jax.lax.stop_gradient(velocity + (t - s) * derivative)
        square = reduced((u - target) ** 2, example.mask, self.reduction)
        return weighted(square, self.weight), {"squared_error": square}
