"""Reflow: flow matching on the pairs that a trained flow makes. Their paths do not cross."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Array, Float

from flowkit._checks import as_shape, as_size
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._solve import sample
from flowkit._types import Cond, PRNGKey, VelocityField


class ReflowPairs(NamedTuple):
    """Noise, and the data that the flow carries it to."""

    x0: Float[Array, "pairs ..."]
    x1: Float[Array, "pairs ..."]


def reflow_pairs(
    flow: VelocityField,
    shape: Sequence[int],
    num_pairs: int,
    *,
    key: PRNGKey,
    cond: Cond = None,
    source: AbstractDistribution = Normal(),
    **options,
) -> ReflowPairs:
    """Pairs of noise and its data under a flow, to train a straighter flow on.

    ```python
    pairs = fk.few_step.reflow_pairs(flow, (2,), 10_000, key=key)

    def loss(flow, batch, key):
        coupling = fk.Paired(batch.x0)
        return fk.flow_matching_loss(flow, batch.x1, key=key, coupling=coupling)

    fit = fk.training.fit(loss, flow, pairs, batch_size=256, num_steps=5000, key=key)
    straighter = fit.ema
    ```

    This is rectified flow. Repeat it for straighter paths still; the quality is at most that
    of the first flow.

    **Arguments:**

    - `flow`: a `fk.Flow`, or any velocity field `(t, x, cond)`.
    - `shape`: the shape of one example.
    - `num_pairs`: the number of pairs.
    - `cond`, `source`, and `options` such as `num_steps`: as in `fk.sample`.

    **Reference:** Liu, Gong and Liu, Flow Straight and Fast, 2022 (arXiv 2209.03003); Lee et
    al., Improving the Training of Rectified Flows, 2024 (arXiv 2405.20320).
    """
    shape = as_shape(shape)
    num_pairs = as_size("num_pairs", num_pairs)
    # Drawn here, not in `sample`, because the noise is half of each pair.
    x0 = source.sample((num_pairs, *shape), key=key)
    samples = sample(flow, shape, num_samples=num_pairs, x0=x0, cond=cond, **options)
    return ReflowPairs(x0, samples.values)
