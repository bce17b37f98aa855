r"""Multistep methods that are exact for the linear part of noise and target predictions.

Any affine path is the linear one seen at another time and scale: with $s = \alpha / (\alpha +
\sigma)$ and $z = x / (\alpha + \sigma)$,

$$\frac{dz}{ds} = \frac{\hat x_1 - z}{1 - s} = \frac{z - \hat x_0}{s}.$$

Only the prediction, $\hat x_1$ or $\hat x_0$, has to be approximated, and it varies slowly even
where the fraction does not. It is replaced by the polynomial in $s$ through its last values, and
the rest is integrated in closed form.
"""

import operator
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._flow import (
    AbstractPath,
    AbstractPrediction,
    convert,
    LinearPath,
    Noise,
    Target,
    Velocity,
)
from flowkit._types import VelocityField
from flowkit.solvers._adams_bashforth import direction_of


class Exponential(dfx.AbstractSolver):
    """A multistep method for `fk.Target()` and `fk.Noise()` networks, one evaluation a step.

    ```python
    solver = fk.solvers.Exponential(2, flow.path, flow.prediction)
    samples = fk.sample(flow, (2,), num_samples=1000, solver=solver, num_steps=10, key=key)
    ```

    Its errors come from how the prediction varies, not from a velocity that grows without bound
    at one end of the time interval. With one value it is DDIM; with two or three it is a method
    of the DPM-Solver++ family, of order 2 or 3. Order 3 looks ahead before its first step, which
    costs two more evaluations.

    Use it on grids: `num_steps=n`, or `diffrax.StepTo`. Between the grid times, it interpolates
    linearly. Networks that predict the velocity have no linear part to exploit; see
    `fk.solvers.AdamsBashforth`.

    **Arguments:**

    - `num_values`: the number of predictions in a step, 1 to 3: the order.
    - `path`: the path of the flow.
    - `prediction`: what is approximated, `fk.Target()` or `fk.Noise()`.

    **Reference:** Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021 (arXiv 2010.02502);
    Lu et al., DPM-Solver++, 2022 (arXiv 2211.01095).
    """

    term_structure: ClassVar = dfx.ODETerm
    interpolation_cls: ClassVar = dfx.LocalLinearInterpolation

    num_values: int = eqx.field(static=True, converter=operator.index, default=2)
    path: AbstractPath = LinearPath()
    prediction: AbstractPrediction = Target()

    def __check_init__(self):
        if self.num_values not in (1, 2, 3):
            raise ValueError(f"`num_values` must be 1, 2 or 3, got {self.num_values}.")
        if not isinstance(self.prediction, Target | Noise):
            raise ValueError(
                "`prediction` must be `fk.Target()` or `fk.Noise()`, got "
                f"{self.prediction!r}; for networks that predict the velocity, use "
                "`fk.solvers.AdamsBashforth`."
            )

    def order(self, terms: Any) -> int:
        del terms
        return self.num_values

    def evaluations(self, num_steps: Array) -> Array:
        """How many evaluations that many steps take."""
        return num_steps + 2 if self.num_values == 3 else num_steps

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> "_Past":
        """A past of nothing; for order 3, the line through the prediction half a step ahead."""
        if not eqx.is_array(y0):
            raise ValueError(
                "`solver` Exponential moves samples alone; for log-probabilities give another "
                "one, such as `fk.solvers.AdamsBashforth()`."
            )
        number = self.num_values - 1
        back = -1 - jnp.arange(number, dtype=y0.dtype)
        if self.num_values < 3:
            # Another time, so that no difference of them is 0.
            empty = jnp.zeros((number, *y0.shape), y0.dtype)
            return _Past(t0 + back, empty, jnp.asarray(False))

        velocity, t0, t1 = _along_path(terms, t0, t1, args)
        s0, _ = _on_linear_path(self.path, t0)
        s1, _ = _on_linear_path(self.path, t1)
        middle = t0 + 0.5 * (t1 - t0)
        s, scale = _on_linear_path(self.path, middle)
        value, rate, z = self._look(velocity, t0, y0)
        # Euler's step to the middle: its error is of the order of those of the steps.
        ahead, _, _ = self._look(velocity, middle, scale * (z + (s - s0) * rate))

        slope = (ahead - value) / (s - s0)
        times = s0 + (s1 - s0) * back
        line = lambda time: value + (time - s0) * slope
        return _Past(times, jax.vmap(line)(times), jnp.asarray(True))

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        args: Any,
        solver_state: "_Past",
        made_jump: Any,
    ) -> tuple[Any, None, dict[str, Any], "_Past", dfx.RESULTS]:
        del made_jump
        past = solver_state
        velocity, t0, t1 = _along_path(terms, t0, t1, args)
        value, rate, z = self._look(velocity, t0, y0)
        s0, _ = _on_linear_path(self.path, t0)
        s1, scale = _on_linear_path(self.path, t1)
        first, second = self._moments(s0, s1)
        slope, curvature = _differences(s0, value, past)

        change = (s1 - s0) * rate + jnp.where(past.is_known, first, 0) * slope
        if self.num_values == 3:
            # The second divided difference belongs to (s - s0)(s - s of the step before).
            change = change + (second + (s0 - past.times[0]) * first) * curvature

        y1 = scale * (z + change)
        info = {"y0": y0, "y1": y1}
        return y1, None, info, past.followed_by(s0, value), dfx.RESULTS.successful

    def _look(
        self, velocity: VelocityField, t: Array, y: Array
    ) -> tuple[Array, Array, Array]:
        """The prediction, the rate on the linear path, and the place there."""
        v = velocity(t, y)
        options: Any = {"source": Velocity()}
        x0 = convert(v, t, y, self.path, target=Noise(), **options)
        x1 = convert(v, t, y, self.path, target=Target(), **options)
        value = x1 if isinstance(self.prediction, Target) else x0
        _, scale = _on_linear_path(self.path, t)
        return value, x1 - x0, y / scale

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def _moments(self, s0: Array, s1: Array) -> tuple[Array, Array]:
        """What predictions of $s - s_0$ and of $(s - s_0)^2$ add to the end of a step."""
        if isinstance(self.prediction, Noise):
            return _growth(s0, s1)
        # The mirror image of time turns one prediction into the other.
        first, second = _growth(1 - s0, 1 - s1)
        return -first, second


