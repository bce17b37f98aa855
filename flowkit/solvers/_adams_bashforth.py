r"""Adams-Bashforth methods: one evaluation per step, and the velocities of previous steps.

The velocity is replaced by the polynomial through its last values, on any grid:

$$x_{n+1} = x_n + \sum_j v_{n-j} \int_{t_n}^{t_{n+1}} \ell_j(s)\, ds, \qquad
\ell_j(s) = \prod_{i \ne j} \frac{s - t_{n-i}}{t_{n-j} - t_{n-i}}.$$
"""

import operator
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class AdamsBashforth(dfx.AbstractSolver):
    """The Adams-Bashforth method of order 2 or 3, for grids: `num_steps=n`, or `diffrax.StepTo`.

    A step costs only one evaluation, so the same number of evaluations allows more steps. With
    order 2, the first step is an Euler step. Order 3 begins with the midpoint rule, which costs
    two more evaluations. The method has no error estimate. Between the times of the grid, which
    `SaveAt(ts=...)` may request, it interpolates linearly.

    **Arguments:** `num_values`, the number of velocities in a step, 2 or 3: the order.

    **Reference:** Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, 1993,
    sections III.1 and III.5.
    """

    term_structure: ClassVar = dfx.ODETerm
    interpolation_cls: ClassVar = dfx.LocalLinearInterpolation

    num_values: int = eqx.field(static=True, converter=operator.index, default=2)

    def __check_init__(self):
        if self.num_values not in (2, 3):
            raise ValueError(f"`num_values` must be 2 or 3, got {self.num_values}.")

    def order(self, terms: Any) -> int:
        del terms
        return self.num_values

    def evaluations(self, num_steps: Array) -> Array:
        """How many evaluations that many steps take."""
        return num_steps if self.num_values == 2 else num_steps + 2

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> "_History":
        """A past that makes the first step one of Euler's, or of the midpoint rule."""
        step = t1 - t0
        zeros = jax.tree.map(jnp.zeros_like, y0)
        if self.num_values == 2:
            return _History((t0 - step,), (zeros,), jnp.asarray(False))

        first = terms.vf(t0, y0, args)
        way = direction_of(terms, t0, t1) * step / 2
        half = jax.tree.map(lambda y, v: y + way * v, y0, first)
        middle = terms.vf(t0 + step / 2, half, args)
        # The line through both values, one and two steps back.
        back = lambda n: jax.tree.map(lambda v, m: v - 2 * n * (m - v), first, middle)
        times = (t0 - step, t0 - 2 * step)
        return _History(times, (back(1), back(2)), jnp.asarray(True))

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        args: Any,
        solver_state: "_History",
        made_jump: Any,
    ) -> tuple[Any, None, dict[str, Any], "_History", dfx.RESULTS]:
        del made_jump
        value = terms.vf(t0, y0, args)
        past = solver_state
        # Without a past, all of it is the present value.
        values = [
            jax.tree.map(
                lambda old, new: jnp.where(past.is_known, old, new), old, value
            )
            for old in past.values
        ]
        values = (value, *values)
        times = (t0, *past.times)

        weights = lagrange_weights(times, t1)
        direction = direction_of(terms, t0, t1)
        y1 = y0
        for weight, one in zip(weights, values, strict=True):
            move = lambda y, v, w=direction * weight: y + w * v
            y1 = jax.tree.map(move, y1, one)
        history = _History(times[:-1], values[:-1], jnp.asarray(True))
        return y1, None, {"y0": y0, "y1": y1}, history, dfx.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)


class _History(eqx.Module):
    """The steps before: the last one first."""

    times: tuple[Float[Array, ""], ...]
    values: tuple[PyTree[Array], ...]
    is_known: Array


def direction_of(terms: Any, t0: Any, t1: Any) -> Array:
    """1, or -1 where a solve runs backward.

    Diffrax steps along `-t` there, with the sign in `terms.contr` and not in `terms.vf`.
    """
    return jnp.where(terms.contr(t0, t1) < 0, -1, 1)


def lagrange_weights(times: tuple[Any, ...], t1: Any) -> list[Any]:
    """The integrals from `times[0]` to `t1` of the polynomials that are 1 at one of the times.

    **Arguments:** two or three different `times`, and the end.
    """
    h = t1 - times[0]
    a = times[0] - times[1]
    if len(times) == 2:
        behind = -(h**2) / (2 * a)
        return [h - behind, behind]

    b = times[0] - times[2]
    second = -(h**3 / 3 + b * h**2 / 2) / (a * (b - a))
    third = (h**3 / 3 + a * h**2 / 2) / (b * (b - a))
    # Together they integrate a constant.
    return [h - second - third, second, third]
