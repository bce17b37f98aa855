"""A fixed number of slots, refilled with new samples as these are done."""

import operator
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from flowkit._solve.batching import AbstractBatching, evaluations_of, Rows, Stats
from flowkit._solve.ode import controller_of
from flowkit._solve.options import Solve
from flowkit._solve.watch import raise_unless_finished


class RefilledSlots(AbstractBatching):
    """A number of slots; when a sample is done, another one takes its place.

    Each slot has its own time and step size, and no sample depends on its neighbors. Where
    lockstep waits for the slowest sample of all, n samples cost the average number of steps
    here. It does not support gradients.

    **Arguments:** `num_slots`, how many samples are solved at a time: enough to keep the
    device busy, but only a fraction of all samples.
    """

    num_slots: int = eqx.field(static=True, converter=operator.index)

    def __check_init__(self):
        if self.num_slots < 1:
            raise ValueError(f"`num_slots` must be positive, got {self.num_slots}.")

    def solve(
        self, rows: Rows, times: tuple[Array, Array], options: Solve
    ) -> tuple[PyTree[Array], Stats]:
        if self.num_slots > len(rows):
            raise ValueError(
                f"`num_slots` is {self.num_slots}, for {len(rows)} samples: take a fraction "
                "of them."
            )
        if isinstance(options.solver, dfx.AbstractImplicitSolver):
            raise ValueError(
                f"`solver` {type(options.solver).__name__} is implicit, which `RefilledSlots` "
                "cannot step; give `batching=fk.solvers.Lockstep()`, or a solver such as "
                "`diffrax.Tsit5()`."
            )
        steps = _Steps(rows, times, options)
        # The first step of every sample, with which solvers fill their memory.
        first = steps.first(self.num_slots)
        ends = _run(steps, first, self.num_slots)
        y = ends.y
        if options.throw:
            y = raise_unless_finished(y, ends.result, options.max_steps)
        rejected = ends.attempted - ends.accepted
        evaluations = evaluations_of(options.solver, ends.attempted)
        return y, Stats(evaluations, ends.accepted, rejected, ends.result)


class _OnItsWay(eqx.Module):
    """One solve between two steps."""

    y: PyTree[Array]
    t: Array
    t_next: Array
    made_jump: Any
    solver_state: PyTree[Any]
    controller_state: PyTree[Any]
    attempted: Int[Array, "*slots"]
    accepted: Int[Array, "*slots"]
    result: dfx.RESULTS


class _Ended(eqx.Module):
    """What is kept of a solve. A CPU writes rows one at a time, so that every leaf counts."""

    y: PyTree[Array]
    attempted: Int[Array, "*rows"]
    accepted: Int[Array, "*rows"]
    result: dfx.RESULTS

    @classmethod
    def of(cls, way: _OnItsWay) -> "_Ended":
        return cls(way.y, way.attempted, way.accepted, way.result)


