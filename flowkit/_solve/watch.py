"""Solves that fail: which sample, where, and what to do.

Velocities that are not finite raise their own error, where Diffrax would ask for more steps. A
step to a state that is NaN or infinite is rejected and retried with a fifth of its length, which
helps if a long step has left the domain of the velocity. If even the shortest step that the time
can resolve ends in such a state, the solve stops.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


_NOT_FINITE = (
    "the velocity is NaN or infinite on the way: look at the weights of the network (did "
    "training diverge?) and at the condition (is a label out of range?); smaller or more "
    "steps do not help. (With a controller of your own: its smallest step was reached.)"
)

_OUT_OF_STEPS = (
    "the maximum number of solver steps was reached: "
    "{who} took all `max_steps={number}`{where}. "
    "Give a larger `max_steps`, or a looser tolerance by `stepsize_controller`. "
    "Most flows need ten to a hundred steps; "
    "where thousands do not suffice, the velocity is stiff: "
    "look at its weights, at the scale of its time embedding, "
    "and whether its data were standardized."
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


def raise_failures(solution: dfx.Solution, max_steps: int) -> dfx.Solution:
    """The solution, or at run time an error that says why the solve has failed."""
    result = solution.result
    failed = result != dfx.RESULTS.successful
    # A grid always runs to its end, so its states are checked.
    lost = ~failed & ~_saved_states_are_finite(solution)
    wrong = lost | (result == dfx.RESULTS.dt_min_reached)

    over = result == dfx.RESULTS.max_steps_reached
    texts = _Failures(max_steps)
    index = jnp.where(over, texts.index(jnp.asarray(0), time_reached(solution)), 0)
    solution = eqxi.branched_error_if(solution, wrong | over, index, texts)

    ended = failed & (result != dfx.RESULTS.event_occurred)
    return solution.result.error_if(solution, ended)


def raise_unless_finished(
    states: Any,
    results: dfx.RESULTS,
    max_steps: int,
    times: Float[Array, " samples"] | None = None,
) -> Any:
    """The states of many solves, or an error that says which of them has failed, and why.

    **Arguments:** `times`, the times that the solves reached, if they are known.
    """
    are = lambda kind: jax.vmap(lambda result: result == kind)(results)
    wrong = jnp.any(are(dfx.RESULTS.dt_min_reached)) | ~_all_finite(states)

    over = are(dfx.RESULTS.max_steps_reached)
    first = jnp.argmax(over)
    texts = _Failures(max_steps, len(over), times is not None)
    time = None if times is None else times[first]
    index = jnp.where(over[first], texts.index(first, time), 0)
    states = eqxi.branched_error_if(states, wrong | over[first], index, texts)

    failed = ~are(dfx.RESULTS.successful)
    worst = jnp.argmax(failed)
    one = jax.tree.map(lambda leaf: leaf[worst], results)
    return one.error_if(states, failed[worst])


def time_reached(solution: dfx.Solution) -> Float[Array, ""]:
    """The last saved time; if the end is saved, this is the last time of the solve."""
    t0 = jnp.asarray(solution.t0)
    times = [jnp.ravel(ts) for ts in jax.tree.leaves(solution.ts)]
    times = jnp.concatenate([t0[None], *times])
    # What was not saved is infinity.
    times = jnp.where(jnp.isfinite(times), times, t0)
    return times[jnp.argmax(jnp.abs(times - t0))]


@dataclasses.dataclass(frozen=True)
class _Failures(Sequence[str]):
    """Why solves fail, in words: not finite at index 0, and out of steps at all others.

    A running program can only choose one of many texts. So the index encodes the number of the
    sample and its time, and the text is built on request.
    """

    max_steps: int
    num_samples: int | None = None
    with_time: bool = True

    @property
    def num_times(self) -> int:
        """The times that are told apart: thousandths, unless the index would overflow."""
        return min(1001, 2**30 // (self.num_samples or 1)) if self.with_time else 1

    def index(
        self, sample: Int[Array, ""], time: Float[Array, ""] | None
    ) -> Int[Array, ""]:
        first = 1 + sample * self.num_times
        if time is None:
            return first
        last = self.num_times - 1
        return first + jnp.clip(jnp.round(time * last), 0, last).astype(first.dtype)

    def __len__(self) -> int:
        return 1 + self.num_times * (self.num_samples or 1)

    def __getitem__(self, index: Any) -> Any:
        if index == 0:
            return _NOT_FINITE
        sample, time = divmod(index - 1, self.num_times)
        who = "a solve" if self.num_samples is None else f"sample `values[{sample}]`"
        where = ""
        if self.with_time:
            where = f" and came to t = {time / (self.num_times - 1):.3g}"
        return _OUT_OF_STEPS.format(who=who, number=self.max_steps, where=where)


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
