"""Reflow: pairs of noise and what a flow makes of it, on which a straighter flow is trained."""

from typing import NamedTuple

import diffrax as dfx
import equinox as eqx
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_sampling
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import zero_masked
from flowkit._integrate import DEFAULT_CONTROLLER, DEFAULT_SOLVER, solver_options
from flowkit._sampling import carry
from flowkit._types import AnyArray, Cond, PRNGKey, VelocityField


class ReflowPairs(NamedTuple):
    """Noise and data that belong together, with what they were made for: a pytree of rows, as training takes them.

    A loss keeps the pairs by `fk.Paired`:

    ```python
    pairs = fk.few_step.reflow_pairs(flow, 10_000, shape=(2,), key=key)

    def loss(flow, pairs, key):
        return fk.flow_matching_loss(flow, pairs.x1, pairs.cond, key=key, coupling=fk.Paired(pairs.x0))

    fk.training.fit(loss, flow, pairs, batch_size=256, num_steps=5000, key=key)
    ```
    """

    x0: Float[Array, "num ..."]
    x1: Float[Array, "num ..."]
    cond: Cond = None
    mask: Bool[Array, "num n"] | None = None


def reflow_pairs(
    flow: VelocityField,
    num_pairs: int,
    *,
    shape: tuple[int, ...],
    key: PRNGKey,
    cond: Cond = None,
    source: AbstractDistribution = Normal(),
    mask: Bool[AnyArray, "num n"] | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController = DEFAULT_CONTROLLER,
    max_steps: int = 4096,
) -> ReflowPairs:
    r"""Draws noise and carries it to the data: the coupling $(x_0, \psi_{0 \to 1}(x_0))$ of rectified flow.

    A flow trained on these fixed pairs has the same marginals as the first, and straighter trajectories, so that it
    needs fewer steps; the errors of the first flow stay in it. Straight trajectories need one: see
    `fk.metrics.straightness`.

    **Arguments:**

    - `flow`: a `fk.Flow`, or any velocity field `(t, x, cond)`.
    - `num_pairs`: how many.
    - `shape`: of one example.
    - `cond`: a pytree with leading axis `num_pairs`.
    - `source`, `mask`, `solver`, `num_steps`, `stepsize_controller`, `max_steps`: as in `fk.sample`.

    **Reference:** Liu et al., Flow Straight and Fast (2023), arXiv 2209.03003; Lee et al., Improving the Training of
    Rectified Flows (2024), arXiv 2405.20320.
    """
    options = solver_options(solver, num_steps, stepsize_controller, max_steps)
    if num_pairs < 1:
        raise ValueError(f"`num_pairs` must be at least 1, got {num_pairs}.")
    check_sampling(shape, num_pairs, cond, 0, mask)
    return _reflow_pairs(flow, (num_pairs, *shape), key, cond, source, mask, options)


@eqx.filter_jit
def _reflow_pairs(flow, shape, key, cond, source, mask, options):
    x0 = source.sample(shape, key=key)
    x0 = x0 if mask is None else eqx.filter_vmap(zero_masked)(x0, mask)
    x1 = carry(flow, x0, cond, 0, mask, options, True).values
    return ReflowPairs(x0, x1, cond, mask)
