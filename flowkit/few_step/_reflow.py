"""Reflow: flow matching on the pairs that a trained flow makes, whose paths do not cross."""

from typing import NamedTuple

from jaxtyping import Array, Float

from flowkit._distributions import AbstractDistribution, Normal
from flowkit._solve import sample
from flowkit._types import Cond, PRNGKey, VelocityField


class ReflowPairs(NamedTuple):
    """Noise, and where the flow carries it."""

    x0: Float[Array, "pairs ..."]
    x1: Float[Array, "pairs ..."]


def reflow_pairs(
    flow: VelocityField,
    shape: tuple[int, ...],
    num_pairs: int,
    *,
    key: PRNGKey,
    cond: Cond = None,
    source: AbstractDistribution = Normal(),
    **options,
) -> ReflowPairs:
    """Pairs of noise and its end under a flow, to train a straighter one on (rectified flow).

    ```python
    pairs = fk.few_step.reflow_pairs(flow, (2,), 10_000, key=key)
    loss = lambda flow, batch, key: fk.flow_matching_loss(flow, batch.x1, key=key, coupling=fk.Paired(batch.x0))
    straighter = fk.training.fit(loss, flow, pairs, batch_size=256, num_steps=5000, key=key).ema
    ```

    Repeat it for paths that are straighter still; the quality is at most that of the flow.

    **Arguments:**

    - `flow`: a `fk.Flow`, or any velocity field `(t, x, cond)`.
    - `shape`: of one example.
    - `num_pairs`: how many.
    - `cond`, `source`, and `options` such as `num_steps`: as in `fk.sample`.

    **Reference:** Liu, Gong and Liu, Flow Straight and Fast, 2022 (arXiv 2209.03003); Lee et al., Improving the
    Training of Rectified Flows, 2024 (arXiv 2405.20320).
    """
    samples = sample(
        flow, shape, num_samples=num_pairs, key=key, cond=cond, source=source, **options
    )
    return ReflowPairs(source.sample((num_pairs, *shape), key=key), samples.values)
