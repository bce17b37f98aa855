"""Velocities that are not finite: an error of their own, where Diffrax asks for more steps.

A step to a state that is NaN or infinite is rejected and tried again with a fifth of its length,
which is right where a long step has left the domain of the velocity. Where the shortest step that
time resolves still ends there, the solve is over.
"""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


_NOT_FINITE = (
    "the velocity is NaN or infinite on the way: look at the weights of the network (did "
    "training diverge?) and at the condition; smaller or more steps do not help. (With a "
    "controller of your own: its smallest step was reached.)"
)


class WatchedController(dfx.AbstractAdaptiveStepSizeController):
    """An adaptive controller that gives up where no step leads to a finite state."""

    controller: dfx.AbstractAdaptiveStepSizeController

    @property
    def rtol(self):
        return self.controller.rtol

    @property
    def atol(self):
        return self.controller.atol

    @property
    def norm(self):
        return self.controller.norm

    def wrap(self, direction: Any) -> "WatchedController":
        return WatchedController(self.controller.wrap(direction))  # pyright: ignore

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        dt0: Any,
        args: Any,
        func: Callable,
        error_order: Any,
    ) -> tuple[Any, Any]:
        return self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> tuple[Any, Any, Any, Any, Any, dfx.RESULTS]:
        keep, next_t0, next_t1, made_jump, state, result = (
            self.controller.adapt_step_size(
                t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
            )
        )

        # Times lie in [0, 1]. Written so that a step of length NaN, which a velocity that is NaN
        # at the start gives, counts as short.
        short = ~(t1 - t0 > 8 * jnp.finfo(jnp.result_type(t1)).eps)
        stuck = short & ~_all_finite(y1_candidate)
        result = dfx.RESULTS.where(stuck, dfx.RESULTS.dt_min_reached, result)
        return keep, next_t0, next_t1, made_jump, state, result


def watched(
    controller: dfx.AbstractStepSizeController,
) -> dfx.AbstractStepSizeController:
    """The controller, watched if it is adaptive: a grid has no step size to reduce."""
    if isinstance(controller, dfx.AbstractAdaptiveStepSizeController):
        return WatchedController(controller)  # pyright: ignore
    return controller


def raise_failures(solution: dfx.Solution) -> dfx.Solution:
    """The solution, or at run time an error that says why the solve has failed."""
    failed = solution.result != dfx.RESULTS.successful
    # A grid goes on to its end whatever it meets, so its states are looked at.
    lost = ~failed & ~_saved_states_are_finite(solution)
    wrong = lost | (solution.result == dfx.RESULTS.dt_min_reached)
    solution = eqx.error_if(solution, wrong, _NOT_FINITE)

    ended = failed & (solution.result != dfx.RESULTS.event_occurred)
    return solution.result.error_if(solution, ended)


def raise_unless_finished(states: Any, results: dfx.RESULTS) -> Any:
    """The states of many solves, or an error that says why one of them has failed."""
    stuck = jax.vmap(lambda result: result == dfx.RESULTS.dt_min_reached)(results)
    wrong = jnp.any(stuck) | ~_all_finite(states)
    states = eqx.error_if(states, wrong, _NOT_FINITE)

    failed = jax.vmap(lambda result: result != dfx.RESULTS.successful)(results)
    worst = jnp.argmax(failed)
    first = jax.tree.map(lambda leaf: leaf[worst], results)
    return first.error_if(states, failed[worst])


def nan_if_failed(state: Any, result: dfx.RESULTS) -> Any:
    """The state of one solve, NaN if it has failed: an error for programs that cannot raise."""
    done = result == dfx.RESULTS.successful
    return jax.tree.map(lambda leaf: jnp.where(done, leaf, jnp.nan), state)


def _all_finite(tree: Any) -> Bool[Array, ""]:
    flags = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(flags))


def _saved_states_are_finite(solution: dfx.Solution) -> Bool[Array, ""]:
    def are_finite(ts, ys):
        # Where a solve saves less than it may, times and states are padded with infinity.
        used = jnp.isfinite(ts)
        leaves = [leaf for leaf in jax.tree.leaves(ys) if eqx.is_inexact_array(leaf)]
        rows = [jnp.reshape(leaf, (len(ts), -1)) for leaf in leaves]
        return [jnp.all(jnp.isfinite(row) | ~used[:, None]) for row in rows]

    flags = jax.tree.leaves(jax.tree.map(are_finite, solution.ts, solution.ys))
    return jnp.all(jnp.array(flags, bool))
