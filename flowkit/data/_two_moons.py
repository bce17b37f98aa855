r"""The two-moons task of the simulation-based inference benchmark, with its posterior.

In the coordinates $s = (\theta_1 + \theta_2) / \sqrt 2$ and
$t = (\theta_2 - \theta_1) / \sqrt 2$, a rotation of the parameters,

$$x = \bigl(u + \tfrac14 - |s|,\ v + t\bigr), \qquad u = r \cos a, \quad v = r \sin a,$$

with $a$ uniform in $(-\pi/2, \pi/2)$ and $r \sim \mathcal N(0.1, 0.01^2)$. The area of
$du\,dv$ is $|r|\,dr\,da$, so the density of $(u, v)$ is

$$f(u, v) = \frac{\mathcal N(r; 0.1, 0.01^2)}{\pi |r|}, \qquad
r = \mathrm{sign}(u) \sqrt{u^2 + v^2}.$$

For a given $x$ every $(u, v)$ belongs to one $|s| = u + \tfrac14 - x_1$ and one
$t = x_2 - v$, at unit area, but only $|s| \ge 0$ is possible and only
$|s| + |t| \le \sqrt 2$ lies in the square of the prior. Let $Z(x)$ be the probability of
both. The signs of $s$ are equally likely, so within the square

$$p(\theta \mid x) = \frac{f(u, v)}{2 Z(x)}.$$
"""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced, PRNGKey
from flowkit.data._toys import check_draw, sampler, unit_circle


OFFSET = 0.25
RADIUS = 0.1
RADIUS_STD = 0.01

# Where less of the noise fits, drawing the posterior would take too many turns. Fewer than one
# in ten thousand simulations is such.
LEAST_MASS = 1e-3


class Simulations(NamedTuple):
    """Draws of the prior, and one simulation with each of them.

    - `parameters`: `(num, d)`.
    - `observations`: `(num, k)`.
    """

    parameters: Float[Array, "num d"]
    observations: Float[Array, "num k"]


def two_moons(num: int, *, key: PRNGKey) -> Simulations:
    """Parameters of the two-moons task, uniform on the square [-1, 1]^2, and observations.

    This is what a conditional flow of the posterior is trained on.

    ```python
    parameters, observations = fk.data.two_moons(10_000, key=key)
    ```

    **Reference:** Greenberg, Nonnenmacher & Macke, Automatic Posterior Transformation for
    Likelihood-Free Inference, 2019, arXiv 1905.07488; Lueckmann et al., Benchmarking
    Simulation-Based Inference, 2021, arXiv 2101.04653, task T.8.
    """
    check_draw(num)
    return _two_moons(num, key)


def two_moons_simulate(
    parameters: Float[AnyArray, " 2"], *, key: PRNGKey
) -> Float[Array, " 2"]:
    r"""One observation of the two-moons task.

    $$x = \Bigl(r \cos a + \tfrac14 - \frac{|\theta_1 + \theta_2|}{\sqrt 2},\
    r \sin a + \frac{\theta_2 - \theta_1}{\sqrt 2}\Bigr),$$

    with $a$ uniform in $(-\pi/2, \pi/2)$ and $r \sim \mathcal N(0.1, 0.01^2)$.
    """
    return _simulate(jnp.asarray(parameters, float), key)


def two_moons_posterior(
    observation: Float[AnyArray, " 2"], num: int, *, key: PRNGKey
) -> Float[Array, "{num} 2"]:
    """Independent draws of the exact posterior of the two-moons task, `(num, 2)`.

    The simulator is inverted: a draw of its noise and a sign make one pair of parameters. A
    pair that the simulator would not turn into this observation, or that is outside the
    square of the prior, is drawn again.

    **Arguments:**

    - `observation`: `(2,)`, such as `two_moons_simulate` gives. Vectorize over observations
        with `jax.vmap`, one key each.
    - `num`: the number of draws.

    **Raises:** `ValueError` for an observation that the prior can hardly have led to, where
    less than 1e-3 of the noise fits; if it is traced, the draws are NaN.
    """
    check_draw(num)
    observation = jnp.asarray(observation, float)
    _check_possible(observation)
    return _posterior(observation, num, key)


def two_moons_log_posterior(
    parameters: Float[AnyArray, " 2"], observation: Float[AnyArray, " 2"]
) -> Float[Array, ""]:
    """The exact log-density of the posterior of the two-moons task, in nats.

    It is `-inf` outside the square of the prior. Where the edges of the square cut off a
    part of the moons it is normalized by quadrature, and accurate to about 1e-4.

    **Arguments:** `parameters (2,)` and `observation (2,)`. Vectorize with `jax.vmap`.

    **Raises:** `ValueError` for an observation as in `two_moons_posterior`.
    """
    observation = jnp.asarray(observation, float)
    _check_possible(observation)
    return _log_posterior(jnp.asarray(parameters, float), observation)


def _check_possible(observation: Float[Array, " 2"]) -> None:
    if is_traced(observation):
        return
    if not _mass(observation) >= LEAST_MASS:
        raise ValueError(
            f"`observation` is {observation}, which no parameters in [-1, 1]^2 are likely to "
            "lead to; simulate one with `two_moons_simulate`."
        )


