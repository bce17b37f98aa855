r"""A solver with learned times and coefficients.

It evaluates the velocity $n$ times and combines all that it knows:

$$v_k = v(t_k, x_k), \qquad x_{k+1} = a_k\, x_0 + \sum_{j \le k} b_{kj}\, v_j.$$
"""

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from flowkit._types import AnyArray, is_traced


class LearnedSteps(dfx.AbstractSolver):
    """A solver that `fk.solvers.fit_steps` has fitted to a flow.

    ```python
    steps = fk.solvers.fit_steps(flow, (2,), num_evaluations=8, key=fit_key)
    samples = fk.sample(flow, (2,), num_samples=1000, solver=steps, key=key)
    ```

    It brings its own steps from `t = 0` to the end of the flow, so give neither `num_steps`
    nor a controller. It is a pytree: store it next to the model.

    **Arguments:**

    - `times`: `(n + 1,)`, from 0 to 1, in units of the whole way.
    - `scales`: `(n,)`, the factors of the start.
    - `weights`: `(n, n)`, those of the velocities, zero above the diagonal.

    **Reference:** Shaul et al., Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion
    and Flow Models, 2024 (arXiv 2403.01329).
    """

    term_structure: ClassVar = dfx.ODETerm
    interpolation_cls: ClassVar = dfx.LocalLinearInterpolation

    times: Float[AnyArray, " n_and_1"]
    scales: Float[AnyArray, " n"]
    weights: Float[AnyArray, "n n"]

    def __check_init__(self):
        number = len(self.times) - 1
        if self.scales.shape != (number,) or self.weights.shape != (number, number):
            raise ValueError(
                f"`times` are {number} steps, so `scales` and `weights` must have shapes "
                f"{(number,)} and {(number, number)}, got {self.scales.shape} and "
                f"{self.weights.shape}."
            )
        # Not looked at while a program runs.
        if is_traced(self.times):
            return
        times = np.asarray(self.times)
        if not (np.all(np.diff(times) > 0) and times[0] == 0 and times[-1] == 1):
            raise ValueError(f"`times` must increase from 0 to 1, got {times}.")

    @property
    def steps(self) -> Float[AnyArray, " n_and_1"]:
        """The grid of the steps, which `fk.sample` takes."""
        return self.times

    def evaluations(self, num_steps: Array) -> Array:
        """How many evaluations that many steps take."""
        return num_steps

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> "_Known":
        del terms, t0, t1, args
        number = len(self.scales)
        empty = lambda y: jnp.zeros((number, *y.shape), y.dtype)
        return _Known(jnp.asarray(0), y0, jax.tree.map(empty, y0))

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        args: Any,
        solver_state: "_Known",
        made_jump: Any,
    ) -> tuple[Any, None, dict[str, Any], "_Known", dfx.RESULTS]:
        del t1, made_jump
        known = solver_state
        value = terms.vf(t0, y0, args)
        keep = lambda all, one: all.at[known.index].set(one)
        values = jax.tree.map(keep, known.values, value)

        scale = jnp.asarray(self.scales)[known.index]
        weights = jnp.asarray(self.weights)[known.index]
        combine = lambda x, v: (
            scale.astype(x.dtype) * x
            + jnp.tensordot(weights.astype(v.dtype), v, axes=1)
        )
        y1 = jax.tree.map(combine, known.start, values)
        known = _Known(known.index + 1, known.start, values)
        return y1, None, {"y0": y0, "y1": y1}, known, dfx.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)


class _Known(eqx.Module):
    """How many steps were taken, where they began, and all velocities since."""

    index: Int[Array, ""]
    start: PyTree[Array]
    values: PyTree[Array]
