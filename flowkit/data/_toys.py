"""One- and two-dimensional distributions, drawn exactly and on the device.

Every sampler is `sampler(num, *, ..., key)` and returns `num` independent points, `(num, d)`,
in JAX's default precision. Points are drawn from the distribution itself: nothing lies on a
grid, and components are chosen by chance. A new batch per training step is therefore a batch
of the population, not of one finite set.
"""

import functools as ft
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import is_traced, PRNGKey, Scalar


class Mixture(NamedTuple):
    """The parameters of a Gaussian mixture.

    `fk.GaussianMixture(*mixture)` is its exact density.

    - `means`: `(k, d)`.
    - `stds`: `(k, d)`, standard deviations along the axes.
    - `weights`: `(k,)`, their sum is one.
    """

    means: Float[np.ndarray, "k d"]
    stds: Float[np.ndarray, "k d"]
    weights: Float[np.ndarray, " k"]


def _mixture(means: list, stds: list, weights: list) -> Mixture:
    arrays = [np.array(values, float) for values in (means, stds, weights)]
    for array in arrays:
        # Shared by everyone who imports it.
        array.flags.writeable = False
    return Mixture(*arrays)


MIXTURE_1D = _mixture([[-2.0], [2.0]], [[0.8], [0.6]], [0.7, 0.3])
"""0.7 N(-2, 0.8^2) + 0.3 N(2, 0.6^2): mean -0.8, variance 3.916."""


def mixture_1d(
    num: int, *, exact_counts: bool = False, key: PRNGKey
) -> Float[Array, "{num} 1"]:
    """Draws from the asymmetric pair of Gaussians `MIXTURE_1D`.

    With `exact_counts` the first component has exactly `int(0.7 num)` points, in random
    order. Otherwise the number is random, and the points are independent.
    """
    check_draw(num)
    return _mixture_1d(num, exact_counts, key)


def eight_gaussians(
    num: int, *, radius: Scalar = 5.0, std: Scalar = 0.1**0.5, key: PRNGKey
) -> Float[Array, "{num} 2"]:
    """Eight equal Gaussians on a circle, at the multiples of 45 degrees.

    Their exact density has the parameters `eight_gaussians_mixture`.
    """
    check_draw(num, radius=radius, std=std)
    return _ring(num, 8, radius, std, key)


def eight_gaussians_mixture(radius: float = 5.0, std: float = 0.1**0.5) -> Mixture:
    """The parameters of `eight_gaussians`."""
    return _ring_mixture(8, radius, std)


def three_modes(
    num: int, *, radius: Scalar = 2.0, std: Scalar = 0.2, key: PRNGKey
) -> Float[Array, "{num} 2"]:
    """Three equal Gaussians on a circle, at 0, 120 and 240 degrees.

    Their exact density has the parameters `three_modes_mixture`.
    """
    check_draw(num, radius=radius, std=std)
    return _ring(num, 3, radius, std, key)


def three_modes_mixture(radius: float = 2.0, std: float = 0.2) -> Mixture:
    """The parameters of `three_modes`."""
    return _ring_mixture(3, radius, std)


