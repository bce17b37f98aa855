"""Embeddings of coordinates in any dimension, each point on its own.

A network that sees coordinates alone is slow to learn fine detail; sines and cosines of
several frequencies give it that detail directly.
"""

import abc
import operator
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, UInt32

from flowkit._checks import as_size
from flowkit._types import AnyArray, Points, PRNGKey
from flowkit.nn._layers.arrays import in_sum_dtype, out_size_of
from flowkit.nn._layers.linear import Linear


class AbstractFeatures(eqx.Module):
    """A map from a cloud `(n, d)` to features `(n, f)`, each point on its own.

    To add one, write `__call__(points)` and pass it as `features` to `PointEmbedding` or
    to a network.
    """

    @abc.abstractmethod
    def __call__(self, points: Points) -> Float[Array, "n f"]:
        """The features of every point, in the dtype of the points."""


class SinusoidalFeatures(AbstractFeatures):
    """`sin(w x)` and `cos(w x)` of every coordinate at fixed frequencies `w`.

    These are `2 d len(frequencies)` features.

    **Arguments:** `frequencies`, in radians per unit: `log_spaced(...)` (the default),
    `banded(...)`, or any sequence.
    """

    frequencies: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, frequencies: Sequence[float] | None = None):
        if frequencies is None:
            frequencies = log_spaced()
        self.frequencies = tuple(float(w) for w in frequencies)

    def __call__(self, points: Points) -> Float[Array, "n f"]:
        x = in_sum_dtype(points)
        frequencies = jnp.asarray(self.frequencies, x.dtype)
        angles = x[:, :, None] * frequencies[None, None, :]
        return _sines_and_cosines(angles.reshape(x.shape[0], -1), points.dtype)


class FourierFeatures(AbstractFeatures):
    """`[sin(2 pi B x), cos(2 pi B x)]` with random frequencies `B ~ N(0, scale^2)`.

    `B` has the shape `(num_frequencies, d)`. Fixed frequencies are not stored but drawn
    again at every call from an integer seed, so that no optimizer, average or weight
    decay can move them.

    **Arguments:**

    - `in_size`: the dimension `d`.
    - `num_frequencies`: half the number of features.
    - `scale`: the standard deviation of the frequencies.
    - `learnable`: whether the frequencies are parameters.
    - `key`: the key of the frequencies.

    **Reference:** Tancik et al., Fourier Features Let Networks Learn High Frequency
    Functions in Low Dimensional Domains, 2020 (arXiv 2006.10739).
    """

    seed: UInt32[AnyArray, ""] | None
    weight: Float[AnyArray, "num_frequencies in_size"] | None
    scale: float
    in_size: int = eqx.field(static=True, converter=operator.index)
    num_frequencies: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        *,
        num_frequencies: int = 256,
        scale: float = 10.0,
        learnable: bool = False,
        key: PRNGKey,
    ):
        self.in_size = in_size
        self.num_frequencies = as_size("num_frequencies", num_frequencies)
        self.scale = scale
        seed = jr.bits(key, dtype=jnp.uint32)
        self.seed = None if learnable else seed
        self.weight = self._draw(seed) if learnable else None

    def _draw(
        self, seed: UInt32[AnyArray, ""]
    ) -> Float[Array, "num_frequencies in_size"]:
        # The generator is named, so that a stored model does not depend on JAX's
        # settings.
        key = jr.key(jnp.asarray(seed), impl="threefry2x32")
        shape = (self.num_frequencies, self.in_size)
        return self.scale * jr.normal(key, shape, jnp.float32)

    def __call__(self, points: Points) -> Float[Array, "n f"]:
        if points.shape[1] != self.in_size:
            raise ValueError(
                f"`points` have {points.shape[1]} coordinates, but the features were "
                f"built with in_size={self.in_size}."
            )
        x = in_sum_dtype(points)
        weight = self.weight
        if weight is None:
            weight = self._draw(self.seed)  # pyright: ignore

        # An angle of many turns keeps its fraction of a turn in full precision only.
        turns = jnp.matmul(
            x, weight.astype(x.dtype).T, precision=jax.lax.Precision.HIGHEST
        )
        return _sines_and_cosines(2 * jnp.pi * turns, points.dtype)


class PointEmbedding(eqx.Module):
    """One linear map of a point's coordinates and, if any, its features.

    Maps `(n, in_size)` to `(n, out_size)`.

    **Arguments:**

    - `in_size`, `out_size`: the number of coordinates, and the width.
    - `features`: fixed features; `None` embeds the coordinates alone.
    - `use_raw`: whether the coordinates themselves are used along with the features.
    - `key`: the key of the initial weights.
    """

    linear: Linear
    features: AbstractFeatures | None
    use_raw: bool = eqx.field(static=True)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        features: AbstractFeatures | None = None,
        use_raw: bool = True,
        key: PRNGKey,
    ):
        self.features = features
        self.use_raw = use_raw
        self.out_size = out_size
        num_inputs = out_size_of(self._inputs, (1, in_size))
        self.linear = Linear(num_inputs, out_size, key=key)

    def _inputs(self, points: Points) -> Float[Array, "n f"]:
        if self.features is None:
            return jnp.asarray(points)
        if not self.use_raw:
            return self.features(points)
        return jnp.concatenate([points, self.features(points)], axis=-1)

    def __call__(self, points: Points) -> Float[Array, "n width"]:
        return self.linear(self._inputs(points))


def log_spaced(
    number: int = 16, lowest: float = 1.0, highest: float = 10.0
) -> tuple[float, ...]:
    """`number` frequencies from `lowest` to `highest`, with a constant ratio."""
    return tuple(np.geomspace(lowest, highest, number).tolist())


def banded(
    num_bands: int = 4, per_band: int = 4, lowest: float = 1.0, highest: float = 64.0
) -> tuple[float, ...]:
    """Frequencies at several scales: log-spaced bands with evenly spaced values.

    A band holds `per_band` values, its lower edge among them. Its upper edge is the
    first value of the next band.
    """
    edges = np.geomspace(lowest, highest, num_bands + 1)
    bands = np.linspace(edges[:-1], edges[1:], per_band, endpoint=False, axis=1)
    return tuple(bands.ravel().tolist())


def _sines_and_cosines(
    angles: Float[Array, "n f"], dtype: jnp.dtype
) -> Float[Array, "n f2"]:
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    # NumPy points may be float64 where JAX has float32 only.
    return features.astype(jax.dtypes.canonicalize_dtype(dtype))
