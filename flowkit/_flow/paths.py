r"""Affine probability paths $x_t = \alpha_t x_1 + \sigma_t x_0$.

They run from noise at $t = 0$ to data at $t = 1$.

A path is given by its two coefficients; one forward-mode pass yields their derivatives.
With $D_t = \alpha'_t \sigma_t - \alpha_t \sigma'_t$, which is positive on $(0, 1)$:

| path | $\alpha_t$ | $\sigma_t$ | $D_t$ |
|---|---|---|---|
| `LinearPath` | $t$ | $1 - (1 - \sigma_{\min}) t$ | $1$ |
| `CosinePath` | $\sin(\pi t / 2)$ | $\cos(\pi t / 2)$ | $\pi / 2$ |
| `PolynomialPath` | $t^n$ | $1 - t^n$ | $n t^{n-1}$ |
| `VariancePreservingPath` | $e^{-b_t / 2}$ | $(1 - \alpha_t^2)^{1/2}$ | |

with $b_t = \tfrac12 (1-t)^2 (\beta_1 - \beta_0) + (1-t) \beta_0$.
"""

import abc
import math
import operator
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from flowkit._checks import check_time
from flowkit._types import FloatArray, is_traced, Number, Scalar


class Coefficients(NamedTuple):
    r"""$\alpha_t$, $\sigma_t$ and their derivatives in time, each of shape `()`."""

    alpha: Float[Array, ""]
    sigma: Float[Array, ""]
    d_alpha: Float[Array, ""]
    d_sigma: Float[Array, ""]


class AbstractPath(eqx.Module):
    r"""An affine probability path.

    To add one: subclass, implement `alpha` and `sigma`, and set `t_end`, the last time
    at which both derivatives are finite (1 if they always are). Nothing else is needed:
    derivatives, conversions and oracles follow.
    """

    t_end: eqx.AbstractClassVar[float]

    @abc.abstractmethod
    def alpha(self, t: Inexact[Array, ""]) -> Inexact[Array, ""]:
        """The coefficient of the data."""

    @abc.abstractmethod
    def sigma(self, t: Inexact[Array, ""]) -> Inexact[Array, ""]:
        """The coefficient of the noise."""

    def coefficients(self, t: Scalar) -> Coefficients:
        """Both coefficients and their derivatives, which are taken at `min(t, t_end)`."""
        check_time("t", t)
        t = as_time(t)
        both = lambda t: (self.alpha(t), self.sigma(t))
        inside = clip_time(t, 0.0, self.t_end)
        _, (d_alpha, d_sigma) = jax.jvp(both, (inside,), (jnp.ones_like(t),))
        return Coefficients(self.alpha(t), self.sigma(t), d_alpha, d_sigma)

    # An eager loop would be compiled in every call. The stubs do not name `inline`.
    @eqx.filter_jit(inline=True)  # pyright: ignore
    def time_of(self, alpha: Array, sigma: Array) -> Float[Array, ""]:
        r"""The time at which data and noise have the ratio `alpha / sigma`, by bisection.

        **Arguments:** two numbers that are not negative, and not both 0.
        """
        # Grows with the time, and is finite at both ends.
        excess = lambda t: self.alpha(t) * sigma - self.sigma(t) * alpha

        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            above = jax.lax.stop_gradient(excess(middle)) > 0
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        # As many halves as the type has digits: no path needs an inverse of its own.
        alpha = jnp.asarray(alpha)
        ends = (jnp.zeros_like(alpha), jnp.ones_like(alpha))
        digits = jnp.finfo(alpha.dtype).nmant + 2
        low, high = jax.lax.fori_loop(0, digits, halve, ends)
        t = jax.lax.stop_gradient(0.5 * (low + high))

        # A step of Newton's method, which has the derivatives that bisection lacks.
        value, slope = jax.jvp(excess, (t,), (jnp.ones_like(t),))
        slope = jax.lax.stop_gradient(slope)
        step = jnp.where(slope > 0, value / jnp.where(slope > 0, slope, 1), 0)
        return jnp.clip(t - step, 0, 1)

    def interpolate(
        self, t: Scalar, x0: FloatArray, x1: FloatArray
    ) -> Float[Array, "..."]:
        r"""$x_t = \alpha_t x_1 + \sigma_t x_0$, for one pair."""
        check_time("t", t)
        x0 = jnp.asarray(x0)
        x1 = jnp.asarray(x1)
        t = as_time(t, x1.dtype)
        return self.alpha(t) * x1 + self.sigma(t) * x0


class LinearPath(AbstractPath):
    r"""$x_t = t x_1 + (1 - (1 - \sigma_{\min}) t) x_0$: straight lines, the default.

    With $\sigma_{\min} > 0$ the path ends in the data with that much noise. In samples
    of a `fk.Target()` flow, which end in a jump to $\mathbb E[x_1 \mid x_t]$, this
    noise is averaged out, not removed: they are narrower than the data.

    **Reference:** Lipman et al., Flow Matching for Generative Modeling (2023), arXiv
    2210.02747; Liu et al., Flow Straight and Fast (2023), arXiv 2209.03003.
    """

    sigma_min: Number = 0.0
    t_end: ClassVar[float] = 1.0

    def __check_init__(self):
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"`sigma_min` must be in [0, 1), got {self.sigma_min}.")

    def alpha(self, t):
        return t

    def sigma(self, t):
        return 1 - (1 - self.sigma_min) * t


