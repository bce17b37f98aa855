"""Tyrannosaurs in the plane: the 142 points of the Datasaurus, and one made of curves."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import PRNGKey, Scalar
from flowkit.data._points import fit_unit_box, resample
from flowkit.data._toys import blur, check_draw, sampler, unit_circle


_DINO = """
    55.3846 97.1795, 51.5385 96.0256, 46.1538 94.4872, 42.8205 91.4103,
    40.7692 88.3333, 38.7179 84.8718, 35.641 79.8718, 33.0769 77.5641,
    28.9744 74.4872, 26.1538 71.4103, 23.0769 66.4103, 22.3077 61.7949,
    22.3077 57.1795, 23.3333 52.9487, 25.8974 51.0256, 29.4872 51.0256,
    32.8205 51.0256, 35.3846 51.4103, 40.2564 51.4103, 44.1026 52.9487,
    46.6667 54.1026, 50.0 55.2564, 53.0769 55.641, 56.6667 56.0256, 59.2308 57.9487,
    61.2821 62.1795, 61.5385 66.4103, 61.7949 69.1026, 57.4359 55.2564,
    54.8718 49.8718, 52.5641 46.0256, 48.2051 38.3333, 49.4872 42.1795,
    51.0256 44.1026, 45.3846 36.4103, 42.8205 32.5641, 38.7179 31.4103,
    35.1282 30.2564, 32.5641 32.1795, 30.0 36.7949, 33.5897 41.4103, 36.6667 45.641,
    38.2051 49.1026, 29.7436 36.0256, 29.7436 32.1795, 30.0 29.1026,
    32.0513 26.7949, 35.8974 25.2564, 41.0256 25.2564, 44.1026 25.641,
    47.1795 28.718, 49.4872 31.4103, 51.5385 34.8718, 53.5897 37.5641,
    55.1282 40.641, 56.6667 42.1795, 59.2308 44.4872, 62.3077 46.0256,
    64.8718 46.7949, 67.9487 47.9487, 70.5128 53.718, 71.5385 60.641,
    71.5385 64.4872, 69.4872 69.4872, 46.9231 79.8718, 48.2051 84.1026,
    50.0 85.2564, 53.0769 85.2564, 55.3846 86.0256, 56.6667 86.0256,
    56.1538 82.9487, 53.8462 80.641, 51.2821 78.718, 50.0 78.718, 47.9487 77.5641,
    29.7436 59.8718, 29.7436 62.1795, 31.2821 62.5641, 57.9487 99.4872,
    61.7949 99.1026, 64.8718 97.5641, 68.4615 94.1026, 70.7692 91.0256,
    72.0513 86.4103, 73.8462 83.3333, 75.1282 79.1026, 76.6667 75.2564,
    77.6923 71.4103, 79.7436 66.7949, 81.7949 60.2564, 83.3333 55.2564,
    85.1282 51.4103, 86.4103 47.5641, 87.9487 46.0256, 89.4872 42.5641,
    93.3333 39.8718, 95.3846 36.7949, 98.2051 33.718, 56.6667 40.641,
    59.2308 38.3333, 60.7692 33.718, 63.0769 29.1026, 64.1026 25.2564,
    64.359 24.1026, 74.359 22.9487, 71.2821 22.9487, 67.9487 22.1795,
    65.8974 20.2564, 63.0769 19.1026, 61.2821 19.1026, 58.7179 18.3333,
    55.1282 18.3333, 52.3077 18.3333, 49.7436 17.5641, 47.4359 16.0256,
    44.8718 13.718, 48.7179 14.8718, 51.2821 14.8718, 54.1026 14.8718,
    56.1538 14.1026, 52.0513 12.5641, 48.7179 11.0256, 47.1795 9.8718,
    46.1538 6.0256, 50.5128 9.4872, 53.8462 10.2564, 57.4359 10.2564, 60.0 10.641,
    64.1026 10.641, 66.9231 10.641, 71.2821 10.641, 74.359 10.641, 78.2051 10.641,
    67.9487 8.718, 68.4615 5.2564, 68.2051 2.9487, 37.6923 25.7692, 39.4872 25.3846,
    91.2821 41.5385, 50.0 95.7692, 47.9487 95.0, 44.1026 92.6923
