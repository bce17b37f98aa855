"""Drawings in the plane made of several parts, each with its own probability."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import PRNGKey, Scalar
from flowkit.data._toys import blur, check_draw, sampler, unit_circle


def concentric(
    num: int, *, noise: Scalar = 0.05, key: PRNGKey
) -> Float[Array, "{num} 2"]:
    """A disk of radius 0.8 within a ring of radius 2 that is blurred by Gaussian noise.

    The disk holds 3 of 11 points, uniform in area.
    """
    check_draw(num, noise=noise)
    return _concentric(num, noise, key)


def smiley(num: int, *, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """A face: two eyes and a mouth.

    One point in six belongs to each of the eyes, Gaussians at (-1, 1) and (1, 1) of standard
    deviation 0.1. The others lie on the mouth, the lower arc of radius 1.5 around zero
    between -150 and -30 degrees, blurred by 0.08.
    """
    check_draw(num)
    return _smiley(num, key)


@sampler
def _concentric(num: int, noise: Array, key: PRNGKey):
    part_key, angle_key, radius_key, noise_key = jr.split(key, 4)
    directions = unit_circle(jr.uniform(angle_key, (num,), maxval=2 * jnp.pi))
    inside = jr.bernoulli(part_key, 3 / 11, (num, 1))
    # With the root of a uniform number as radius, points are uniform over the area.
    disk = 0.8 * jnp.sqrt(jr.uniform(radius_key, (num, 1))) * directions
    return jnp.where(inside, disk, blur(2 * directions, noise, noise_key))


@sampler
def _smiley(num: int, key: PRNGKey):
    part_key, angle_key, noise_key = jr.split(key, 3)
    part = jr.randint(part_key, (num, 1), 0, 6)
    eye = jnp.where(part == 0, jnp.array([[-1.0, 1.0]]), jnp.array([[1.0, 1.0]]))
    angles = jr.uniform(angle_key, (num,), minval=-5 * jnp.pi / 6, maxval=-jnp.pi / 6)
    mouth = 1.5 * unit_circle(angles)

    is_eye = part < 2
    return blur(jnp.where(is_eye, eye, mouth), jnp.where(is_eye, 0.1, 0.08), noise_key)
