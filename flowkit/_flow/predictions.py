r"""What a network predicts, and every conversion between predictions.

Along $x_t = \alpha x_1 + \sigma x_0$ each prediction is a row $(a, b)$ and means $a\,
x_1 + b\, x_0$, or its conditional expectation given $x_t$:

| prediction | row | ill-conditioned towards |
|---|---|---|
| `Velocity` | $(\alpha', \sigma')$ | nothing |
| `Noise` | $(0, 1)$ | $t = 0$, where $x_0 = x_t$ says nothing about the data |
| `Target` | $(1, 0)$ | $t = 1$, where $x_1 = x_t$ says nothing about the noise |
| `Score` | $(0, -1/\sigma)$, for a standard normal source | both |

Together with $x_t$ itself, the row $(\alpha, \sigma)$, a prediction fixes both
unknowns, so any other one follows from one 2 x 2 solve. **Reference:** Albergo, Boffi
and Vanden-Eijnden, Stochastic Interpolants (2023), arXiv 2303.08797.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_time
from flowkit._flow.paths import AbstractPath, as_time, clip_time, Coefficients
from flowkit._types import FloatArray, Scalar


CUT = 1e-3
"""The least distance of a velocity from an end of time where its prediction is
ill-conditioned."""

_FLOOR = 1e-5
"""The least distance of a conversion from an end of time where its formula divides by 0."""


class AbstractPrediction(eqx.Module):
    """What the output of a network means.

    To add one: subclass, implement `row`, and say in the two attributes at which
    ends of time the velocity cannot be recovered from it.
    """

    singular_start: eqx.AbstractClassVar[bool]
    singular_end: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def row(self, c: Coefficients) -> tuple[Array, Array]:
        """The factors `(a, b)` of data and noise."""

    def evaluate(
        self, c: Coefficients, x0: FloatArray, x1: FloatArray
    ) -> Float[Array, "..."]:
        """$a x_1 + b x_0$, for one pair or for its conditional expectations."""
        a, b = self.row(c)
        return a * jnp.asarray(x1) + b * jnp.asarray(x0)


class Velocity(AbstractPrediction):
    r"""The velocity $v = \alpha' x_1 + \sigma' x_0$, the default.

    It is finite and exact at every time.
    """

    singular_start: ClassVar[bool] = False
    singular_end: ClassVar[bool] = False

    def row(self, c: Coefficients) -> tuple[Array, Array]:
        return c.d_alpha, c.d_sigma


class Noise(AbstractPrediction):
    r"""The noise $x_0$.

    The velocity $(\alpha' x - D x_0) / \alpha$ is evaluated at $t = 10^{-3}$ at the
    earliest.
    """

    singular_start: ClassVar[bool] = True
    singular_end: ClassVar[bool] = False

    def row(self, c: Coefficients) -> tuple[Array, Array]:
        return jnp.zeros_like(c.alpha), jnp.ones_like(c.alpha)


class Target(AbstractPrediction):
    r"""The data $x_1$.

    The velocity $(\sigma' x + D x_1) / \sigma$ is evaluated at $t = 1 - 10^{-3}$ at the
    latest; samplers stop there and jump to $x_1$.
    """

    singular_start: ClassVar[bool] = False
    singular_end: ClassVar[bool] = True

    def row(self, c: Coefficients) -> tuple[Array, Array]:
        return jnp.ones_like(c.alpha), jnp.zeros_like(c.alpha)


class Score(AbstractPrediction):
    r"""The score $\nabla \log p_t(x) = -x_0 / \sigma$ for a standard normal source.

    It is cut at both ends.
    """

    singular_start: ClassVar[bool] = True
    singular_end: ClassVar[bool] = True

    def row(self, c: Coefficients) -> tuple[Array, Array]:
        return jnp.zeros_like(c.alpha), -1 / c.sigma


def convert(
    value: FloatArray,
    t: Scalar,
    x: FloatArray,
    path: AbstractPath,
    *,
    source: AbstractPrediction,
    target: AbstractPrediction,
) -> Float[Array, "..."]:
    r"""Turns one prediction at `(t, x)` into another, exactly.

    With the source row $(a, b)$ and the target row $(a', b')$, Cramer's rule on $x =
    \alpha x_1 + \sigma x_0$ and $\mathrm{value} = a x_1 + b x_0$ gives

    $$\frac{(a' b - b' a)\, x + (\alpha b' - \sigma a')\, \mathrm{value}}{\alpha b - \sigma a}.$$

    Where this divides by zero, at `t = 0` or `t = 1`, it is evaluated $10^{-5}$ away,
    or as close as half precision can resolve. The result is therefore finite
    everywhere, unless it is too large for float16. Paths that end in some noise, such
    as `fk.LinearPath(sigma_min)`, need no such distance at `t = 1`. A prediction
    converts to itself unchanged at every time.

    Finite, but not accurate: an error $e$ of a velocity becomes $\sigma e / D$ in the data,
    which at $t = 0$ of `fk.PolynomialPath(n)` is $5 \cdot 10^4\, e$ for $n = 2$ and
    $3 \cdot 10^9\, e$ for $n = 3$.

    **Arguments:**

    - `value`: the prediction, the shape of `x`.
    - `t`: the time, in [0, 1].
    - `x`: the point, of any shape.
    - `path`: the path.
    - `source`, `target`: what `value` is, and what is wanted.
    """
    value = jnp.asarray(value)
    x = jnp.asarray(x)
    if value.shape != x.shape:
        raise ValueError(
            f"`value` must have the shape of `x`, {x.shape}, got {value.shape}."
        )
    if same_prediction(source, target):
        return value
    check_time("t", t)
    t = away_from_poles(as_time(t, x.dtype), path, source, target, _FLOOR)
    c = path.coefficients(t)

    # `value` and `x` are two linear equations for the data and the noise.
    a, b = source.row(c)
    to_a, to_b = target.row(c)
    determinant = c.alpha * b - c.sigma * a
    return (
        (to_a * b - to_b * a) * x + (c.alpha * to_b - c.sigma * to_a) * value
    ) / determinant


def same_prediction(first: AbstractPrediction, second: AbstractPrediction) -> bool:
    """Whether two predictions are known to be the same, so that nothing needs to be converted."""
    return eqx.tree_equal(first, second) is True


def away_from_poles(
    t: Float[Array, ""],
    path: AbstractPath,
    source: AbstractPrediction,
    target: AbstractPrediction,
    distance: float,
) -> Float[Array, ""]:
    """A time at that distance, at least, from ends at which a conversion divides by 0."""
    start = jnp.where(_is_pole(0.0, path, source, target), distance, 0.0)
    end = jnp.where(_is_pole(1.0, path, source, target), 1 - distance, 1.0)
    return clip_time(t, start, end)


def _is_pole(
    t: float,
    path: AbstractPath,
    source: AbstractPrediction,
    target: AbstractPrediction,
) -> Array:
    """Whether a conversion divides by 0, up to rounding, as many do at an end of the path."""
    c = path.coefficients(t)
    a, b = source.row(c)
    determinant = c.alpha * b - c.sigma * a
    largest = jnp.max(jnp.abs(jnp.stack([a, b, *target.row(c)])))
    # NaN is a pole, too.
    return ~((jnp.abs(determinant) > 1e-6) & (largest < 1e6))
