"""Embeddings of coordinates, in any dimension, each point on its own."""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, UInt32

from flowkit._types import AnyArray, Points, PRNGKey
from flowkit.nn._linear import Linear
from flowkit.nn._shapes import out_size_of


class AbstractFeatures(eqx.Module):
    """A map from a cloud `(n, d)` to features `(n, f)`, each point on its own.

    To add one: write `__call__(points)` and pass it as `features` to `PointEmbedding` or to a network.
    """

    @abc.abstractmethod
    def __call__(self, points: Points) -> Float[Array, "n f"]:
        """The features of every point, in the dtype of the points."""


class SinusoidalFeatures(AbstractFeatures):
    """`sin(w x)` and `cos(w x)` of every coordinate at fixed frequencies `w`: `2 d len(frequencies)` features.

    **Arguments:** `frequencies`, in radians per unit: `log_spaced(...)` or `banded(...)`, or a sequence of one's own.
    """

    frequencies: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, frequencies: Sequence[float] | None = None):
        self.frequencies = (
            log_spaced()
            if frequencies is None
            else tuple(float(w) for w in frequencies)
        )

    def __call__(self, points: Points) -> Float[Array, "n f"]:
        points = jnp.asarray(points)
        angles = points[:, :, None] * jnp.asarray(self.frequencies, points.dtype)
        angles = angles.reshape(points.shape[0], -1)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class FourierFeatures(AbstractFeatures):
    """`[sin(2 pi B x), cos(2 pi B x)]` with random frequencies `B ~ N(0, scale^2)` of shape `(num_frequencies, d)`.

    Fixed frequencies are not stored but drawn again at every call from an integer seed, so that no optimizer, average
    or weight decay can move them.

    **Arguments:**

    - `in_size`: the dimension `d`.
    - `num_frequencies`: half the number of features.
    - `scale`: the standard deviation of the frequencies.
    - `learnable`: whether the frequencies are parameters.
    - `key`: for the frequencies.

    **Reference:** Tancik et al., Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional
    Domains, 2020 (arXiv 2006.10739).
    """

    seed: UInt32[AnyArray, ""] | None
    weight: Float[AnyArray, "num_frequencies in_size"] | None
    scale: float
    in_size: int = eqx.field(static=True)
    num_frequencies: int = eqx.field(static=True)

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
        self.num_frequencies = num_frequencies
        self.scale = scale
        seed = jr.bits(key, dtype=jnp.uint32)
        self.seed = None if learnable else seed
        self.weight = self._draw(seed) if learnable else None

    def _draw(
        self, seed: UInt32[AnyArray, ""]
    ) -> Float[Array, "num_frequencies in_size"]:
        # The generator is named, so that a stored model does not depend on JAX's settings.
        key = jr.key(jnp.asarray(seed), impl="threefry2x32")
        return self.scale * jr.normal(
            key, (self.num_frequencies, self.in_size), jnp.float32
        )

    def __call__(self, points: Points) -> Float[Array, "n f"]:
        points = jnp.asarray(points)
        weight = self._draw(self.seed) if self.weight is None else self.weight  # pyright: ignore
        angles = 2 * jnp.pi * (points @ weight.astype(points.dtype).T)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class PointEmbedding(eqx.Module):
    """One linear map of a point's coordinates and, if any, its features: `(n, in_size) -> (n, out_size)`.

    **Arguments:**

    - `in_size`, `out_size`: coordinates and width.
    - `features`: `None` is a linear embedding of the coordinates alone.
    - `use_raw`: whether the coordinates themselves stand beside the features.
    - `key`: for the initial weights.
    """

    linear: Linear
    features: AbstractFeatures | None
    use_raw: bool = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

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
        self.linear = Linear(
            out_size_of(self._features, (1, in_size)), out_size, key=key
        )

    def _features(self, points: Points) -> Float[Array, "n f"]:
        if self.features is None:
            return jnp.asarray(points)
        features = self.features(points)
        return (
            jnp.concatenate([points, features], axis=-1) if self.use_raw else features
        )

    def __call__(self, points: Points) -> Float[Array, "n width"]:
        return self.linear(self._features(points))


def log_spaced(
    number: int = 16, lowest: float = 1.0, highest: float = 10.0
) -> tuple[float, ...]:
    """`number` frequencies from `lowest` to `highest` with a constant ratio between neighbours."""
    return tuple(np.geomspace(lowest, highest, number).tolist())


def banded(
    num_bands: int = 4, per_band: int = 4, lowest: float = 1.0, highest: float = 64.0
) -> tuple[float, ...]:
    """Frequencies at several scales: bands with log-spaced edges, and `per_band` evenly spaced values in each.

    A band holds its lower edge but not its upper one, which is the first value of the next band.
    """
    edges = np.geomspace(lowest, highest, num_bands + 1)
    bands = np.linspace(edges[:-1], edges[1:], per_band, endpoint=False, axis=1)
    return tuple(bands.ravel().tolist())