def moons(num: int, *, noise: Scalar = 0.05, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """Two interleaved half circles of radius 1, around (0, 0) and (1, 1/2), with noise.

    The distribution is that of scikit-learn's `make_moons`, whose points lie on a grid of
    angles; here angles are uniform. The noise is Gaussian.
    """
    check_draw(num, noise=noise)
    return _moons(num, noise, key)


# Of the moons without noise.
MOONS_MEAN = np.array([0.5, 0.25])
MOONS_VARIANCE = np.array([0.75, (1.25 - 2 / np.pi) / 2 - 0.25**2])


def shifted_moons(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """The `moons` with noise 0.1, standardized, stretched by 4, moved by 2 to the right.

    Each axis is standardized by the moments of the distribution, not by those of the
    draws.
    """
    std = jnp.sqrt(jnp.asarray(MOONS_VARIANCE + 0.1**2, float))
    mean = jnp.asarray(MOONS_MEAN, float)
    centered = moons(num, noise=0.1, key=key) - mean[None]
    return 4 * centered / std[None] + jnp.array([[2.0, 0.0]])


def circles(
    num: int, *, factor: Scalar = 0.5, noise: Scalar = 0.05, key: PRNGKey
) -> Float[Array, "{num} 2"]:
    """Two equally likely circles of radius 1 and `factor`, blurred by Gaussian noise.

    The distribution is that of scikit-learn's `make_circles`, whose points lie on a grid
    of angles.
    """
    check_draw(num, factor=factor, noise=noise)
    return _circles(num, factor, noise, key)


def s_curve(num: int, *, noise: Scalar = 0.05, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """The letter S, blurred by Gaussian noise.

    The points are `(sin a, sign(a) (cos a - 1))` with `a` uniform in `(-3 pi/2, 3 pi/2)`:
    the first and third coordinate of scikit-learn's `make_s_curve`.
    """
    check_draw(num, noise=noise)
    return _s_curve(num, noise, key)


def spiral(num: int, *, noise: Scalar = 0.1, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """Two arms `+-(a / pi) (cos a, sin a)`, blurred by Gaussian noise.

    `a` is uniform in `(0, 3 pi)`.
    """
    check_draw(num, noise=noise)
    return _spiral(num, noise, key)


def pinwheel(
    num: int,
    *,
    num_arms: int = 5,
    radial_std: Scalar = 0.3,
    tangential_std: Scalar = 0.1,
    rate: Scalar = 0.25,
    key: PRNGKey,
) -> Float[Array, "{num} 2"]:
    """Gaussian blades on `num_arms` arms, bent like a toy windmill.

    A point `(x, y)` with `x ~ N(1, radial_std^2)` and `y ~ N(0, tangential_std^2)` is rotated
    to its arm and further by the angle `rate * exp(x)`, then doubled.

    **Reference:** Composing graphical models with neural networks for structured
    representations and fast inference, M. Johnson et al., 2016, arXiv 1603.06277.
    """
    check_draw(num, radial_std=radial_std, tangential_std=tangential_std)
    if num_arms < 1:
        raise ValueError(f"`num_arms` must be at least 1, got {num_arms}.")
    return _pinwheel(num, num_arms, radial_std, tangential_std, rate, key)


def checkerboard(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """Uniform on the eight squares `(i, j)`, `i + j` even, of a 4 x 4 board.

    The board is `[-4, 4]^2`, and the density 1/32.
    """
    check_draw(num)
    return _checkerboard(num, key)


def check_draw(num: int, **scales: Scalar) -> None:
    """Raises for numbers that make no sense; traced ones cannot be looked at."""
    if num < 1:
        raise ValueError(f"`num` must be at least 1, got {num}.")
    for name, scale in scales.items():
        if not is_traced(scale) and not 0 <= float(scale) < float("inf"):
            raise ValueError(f"`{name}` must be a finite number >= 0, got {scale}.")


# Scales are traced, so a new noise level does not compile a new program.
sampler = ft.partial(jax.jit, static_argnums=0)


@ft.partial(jax.jit, static_argnums=(0, 1))
def _mixture_1d(num: int, exact_counts: bool, key: PRNGKey):
    index_key, noise_key = jr.split(key)
    first = float(MIXTURE_1D.weights[0])
    if exact_counts:
        # Rounded first, so that no last bit decides whether 0.7 of 10 is 7.
        num_first = int(round(first * num, 6))
        second = jr.permutation(index_key, jnp.arange(num) >= num_first)
    else:
        second = jr.bernoulli(index_key, 1 - first, (num,))

    index = second.astype(int)
    means = jnp.asarray(MIXTURE_1D.means)[index]
    stds = jnp.asarray(MIXTURE_1D.stds)[index]
    return blur(means, stds, noise_key)


@ft.partial(jax.jit, static_argnums=(0, 1))
def _ring(num: int, modes: int, radius: Array, std: Array, key: PRNGKey):
    index_key, noise_key = jr.split(key)
    index = jr.randint(index_key, (num,), 0, modes)
    angles = index.astype(float) * (2 * jnp.pi / modes)
    return blur(radius * unit_circle(angles), std, noise_key)


@sampler
def _moons(num: int, noise: Array, key: PRNGKey):
    arm_key, angle_key, noise_key = jr.split(key, 3)
    inner = jr.bernoulli(arm_key, shape=(num, 1))
    outer_points = unit_circle(jr.uniform(angle_key, (num,), maxval=jnp.pi))
    # The inner moon is the outer one turned by half a circle and moved.
    inner_points = jnp.array([[1.0, 0.5]]) - outer_points
    return blur(jnp.where(inner, inner_points, outer_points), noise, noise_key)


@sampler
def _circles(num: int, factor: Array, noise: Array, key: PRNGKey):
    ring_key, angle_key, noise_key = jr.split(key, 3)
    radius = jnp.where(jr.bernoulli(ring_key, shape=(num, 1)), factor, 1.0)
    angles = jr.uniform(angle_key, (num,), maxval=2 * jnp.pi)
    return blur(radius * unit_circle(angles), noise, noise_key)


@sampler
def _s_curve(num: int, noise: Array, key: PRNGKey):
    angle_key, noise_key = jr.split(key)
    angles = jr.uniform(angle_key, (num,), minval=-1.5 * jnp.pi, maxval=1.5 * jnp.pi)
    height = jnp.sign(angles) * (jnp.cos(angles) - 1)
    return blur(jnp.stack([jnp.sin(angles), height], axis=-1), noise, noise_key)


@sampler
def _spiral(num: int, noise: Array, key: PRNGKey):
    arm_key, angle_key, noise_key = jr.split(key, 3)
    angles = jr.uniform(angle_key, (num,), maxval=3 * jnp.pi)
    points = (angles / jnp.pi)[:, None] * unit_circle(angles)
    second = jr.bernoulli(arm_key, shape=(num, 1))
    return blur(jnp.where(second, -points, points), noise, noise_key)


@sampler
def _pinwheel(
    num: int,
    num_arms: Array,
    radial_std: Array,
    tangential_std: Array,
    rate: Array,
    key: PRNGKey,
):
    arm_key, noise_key = jr.split(key)
    normal = jr.normal(noise_key, (2, num))
    x = 1 + radial_std * normal[0]
    y = tangential_std * normal[1]

    arm = jr.randint(arm_key, (num,), 0, num_arms).astype(float) / num_arms
    cos, sin = unit_circle(2 * jnp.pi * arm + rate * jnp.exp(x)).T
    return 2 * jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


@sampler
def _checkerboard(num: int, key: PRNGKey):
    column_key, row_key, inside_key = jr.split(key, 3)
    column = jr.randint(column_key, (num,), 0, 4)
    # Rows have the parity of their column, so the square is one of the eight.
    row = 2 * jr.randint(row_key, (num,), 0, 2) + column % 2
    corner = jnp.stack([column, row], axis=-1).astype(float)
    return 2 * (corner + jr.uniform(inside_key, (num, 2))) - 4


def _ring_mixture(modes: int, radius: float, std: float) -> Mixture:
    angles = np.arange(modes) * (2 * np.pi / modes)
    means = radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return Mixture(means, np.full((modes, 2), float(std)), np.full(modes, 1 / modes))


def unit_circle(angles: Float[Array, " num"]) -> Float[Array, "num 2"]:
    """Points of the unit circle."""
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def blur(
    points: Float[Array, "num d"], noise: Any, key: PRNGKey
) -> Float[Array, "num d"]:
    """Adds Gaussian noise of this standard deviation."""
    return points + noise * jr.normal(key, points.shape)