class _Steps(eqx.Module):
    """Single steps of the solves of a batch, with Diffrax's solver and controller."""

    rows: Rows
    times: tuple[Array, Array]
    options: Solve

    def controller(self) -> Any:
        controller, _ = controller_of(self.options, self.times)
        return controller.wrap(1)

    def max_steps(self) -> int:
        return controller_of(self.options, self.times)[1]

    def first(self, num_at_a_time: int) -> _OnItsWay:
        """All rows after their first step."""

        def one(index):
            return self.step(self.begin(index), index)

        indices = jnp.arange(len(self.rows))
        return jax.lax.map(one, indices, batch_size=num_at_a_time)

    def begin(self, index: Int[Array, ""]) -> _OnItsWay:
        """A row before its first step."""
        t0, t1 = self.times
        term, cond = self.term(index)
        y = jax.tree.map(lambda leaf: leaf[index], self.rows.starts)
        solver = self.options.solver
        order = solver.error_order(term)
        controller = self.controller()
        # The first attempt of `diffrax.diffeqsolve`, too, so that both take the same steps.
        adaptive = isinstance(controller, dfx.AbstractAdaptiveStepSizeController)
        step = jnp.asarray(0.01, t0.dtype) if adaptive else None
        t_next, controller_state = controller.init(
            term, t0, t1, y, step, cond, solver.func, order
        )
        t_next = jnp.minimum(t_next, t1)
        solver_state = solver.init(term, t0, t_next, y, cond)
        none = jnp.asarray(0)
        return _OnItsWay(
            y, t0, t_next, jnp.asarray(False), solver_state, controller_state,
            none, none, dfx.RESULTS.successful,
        )  # fmt: skip

    def term(self, index: Int[Array, ""]) -> tuple[dfx.ODETerm, Any]:
        """The velocity of a row, and its condition."""
        rows = self.rows
        take = lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf
        cond = rows.cond
        if rows.cond_axes is not None:
            cond = jax.tree.map(take, cond)
        return dfx.ODETerm(rows.velocity_of(jax.tree.map(take, rows.extra))), cond

    def step(self, one: _OnItsWay, index: Int[Array, ""]) -> _OnItsWay:
        """One attempt."""
        term, cond = self.term(index)
        solver = self.options.solver
        y, error, _, solver_state, solver_result = solver.step(
            term, one.t, one.t_next, one.y, cond, one.solver_state, one.made_jump
        )
        # As Diffrax does: a state that is not a number is a step that was too long.
        error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        keep, t, t_next, made_jump, controller_state, result = (
            self.controller().adapt_step_size(
                one.t, one.t_next, one.y, y, cond, error,
                solver.error_order(term), one.controller_state,
            )
        )  # fmt: skip

        kept = lambda new, old: jnp.where(keep, new, old)
        attempted = one.attempted + 1
        t = jnp.minimum(t, self.times[1])
        result = dfx.RESULTS.where(
            result == dfx.RESULTS.successful, solver_result, result
        )
        over = (attempted >= self.max_steps()) & (t < self.times[1])
        over = over & (result == dfx.RESULTS.successful)
        return _OnItsWay(
            jax.tree.map(kept, y, one.y),
            t,
            self._clipped(t, t_next, keep),
            jnp.asarray(kept(made_jump, one.made_jump)),
            jax.tree.map(kept, solver_state, one.solver_state),
            controller_state,
            attempted,
            one.accepted + jnp.where(keep, 1, 0),
            dfx.RESULTS.where(over, dfx.RESULTS.max_steps_reached, result),
        )

    def _clipped(self, t: Array, t_next: Array, keep: Any) -> Array:
        """The next time, not beyond the end, and at the end if it is close by."""
        t1 = self.times[1]
        close = t_next > t1 - 100 * jnp.finfo(t1.dtype).eps
        return jnp.where(close, jnp.where(keep, t1, t + 0.5 * (t1 - t)), t_next)

    def are_done(self, slots: _OnItsWay) -> Bool[Array, " slots"]:
        failed = lambda result: result != dfx.RESULTS.successful
        return (slots.t >= self.times[1]) | jax.vmap(failed)(slots.result)


def _run(steps: _Steps, first: _OnItsWay, num_slots: int) -> _Ended:
    """All rows at their ends."""
    number = len(steps.rows)
    at = lambda rows: jax.tree.map(lambda leaf: leaf[rows], first)

    def goes_on(carry):
        _, indices, _, _ = carry
        return jnp.any(indices < number)

    def turn(carry):
        slots, indices, num_started, ends = carry
        done = (indices < number) & steps.are_done(slots)

        # Rows that are done leave; an index of `number` is an empty slot.
        places = jnp.where(done, indices, number)
        leave = lambda end, leaf: end.at[places].set(leaf, mode="drop")
        ends = jax.tree.map(leave, ends, _Ended.of(slots))

        # The next ones take their places.
        following = num_started + jnp.cumsum(done) - 1
        following = jnp.minimum(following, number)
        indices = jnp.where(done, following, indices)
        fills = done & (following < number)
        new = at(jnp.minimum(following, number - 1))
        slots = _select(fills, new, slots)
        num_started = num_started + jnp.sum(done)

        moves = (indices < number) & ~steps.are_done(slots)
        rows = jnp.minimum(indices, number - 1)
        moved = eqx.filter_vmap(steps.step)(slots, rows)
        return _select(moves, moved, slots), indices, num_started, ends

    indices = jnp.arange(num_slots)
    start = (at(indices), indices, jnp.asarray(num_slots), _Ended.of(first))
    _, _, _, ends = jax.lax.while_loop(goes_on, turn, start)
    return ends


def _select(chosen: Bool[Array, " slots"], new: Any, old: Any) -> Any:
    def select(a, b):
        mask = jnp.reshape(chosen, (-1, *(1 for _ in jnp.shape(a)[1:])))
        return jnp.where(mask, a, b)

    return jax.tree.map(select, new, old)
