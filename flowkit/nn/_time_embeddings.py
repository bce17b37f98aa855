"""Embeddings of a time.

An embedding maps a time `t`, or the two times of a flow map, to a vector `(out_size,)`. Any real `t` is legal, also
outside of [0, 1]: networks of two times embed differences, which may be negative.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import PRNGKey, Times
from flowkit.nn._feed_forward import FeedForward


class AbstractTimeEmbedding(eqx.Module):
    """A map from a time `()`, or from two `(2,)`, to a vector `(out_size,)`.

    To add one: give it `out_size` and `__call__(t)`, both here, and pass it as `time_embedding` to any network.
    """

    out_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, t: Times) -> Float[Array, " out_size"]:
        """The embedding of one time, in the dtype of `t` (float32 for Python numbers)."""


class RawTime(AbstractTimeEmbedding):
    """The time itself, as a vector of one entry; the two times of a flow map with `RawTime(2)`."""

    out_size: int = eqx.field(static=True, default=1)

    def __call__(self, t: Times) -> Float[Array, " out_size"]:
        array = jnp.ravel(_as_float(t))
        if array.size != self.out_size:
            raise ValueError(
                f"`t` holds {array.size} times, but the embedding is RawTime({self.out_size})."
            )
        return array


class TwoTimes(AbstractTimeEmbedding):
    """The two times `(s, t)` of a flow map: `[start(s), span(t - s)]`.

    ```python
    fk.nn.TwoTimes(fk.nn.SinusoidalTime(64, scale=1.0))
    ```

    **Arguments:** the embeddings of the first time and of the difference, the same one by default. Flow maps are
    differentiated in time, so keep frequencies moderate: `scale=1` for sinusoidal ones.
    """

    out_size: int = eqx.field(static=True)
    start: AbstractTimeEmbedding
    span: AbstractTimeEmbedding

    def __init__(
        self, start: AbstractTimeEmbedding, span: AbstractTimeEmbedding | None = None
    ):
        self.start = start
        self.span = start if span is None else span
        self.out_size = self.start.out_size + self.span.out_size

    def __call__(self, t: Times) -> Float[Array, " out_size"]:
        array = _as_float(t)
        if array.shape != (2,):
            raise ValueError(
                f"`t` must hold the two times of a flow map, got shape {array.shape}."
            )
        return jnp.concatenate([self.start(array[0]), self.span(array[1] - array[0])])


class SinusoidalTime(AbstractTimeEmbedding):
    """`[sin(scale t w), cos(scale t w)]` at the frequencies `w_k = max_period^(-k / (size/2 - 1))`, sines first.

    **Arguments:**

    - `size`: even and at least 4.
    - `max_period`: the ratio of the slowest to the fastest period.
    - `scale`: 1000 suits velocity fields, whose time runs over [0, 1] only. Use 1 in any network that is
        differentiated in time (mean flows and other flow maps): the derivative grows with the scale.
    - `endpoint`: whether the slowest frequency `1 / max_period` is itself included; `False` divides by `size/2`
        instead, as diffusion transformers do.

    **Reference:** Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762), section 3.5.
    """

    out_size: int = eqx.field(static=True)
    max_period: float
    scale: float
    endpoint: bool = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        max_period: float = 1e4,
        scale: float = 1000.0,
        endpoint: bool = True,
    ):
        if size < 4 or size % 2:
            raise ValueError(
                f"`size` must be even and at least 4 (sines and cosines), got {size}."
            )
        self.out_size = size
        self.max_period = max_period
        self.scale = scale
        self.endpoint = endpoint

    def __call__(self, t: Times) -> Float[Array, " size"]:
        half = self.out_size // 2
        exponents = np.arange(half) / (half - 1 if self.endpoint else half)
        return _sines(t, self.scale * self.max_period**-exponents)


class ZeroToOneTime(AbstractTimeEmbedding):
    """`[sin(k pi t), cos(k pi t)]` for `k = 1 ... size/2`: a Fourier basis of the interval [0, 1], sines first.

    **Arguments:** `size`, even and at least 2.
    """

    out_size: int = eqx.field(static=True)

    def __init__(self, size: int):
        if size < 2 or size % 2:
            raise ValueError(
                f"`size` must be even and at least 2 (sines and cosines), got {size}."
            )
        self.out_size = size

    def __call__(self, t: Times) -> Float[Array, " size"]:
        return _sines(t, np.pi * np.arange(1, self.out_size // 2 + 1))


class LearnedTime(AbstractTimeEmbedding):
    """Two learned layers on another embedding: `Linear(activation(Linear(embedding(t))))`.

    **Arguments:**

    - `size`: of the result.
    - `embedding`: what the layers see; the raw time by default.
    - `width_size`: between the layers; `size` by default.
    - `activation`: between the layers.
    """

    out_size: int = eqx.field(static=True)
    embedding: AbstractTimeEmbedding
    layers: FeedForward

    def __init__(
        self,
        size: int,
        *,
        embedding: AbstractTimeEmbedding = RawTime(),
        width_size: int | None = None,
        activation: Callable[[Array], Array] = jax.nn.silu,
        key: PRNGKey,
    ):
        self.out_size = size
        self.embedding = embedding
        self.layers = FeedForward(
            embedding.out_size,
            size,
            hidden_sizes=(width_size or size,),
            activation=activation,
            key=key,
        )

    def __call__(self, t: Times) -> Float[Array, " size"]:
        return self.layers(self.embedding(t))


def _as_float(t: Times) -> Float[Array, "..."]:
    array = jnp.asarray(t)
    return (
        array
        if jnp.issubdtype(array.dtype, jnp.floating)
        else array.astype(jnp.result_type(float))
    )


def _sines(t: Times, frequencies: np.ndarray) -> Float[Array, " size"]:
    array = _as_float(t)
    if array.shape != ():
        raise ValueError(
            f"`t` must be one time, got shape {array.shape}; for the two times of a flow map wrap the embedding, "
            "`fk.nn.TwoTimes(embedding)`."
        )
    angles = array * jnp.asarray(frequencies, array.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
