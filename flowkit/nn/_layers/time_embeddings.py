"""Embeddings of a time.

An embedding maps a time `t`, or the two times of a flow map, to a vector `(out_size,)`.
Any real `t` is allowed, also outside of [0, 1]: networks of two times embed differences,
which may be negative.
"""

import abc
import operator
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._compat import restoring
from flowkit._types import PRNGKey, sum_dtype, Times
from flowkit.nn._layers.feed_forward import FeedForward


DEFAULT_SCALE = 1.0
"""The scale of `SinusoidalTime`, chosen by `benchmarks/time_embeddings.py`."""


class AbstractTimeEmbedding(eqx.Module):
    """A map from a time `()`, or from two `(2,)`, to a vector `(out_size,)`.

    To add one, give it `out_size` and `__call__(t)`, both listed here, and pass it as
    `time_embedding` to any network.
    """

    out_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, t: Times) -> Float[Array, " out_size"]:
        """The embedding of one time, in the dtype of `t` (float32 for numbers)."""


class RawTime(AbstractTimeEmbedding):
    """The time itself, as a vector of one entry.

    `RawTime(2)` is the vector of the two times of a flow map.
    """

    out_size: int = eqx.field(static=True, default=1, converter=operator.index)

    def __call__(self, t: Times) -> Float[Array, " out_size"]:
        times = jnp.ravel(_as_float(t))
        if times.size != self.out_size:
            raise ValueError(
                f"`t` holds {times.size} times, but the embedding is "
                f"RawTime({self.out_size})."
            )
        return times


class TwoTimes(AbstractTimeEmbedding):
    """The two times `(s, t)` of a flow map: `[start(s), span(t - s)]`.

    ```python
    fk.nn.TwoTimes(fk.nn.SinusoidalTime(64))
    ```

    **Arguments:**

    - `start`: the embedding of the first time.
    - `span`: the embedding of the difference; `start` by default.

    Flow maps are differentiated in time, so keep frequencies moderate.
    """

    out_size: int = eqx.field(static=True, converter=operator.index)
    start: AbstractTimeEmbedding
    span: AbstractTimeEmbedding

    def __init__(
        self, start: AbstractTimeEmbedding, span: AbstractTimeEmbedding | None = None
    ):
        self.start = start
        self.span = start if span is None else span
        self.out_size = self.start.out_size + self.span.out_size

    def __call__(self, t: Times) -> Float[Array, " out_size"]:
        times = _as_float(t)
        if times.shape != (2,):
            raise ValueError(
                f"`t` must hold the two times of a flow map, got shape {times.shape}."
            )
        # The difference instead of the second time: it is zero where the map is a velocity.
        return jnp.concatenate([self.start(times[0]), self.span(times[1] - times[0])])


class SinusoidalTime(AbstractTimeEmbedding):
    """`[sin(scale t w), cos(scale t w)]` at log-spaced frequencies `w`, sines first.

    The frequencies are `w_k = max_period^(-k / (size/2 - 1))`.

    **Arguments:**

    - `size`: the size of the result; even and at least 4.
    - `max_period`: the ratio of the slowest to the fastest period.
    - `scale`: the highest frequency, in radians per unit of time; 1 by default. With
      high frequencies the velocity oscillates in time: the fit is no better, and
      adaptive sampling takes many times as many evaluations. The 1000 of diffusion
      models is meant for times from 0 to 1000.
    - `endpoint`: whether the slowest frequency `1 / max_period` is itself included;
      `False` divides by `size/2` instead, as diffusion transformers do.

    **Reference:** Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762),
    section 3.5.
    """

    out_size: int = eqx.field(static=True, converter=operator.index)
    max_period: float
    scale: float
    endpoint: bool = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        max_period: float = 1e4,
        scale: float | None = None,
        endpoint: bool = True,
    ):
        if size < 4 or size % 2:
            raise ValueError(
                f"`size` must be even and at least 4 (sines and cosines), got {size}."
            )
        if scale is None:
            # Models saved by flowkit 0.2.0 were trained with the default of that
            # release.
            scale = 1000.0 if restoring.get() == "0.2.0" else DEFAULT_SCALE
        self.out_size = size
        self.max_period = max_period
        self.scale = scale
        self.endpoint = endpoint

    def __call__(self, t: Times) -> Float[Array, " size"]:
        half = self.out_size // 2
        intervals = half - 1 if self.endpoint else half
        exponents = np.arange(half) / intervals
        return _sines(t, self.scale * self.max_period**-exponents)


class ZeroToOneTime(AbstractTimeEmbedding):
    """A Fourier basis of [0, 1]: `[sin(k pi t), cos(k pi t)]`, `k = 1 ... size/2`.

    **Arguments:** `size`, the size of the result, which is even and at least 2.
    """

    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(self, size: int):
        if size < 2 or size % 2:
            raise ValueError(
                f"`size` must be even and at least 2 (sines and cosines), got {size}."
            )
        self.out_size = size

    def __call__(self, t: Times) -> Float[Array, " size"]:
        return _sines(t, np.pi * np.arange(1, self.out_size // 2 + 1))


class LearnedTime(AbstractTimeEmbedding):
    """Two learned layers: `Linear(activation(Linear(embedding(t))))`.

    **Arguments:**

    - `size`: the size of the result.
    - `embedding`: what the layers see; the time itself by default.
    - `width_size`: the width between the layers; `size` by default.
    - `activation`: the function between the layers.
    - `key`: the key of the initial weights.
    """

    out_size: int = eqx.field(static=True, converter=operator.index)
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
        width_size = size if width_size is None else width_size
        check_sizes(size=size, width_size=width_size)
        self.out_size = size
        self.embedding = embedding
        self.layers = FeedForward(
            embedding.out_size,
            size,
            hidden_sizes=(width_size,),
            activation=activation,
            key=key,
        )

    def __call__(self, t: Times) -> Float[Array, " size"]:
        return self.layers(self.embedding(t))


def embedded_time(
    embedding: AbstractTimeEmbedding, t: Times, dtype: jnp.dtype
) -> Float[Array, " out_size"]:
    """The embedding of a time for features of this dtype.

    It is computed in float32 for features in half precision, which would round times.
    """
    return embedding(jnp.asarray(t, sum_dtype(dtype))).astype(dtype)


def _as_float(t: Times) -> Float[Array, "..."]:
    times = jnp.asarray(t)
    if not jnp.issubdtype(times.dtype, jnp.floating):
        times = times.astype(jnp.result_type(float))
    return times


def _sines(t: Times, frequencies: np.ndarray) -> Float[Array, " size"]:
    time = _as_float(t)
    if time.shape != ():
        raise ValueError(
            f"`t` must be one time, got shape {time.shape}; for the two times of a flow "
            "map wrap the embedding, `fk.nn.TwoTimes(embedding)`."
        )
    # The frequencies are NumPy's, in float64, and are constants of the compiled program.
    angles = time * jnp.asarray(frequencies, time.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
