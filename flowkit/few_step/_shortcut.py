r"""Shortcut models: a step is as good as its two halves.

$$u(x, s, t) \leftarrow \tfrac12 \big(u(x, s, m) + u(x', m, t)\big), \qquad
x' = x + (m - s)\, u(x, s, m), \qquad m = \tfrac12 (s + t),$$

and $u(x, s, s) \leftarrow v_c$, the velocity of a pair. No derivative is taken, so any network will do.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._losses import Example
from flowkit._types import AnyArray, Cond, PRNGKey
from flowkit.few_step._errors import check_all_pairs, check_batch, keywords, mean_loss, reduced, start
from flowkit.few_step._flow_map import FlowMap
from flowkit.few_step._mean_flow import Loss
from flowkit.few_step._pairs import check_ordered, PairDraw, TimePairs


def shortcut_loss(
    flow_map: FlowMap,
    x1: Float[AnyArray, "batch ..."],
    cond: Cond = None,
    *,
    key: PRNGKey,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    pairs: Callable = TimePairs(),
    smallest_step: float = 0.0,
    mask: Bool[AnyArray, "batch n"] | None = None,
    block: int | None = None,
) -> Loss:
    r"""The loss of shortcut models, the mean squared error to the targets at the top of the page.

    Three evaluations for each example, two of them without gradient. With pairs of any length, the default, the optimum
    is the average velocity; with `DyadicPairs` and its `smallest_step`, the steps of Euler's method.

    **Arguments:**

    - `flow_map`: the flow map, with `times=both_times`.
    - `x1`, `cond`, `source`, `coupling`, `mask`, `block`: as in `fk.flow_matching_loss`.
    - `pairs`: the law of `(s, t)`, with `s <= t`; `DyadicPairs()` is that of the paper.
    - `smallest_step`: steps up to this length have half steps that no pair trains, and take the velocity in their
      place; $2^{1 - \mathrm{levels}}$ for `DyadicPairs(levels)`.

    **Returns:** the loss, and the part `squared_error`, which is the same without the factors of a coupling.

    **Raises:** `ValueError` for batches that do not fit together, and for pairs with `s > t`.

    **Reference:** Frans et al., One Step Diffusion via Shortcut Models (2024), arXiv 2410.12557.
    """
    check_batch(x1, cond, mask, block)
    check_all_pairs(flow_map)
    check_ordered(pairs)
    if not 0 <= smallest_step < 1:
        raise ValueError(f"`smallest_step` must be in [0, 1), got {smallest_step}.")
    error = _ShortcutError(smallest_step)
    return mean_loss(error, flow_map, x1, cond, key, source, coupling, pairs, mask, block, PairDraw(True))


class _ShortcutError(eqx.Module):
    smallest_step: float

    def __call__(self, flow_map: FlowMap, example: Example):
        s, x, velocity = start(flow_map, example, example.t.s)
        t = jnp.minimum(example.t.t, flow_map.path.t_end)
        cond, others = example.cond, keywords(example)
        middle = s + 0.5 * (t - s)
        # Half of such a step is never trained: its velocity is.
        short = t - s <= self.smallest_step
        first = flow_map(s, jnp.where(short, s, middle), x, cond, **others)
        halfway = x + (middle - s) * first
        second = flow_map(middle, jnp.where(short, middle, t), halfway, cond, **others)
        target = jnp.where(t == s, velocity, jax.lax.stop_gradient(0.5 * (first + second)))
        square = reduced((flow_map(s, t, x, cond, **others) - target) ** 2, example.mask, jnp.mean)
        return square, {"squared_error": square}
