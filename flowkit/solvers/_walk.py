"""A solver's steps on given times, differentiable with respect to the times."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import Cond, VelocityField


def walk(
    solver: dfx.AbstractSolver,
    times: Float[Array, " n_and_1"],
    velocity: VelocityField,
    x: Float[Array, "..."],
    cond: Cond,
) -> Float[Array, "..."]:
    """The end state of all steps."""
    solver = _with_both_modes(solver)
    term = dfx.ODETerm(velocity)
    state = solver.init(term, times[0], times[1], x, cond)

    def step(carry, pair):
        x, state = carry
        x, _, _, state, _ = solver.step(
            term,
            pair[0],
            pair[1],
            x,
            cond,
            state,
            False,
        )
        return (x, state), None

    pairs = jnp.stack([times[:-1], times[1:]], axis=1)
    (x, _), _ = jax.lax.scan(step, (x, state), pairs)
    return x


def _with_both_modes(solver: dfx.AbstractSolver) -> dfx.AbstractSolver:
    """The solver with loops that have forward and reverse mode, as in `diffrax.DirectAdjoint`."""
    if getattr(solver, "scan_kind", "") is not None:
        return solver
    kind = lambda solver: solver.scan_kind
    return eqx.tree_at(kind, solver, "bounded", is_leaf=lambda leaf: leaf is None)