"""

TREX = fit_unit_box(np.array([pair.split() for pair in _DINO.split(",")], float))[0]
"""The 142 points of the Datasaurus, centered, the largest coordinate 1: `(142, 2)`.

Drawn by Alberto Cairo; published by Matejka and Fitzmaurice, Same Stats, Different Graphs
(CHI 2017), and under the MIT license in the R package datasauRus.
"""
# Shared by everyone who imports it.
TREX.flags.writeable = False


def trex(num: int, *, noise: Scalar = 0.02, key: PRNGKey) -> Float[Array, "{num} 2"]:
    """The Datasaurus: points of `TREX`, drawn with replacement and blurred.

    The noise is Gaussian.
    """
    return resample(TREX, num, noise=noise, key=key)


def trex_parametric(
    num: int, *, noise: Scalar = 0.02, key: PRNGKey
) -> Float[Array, "{num} 2"]:
    """Another tyrannosaur, of arcs and lines, blurred by Gaussian noise.

    Without the noise all coordinates lie in [-1, 1].

    | part | share | curve, `s` uniform in (0, 1), all divided by 1.15 |
    |---|---|---|
    | head | 20% | upper half of the ellipse around (0.8, 0.4) with radii 0.3 and 0.35 |
    | jaw | 10% | `(0.5 + 0.6 s, 0.4 - 0.15 sin(pi s))` |
    | neck | 8% | from (0.5, 0.4) to (0.3, 0.2) |
    | body | 15% | the ellipse around zero with radii 0.35 and 0.3 |
    | tail | 15% | `(-0.35 - 0.8 s, 0.3 sin(pi s) (1 - 0.7 s))` |
    | left leg | 6% each | (-0.2, -0.3) to (-0.15, -0.6), and on to (-0.1, -0.8) |
    | right leg | 6% each | (0.15, -0.3) to (0.2, -0.6), and on to (0.25, -0.8) |
    | arms | 4% each | (0.2, 0.15) to (0.25, 0) and (0.25, 0.1) to (0.3, -0.05) |
    """
    check_draw(num, noise=noise)
    return _trex_parametric(num, noise, key)


# Neck, four lines of legs, two arms.
_STARTS = [
    [0.5, 0.4],
    [-0.2, -0.3],
    [-0.15, -0.6],
    [0.15, -0.3],
    [0.2, -0.6],
    [0.2, 0.15],
    [0.25, 0.1],
]
_ENDS = [
    [0.3, 0.2],
    [-0.15, -0.6],
    [-0.1, -0.8],
    [0.2, -0.6],
    [0.25, -0.8],
    [0.25, 0.0],
    [0.3, -0.05],
]
# In the order of `curves` below: head, jaw, body, tail, lines.
_SHARES = [0.20, 0.10, 0.15, 0.15, 0.08, 0.06, 0.06, 0.06, 0.06, 0.04, 0.04]


@sampler
def _trex_parametric(num: int, noise: Array, key: PRNGKey):
    part_key, place_key, noise_key = jr.split(key, 3)
    s = jr.uniform(place_key, (num,))
    wave = jnp.sin(jnp.pi * s)

    head_center = jnp.array([[0.8, 0.4]])
    head = head_center + jnp.array([[0.3, 0.35]]) * unit_circle(jnp.pi * s)
    jaw = jnp.stack([0.5 + 0.6 * s, 0.4 - 0.15 * wave], axis=-1)
    body = jnp.array([[0.35, 0.3]]) * unit_circle(2 * jnp.pi * s)
    tail = jnp.stack([-0.35 - 0.8 * s, 0.3 * wave * (1 - 0.7 * s)], axis=-1)

    starts = jnp.array(_STARTS)[:, None]
    ends = jnp.array(_ENDS)[:, None]
    lines = starts + s[None, :, None] * (ends - starts)

    # All curves at every `s`, of which each point takes one.
    curves = jnp.concatenate([jnp.stack([head, jaw, body, tail]), lines])
    part = jr.categorical(part_key, jnp.log(jnp.array(_SHARES)), shape=(num,))
    return blur(curves[part, jnp.arange(num)], noise, noise_key) / 1.15