class _Past(eqx.Module):
    """The predictions before: the last one first."""

    times: Float[Array, " values"]
    values: Float[Array, "values ..."]
    is_known: Array

    def followed_by(self, time: Array, value: Array) -> "_Past":
        number = len(self.times)
        times = jnp.concatenate([time[None], self.times])
        values = jnp.concatenate([value[None], self.values])
        return _Past(times[:number], values[:number], jnp.asarray(True))


def _along_path(
    terms: Any, t0: Any, t1: Any, args: Any
) -> tuple[VelocityField, Array, Array]:
    """The velocity `(t, y)` and both times, where Diffrax steps along `-t` to go backward."""
    sign = direction_of(terms, t0, t1)
    velocity = lambda t, y: terms.vf(sign * t, y, args)
    return velocity, sign * t0, sign * t1


def _on_linear_path(path: AbstractPath, t: Any) -> tuple[Array, Array]:
    """The time and the scale at which a path is the linear one."""
    alpha, sigma, _, _ = path.coefficients(t)
    scale = alpha + sigma
    return alpha / scale, scale


def _growth(s0: Array, s1: Array) -> tuple[Array, Array]:
    r"""$-s_1 \int_{s_0}^{s_1} (s - s_0)^k / s^2\, ds$ for $k = 1, 2$."""
    # Where s1 = 0 the product with the logarithm is 0.
    ratio = jnp.where((s0 > 0) & (s1 > 0), s1 / jnp.where(s0 > 0, s0, 1), 1)
    log = s1 * jnp.log(ratio)
    # At s0 = 0 the prediction is the point itself, and stands still.
    first = jnp.where(s0 > 0, (s1 - s0) - log, 0)
    return first, 2 * s0 * log - (s1 - s0) * (s1 + s0)


def _differences(s0: Array, value: Array, past: _Past) -> tuple[Array, Array]:
    """The first and the second divided difference of the last values."""
    none = jnp.zeros_like(value)
    if len(past.times) == 0:
        return none, none
    slope = (value - past.values[0]) / (s0 - past.times[0])
    if len(past.times) == 1:
        return slope, none
    change = past.values[0] - past.values[1]
    before = change / (past.times[0] - past.times[1])
    return slope, (slope - before) / (s0 - past.times[1])
