"""Batches of samples, with what they cost."""

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowkit._checks import check_sampling
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._masks import zero_masked
from flowkit._solve.ode import end_of, end_state, jump_to_data, MaskedVelocity, solve
from flowkit._solve.options import DEFAULT_CONTROLLER, DEFAULT_SOLVER, solver_options
from flowkit._types import AnyArray, Cond, PRNGKey, VelocityField


class Stats(eqx.Module):
    """What each sample cost; every field has one entry per sample."""

    evaluations: Int[Array, "*batch"] | None
    """Evaluations of the velocity field, counted from the solver's stages; `None` for solvers without a tableau."""
    accepted: Int[Array, "*batch"]
    """Accepted steps."""
    rejected: Int[Array, "*batch"]
    """Rejected steps."""
    result: dfx.RESULTS
    """How the solver ended."""


class Samples(eqx.Module):
    """Samples and their statistics."""

    values: Float[Array, "batch ..."]
    stats: Stats


def sample(
    flow: VelocityField,
    shape: tuple[int, ...],
    *,
    num_samples: int,
    key: PRNGKey,
    cond: Cond = None,
    cond_axes: int | None = 0,
    source: AbstractDistribution = Normal(),
    mask: Bool[AnyArray, "batch n"] | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController = DEFAULT_CONTROLLER,
    max_steps: int = 4096,
    throw: bool = True,
) -> Samples:
    """Draws samples: noise from the source, carried to `t = 1` by the flow, in inference mode.

    Every sample has its own step sizes, so none depends on its neighbours in the batch. A flow whose velocity ends
    before `t = 1` (see `fk.Flow`) finishes with the jump to its prediction of the data.

    ```python
    samples = fk.sample(flow, (2,), num_samples=1000, key=key)
    samples.values, samples.stats.evaluations.mean()
    ```

    **Arguments:**

    - `flow`: a `fk.Flow`, or any velocity field `(t, x, cond)`.
    - `shape`: of one sample.
    - `num_samples`: how many.
    - `cond`: a pytree with leading axis `num_samples`, or, with `cond_axes=None`, one shared by all.
    - `source`: the law of the noise, the one of training.
    - `mask`: `(num_samples, n)`, the valid points of each cloud; the others are zero in the result.
    - `solver`, `num_steps`, `stepsize_controller`, `max_steps`, `throw`: as in `fk.integrate`.

    **Returns:** `fk.Samples(values, stats)`, `values` of shape `(num_samples, *shape)`.
    """
    options = solver_options(solver, num_steps, stepsize_controller, max_steps)
    check_sampling(shape, num_samples, cond, cond_axes, mask)
    return _sample(
        flow, shape, num_samples, key, cond, cond_axes, source, mask, options, throw
    )


@eqx.filter_jit
def _sample(
    flow, shape, num_samples, key, cond, cond_axes, source, mask, options, throw
):
    flow = eqx.nn.inference_mode(flow)
    x0 = source.sample((num_samples, *shape), key=key)

    def one(x0, cond, mask):
        velocity = flow if mask is None else MaskedVelocity(flow, mask)
        x0 = x0 if mask is None else zero_masked(x0, mask)
        t0, t1 = jnp.zeros((), x0.dtype), jnp.asarray(end_of(flow), x0.dtype)
        solution = solve(velocity, x0, cond, t0, t1, options, throw=throw)
        return jump_to_data(flow, end_state(solution), cond, mask), statistics(
            solution, options.solver
        )

    values, stats = eqx.filter_vmap(one, in_axes=(0, cond_axes, 0))(x0, cond, mask)
    return Samples(values, stats)


def statistics(solution: dfx.Solution, solver: dfx.AbstractSolver) -> Stats:
    """What a solve of one example cost."""
    attempted = solution.stats["num_steps"]
    return Stats(
        _evaluations(solver, attempted),
        solution.stats["num_accepted_steps"],
        solution.stats["num_rejected_steps"],
        solution.result,
    )


def _evaluations(solver: dfx.AbstractSolver, attempted: Array) -> Array | None:
    if isinstance(solver, dfx.Euler):
        return attempted
    tableau = solver.tableau if isinstance(solver, dfx.AbstractERK) else None
    if not isinstance(tableau, dfx.ButcherTableau):
        return None
    stages = len(tableau.b_sol)
    # The last stage of a first-same-as-last method is the first one of the next step.
    return (stages - 1) * attempted + 1 if tableau.fsal else stages * attempted
