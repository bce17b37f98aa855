"""Embeddings of a time.

An embedding maps a number `t` to a vector `(out_size,)`. Any real `t` is legal, also outside of [0, 1]: networks of
two times embed differences, which may be negative. `TwoTimes` maps a pair of times instead, for the networks of flow
maps.
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
    """A map from a time `()`, or from a pair of times `(2,)`, to a vector `(out_size,)`.

    To add one: give it `out_size` and `__call__(t)`, both here, and pass it as `time_embedding` to any network.
    """

    out_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, t: Times) -> Float[Array, " out_size"]:
        """The embedding, in the dtype of `t` (float32 for Python numbers)."""


class RawTime(AbstractTimeEmbedding):
    """The time itself, as a vector of one entry."""

    out_size: int = eqx.field(static=True, default=1)

    def __call__(self, t: Times) -> Float[Array, " 1"]:
        return _one_time(t)[None]


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

    def __init__(self, size: int, *, max_period: float = 1e4, scale: float = 1000.0, endpoint: bool = True):
        if size < 4 or size % 2:
            raise ValueError(f"`size` must be even and at least 4 (sines and cosines), got {size}.")
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
            raise ValueError(f"`size` must be even and at least 2 (sines and cosines), got {size}.")
        self.out_size = size

    def __call__(self, t: Times) -> Float[Array, " size"]:
        return _sines(t, np.pi * np.arange(1, self.out_size // 2 + 1))


class TwoTimes(AbstractTimeEmbedding):
    """`[embedding(s), embedding(t - s)]` of a pair of times `(s, t)`: where a map starts, and how far it goes.

    With it any network here becomes that of a `fk.few_step.FlowMap`:

    ```python
    network = fk.nn.MLP(2, time_embedding=fk.nn.TwoTimes(), key=key)
    ```

    **Arguments:**

    - `embedding`: of each of the two; the raw time by default. It must be smooth, since flow maps are differentiated in
        time: give `SinusoidalTime` a `scale` of 1.

    **Reference:** Geng et al., Mean Flows for One-step Generative Modeling, 2025 (arXiv 2505.13447), where the time and
    the difference did best.
    """

    out_size: int = eqx.field(static=True)
    embedding: AbstractTimeEmbedding

    def __init__(self, embedding: AbstractTimeEmbedding = RawTime()):
        self.out_size = 2 * embedding.out_size
        self.embedding = embedding

    def __call__(self, t: Times) -> Float[Array, " out_size"]:
        pair = jnp.asarray(t)
        if pair.shape != (2,):
            raise ValueError(
                f"`t` must be a pair of times (s, t), got shape {pair.shape}: a network with `TwoTimes` belongs in a "
                "`fk.few_step.FlowMap`; its velocity is `fk.few_step.velocity_of(flow_map)`."
            )
        return jnp.concatenate([self.embedding(pair[0]), self.embedding(pair[1] - pair[0])])


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
            embedding.out_size, size, hidden_sizes=(width_size or size,), activation=activation, key=key
        )

    def __call__(self, t: Times) -> Float[Array, " size"]:
        return self.layers(self.embedding(t))


def _one_time(t: Times) -> Float[Array, ""]:
    array = jnp.asarray(t)
    if array.shape != ():
        raise ValueError(
            f"`t` must be one time, got shape {array.shape}: for a pair of times, as flow maps have, give the network "
            "(and its conditioner, if that embeds the time) `time_embedding=fk.nn.TwoTimes(...)`."
        )
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))


def _sines(t: Times, frequencies: np.ndarray) -> Float[Array, " size"]:
    array = _one_time(t)
    angles = array * jnp.asarray(frequencies, array.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