def _noise(num: int, key: PRNGKey) -> Float[Array, "num 2"]:
    """Points `(u, v)` on a moon."""
    angle_key, radius_key = jr.split(key)
    angles = jr.uniform(angle_key, (num,), minval=-jnp.pi / 2, maxval=jnp.pi / 2)
    radii = RADIUS + RADIUS_STD * jr.normal(radius_key, (num, 1))
    return radii * unit_circle(angles)


def _observation(
    parameters: Float[Array, " 2"], noise: Float[Array, " 2"]
) -> Float[Array, " 2"]:
    u, v = noise
    s, t = _rotated(parameters)
    return jnp.stack([u + OFFSET - jnp.abs(s), v + t])


def _rotated(parameters: Float[Array, " 2"]) -> Float[Array, " 2"]:
    """The coordinates `(s, t)`."""
    first, second = parameters
    return jnp.stack([first + second, second - first]) / 2**0.5


def _rotated_back(coordinates: Float[Array, " 2"]) -> Float[Array, " 2"]:
    s, t = coordinates
    return jnp.stack([s - t, s + t]) / 2**0.5


def _in_prior(parameters: Float[Array, " 2"]) -> Array:
    return jnp.all(jnp.abs(parameters) <= 1)


@jax.jit
def _simulate(parameters, key):
    return _observation(parameters, _noise(1, key)[0])


@sampler
def _two_moons(num, key):
    prior_key, noise_key = jr.split(key)
    parameters = jr.uniform(prior_key, (num, 2), minval=-1.0, maxval=1.0)
    observations = jax.vmap(_observation)(parameters, _noise(num, noise_key))
    return Simulations(parameters, observations)


@ft.partial(jax.jit, static_argnums=1)
def _posterior(observation, num, key):
    sign_key, key = jr.split(key)
    signs = jr.rademacher(sign_key, (num,), float)
    possible = _mass(observation) >= LEAST_MASS

    def invert(noise, sign):
        u, v = noise
        length = u + OFFSET - observation[0]
        parameters = _rotated_back(jnp.stack([sign * length, observation[1] - v]))
        # A negative length is no length of any `s`, although its parameters may lie inside.
        return parameters, (length >= 0) & _in_prior(parameters)

    def draw_missing(state):
        turn, parameters, found = state
        noise = _noise(num, jr.fold_in(key, turn))
        drawn, fits = jax.vmap(invert)(noise, signs)
        parameters = jnp.where(found[:, None], parameters, drawn)
        return turn + 1, parameters, found | fits

    def is_missing(state):
        _, _, found = state
        return possible & ~jnp.all(found)

    start = (0, jnp.zeros((num, 2)), jnp.zeros(num, bool))
    _, parameters, found = jax.lax.while_loop(is_missing, draw_missing, start)
    return jnp.where(found[:, None], parameters, jnp.nan)


@jax.jit
def _log_posterior(parameters, observation):
    s, t = _rotated(parameters)
    u = observation[0] - OFFSET + jnp.abs(s)
    v = observation[1] - t

    # This cuts off the pole of the density at radius zero, which has no mass.
    distance = jnp.sqrt(jnp.maximum(u**2 + v**2, 1e-12))
    radius = jnp.where(u < 0, -distance, distance)
    log_density = jsp.stats.norm.logpdf(radius, RADIUS, RADIUS_STD)
    log_density -= jnp.log(jnp.pi * distance)

    log_prob = log_density - jnp.log(2 * _mass(observation))
    return jnp.where(_in_prior(parameters), log_prob, -jnp.inf)


# Radii on a grid of six standard deviations to both sides, with their probabilities.
_DEVIATIONS = 12 * (np.arange(1000) + 0.5) / 1000 - 6
_RADII = RADIUS + RADIUS_STD * _DEVIATIONS
_PROBABILITIES = np.exp(-(_DEVIATIONS**2) / 2)
_PROBABILITIES /= np.sum(_PROBABILITIES)


@jax.jit
def _mass(observation: Float[Array, " 2"]) -> Float[Array, ""]:
    """$Z(x)$, the probability of a noise that fits: over angles exact, over radii a sum."""
    radii = jnp.asarray(_RADII, float)
    least_u = observation[0] - OFFSET

    # `|s| >= 0` is `u >= least_u`, and leaves the angles `|a| <= bound`.
    bound = jnp.arccos(jnp.clip(least_u / radii, 0, 1))

    # `|s| + t <= sqrt(2)` excludes an arc of angles around -pi/4, `|s| - t` one around pi/4.
    room = 2**0.5 + least_u + observation[1] * jnp.array([-1.0, 1.0])
    cosine = room[:, None] / (2**0.5 * radii[None])
    half = jnp.arccos(jnp.clip(cosine, -1, 1))
    center = jnp.array([[-jnp.pi / 4], [jnp.pi / 4]])
    low = jnp.maximum(center - half, -bound[None])
    high = jnp.minimum(center + half, bound[None])

    excluded = jnp.sum(jnp.maximum(high - low, 0), axis=0)
    in_both = jnp.maximum(jnp.min(high, axis=0) - jnp.max(low, axis=0), 0)
    angles = 2 * bound - excluded + in_both
    return jnp.sum(jnp.asarray(_PROBABILITIES, float) * angles) / jnp.pi