class CosinePath(AbstractPath):
    r"""$\alpha_t = \sin(\pi t / 2)$, $\sigma_t = \cos(\pi t / 2)$; $\alpha^2 + \sigma^2 = 1$.

    **Reference:** Albergo and Vanden-Eijnden, Building Normalizing Flows with
    Stochastic Interpolants (2023), arXiv 2209.15571.
    """

    t_end: ClassVar[float] = 1.0

    def alpha(self, t):
        return jnp.sin(0.5 * jnp.pi * t)

    def sigma(self, t):
        # The sine of the remaining time, not a cosine: it is exactly 0 at t = 1.
        return jnp.sin(0.5 * jnp.pi * (1 - t))


class PolynomialPath(AbstractPath):
    r"""$\alpha_t = t^n$, $\sigma_t = 1 - t^n$.

    For $n > 1$ both derivatives are 0 at $t = 0$, so a velocity tells nothing about
    data and noise there: converting it at $t = 0$ is evaluated a little later (see
    `fk.convert`).

    **Arguments:**

    - `degree`: $n \geq 1$.
    """

    degree: int = eqx.field(converter=operator.index, default=2)
    t_end: ClassVar[float] = 1.0

    def __check_init__(self):
        if self.degree < 1:
            raise ValueError(f"`degree` must be at least 1, got {self.degree}.")

    def alpha(self, t):
        return t**self.degree

    def sigma(self, t):
        return 1 - t**self.degree


class VariancePreservingPath(AbstractPath):
    r"""The path of variance-preserving diffusion with linear $\beta$.

    $\alpha_t^2 + \sigma_t^2 = 1$.

    It starts at $\alpha_0 = 0.0066$, not 0, so its source is approximate. $\sigma'$
    diverges at $t = 1$: derivatives are taken at `t_end` at the latest, and samplers
    stop there and jump to the data.

    **Reference:** Song et al., Score-Based Generative Modeling through SDEs (2021),
    arXiv 2011.13456.

    **Arguments:**

    - `beta_min`, `beta_max`: $\beta$ at $t = 1$, in the data, and at $t = 0$, in the noise.

    **Raises:** `ValueError` for a negative $\beta$, and for a path that does not start in
    noise, $\alpha_0 > 0.05$.
    """

    beta_min: Number = 0.1
    beta_max: Number = 20.0
    t_end: ClassVar[float] = 1 - 1e-3

    def __check_init__(self):
        if not all(0 <= beta < math.inf for beta in (self.beta_min, self.beta_max)):
            raise ValueError(
                "`beta_min` and `beta_max` must be finite and not negative, got "
                f"{self.beta_min} and {self.beta_max}."
            )
        alpha = math.exp(self._log_alpha(0.0))
        # As close to noise as an `AffinePath` has to be.
        if alpha > 0.05:
            raise ValueError(
                "`beta_min` and `beta_max` must add up to at least 12, so that t = 0 is noise; "
                f"with {self.beta_min} and {self.beta_max} it has {alpha:.3g} of the data. "
                "They are those of continuous time: betas of a chain of n steps times n."
            )

    def _log_alpha(self, t):
        return (
            -0.25 * (1 - t) ** 2 * (self.beta_max - self.beta_min)
            - 0.5 * (1 - t) * self.beta_min
        )

    def alpha(self, t):
        return jnp.exp(self._log_alpha(t))

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)))


class AffinePath(AbstractPath):
    r"""A path of your own: any smooth $\alpha$ and $\sigma$.

    The derivatives come from automatic differentiation.

    They should run from $\alpha_0 = 0, \sigma_0 = 1$ to $\alpha_1 = 1, \sigma_1 = 0$
    with finite derivatives on $[0, 1]$, and are checked for it at construction, unless
    they are traced.

    **Arguments:**

    - `alpha_fn`, `sigma_fn`: functions of a time of shape `()`.

    **Raises:** `ValueError` if a coefficient has the wrong value at an end or a
    derivative there is not finite.
    """

    alpha_fn: Callable[[Array], Array]
    sigma_fn: Callable[[Array], Array]
    t_end: ClassVar[float] = 1.0

    def __check_init__(self):
        for t in (0.0, 1.0):
            coefficients = self.coefficients(t)
            if is_traced(coefficients):
                return
            alpha, sigma, d_alpha, d_sigma = (float(value) for value in coefficients)
            if abs(alpha - t) > 0.05 or abs(sigma - (1 - t)) > 0.05:
                raise ValueError(
                    "`alpha_fn` must run from 0 to 1 and `sigma_fn` from 1 to 0 (t = 0 is "
                    f"noise, t = 1 is data); at t = {t:g} they are {alpha:g} and {sigma:g}."
                )
            if not (abs(d_alpha) < 1e6 and abs(d_sigma) < 1e6):
                raise ValueError(
                    "`alpha_fn` and `sigma_fn` need finite derivatives on [0, 1]; at "
                    f"t = {t:g} they are {d_alpha:g} and {d_sigma:g}."
                )

    def alpha(self, t):
        return self.alpha_fn(t)

    def sigma(self, t):
        return self.sigma_fn(t)


def as_time(t: Scalar, dtype: jnp.dtype | None = None) -> Float[Array, ""]:
    """A time as a floating-point array."""
    if dtype is None:
        dtype = getattr(t, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)
    # The type of a NumPy array may be one that JAX does not use.
    return jnp.asarray(t, jax.dtypes.canonicalize_dtype(dtype))


def clip_time(t: Array, start: Number | Array, end: Number | Array) -> Array:
    """A time from `start` to `end`; where these are inside of [0, 1], so is the result.

    In half precision `1 - 1e-3` or `1 - 1e-5` may round to 1.
    """
    least = float(jnp.finfo(t.dtype).eps)
    start = jnp.where(start > 0, jnp.maximum(start, least), 0.0)
    end = jnp.where(end < 1, jnp.minimum(end, 1 - least), 1.0)
    return jnp.clip(t, start.astype(t.dtype), end.astype(t.dtype))
