"""The velocity of a field at any coordinates, given some of its values."""

import operator
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Cond, Mask, PRNGKey, Times
from flowkit.nn._fields.latent_blocks import LatentBlock, LatentReader
from flowkit.nn._fields.observed import checked_observed, checked_state
from flowkit.nn._fields.queries import FieldQueries
from flowkit.nn._fields.tokens import FieldTokens
from flowkit.nn._layers.features import AbstractFeatures, FourierFeatures
from flowkit.nn._layers.layer_norm import LayerNorm, normalize
from flowkit.nn._layers.linear import Linear
from flowkit.nn._layers.modulation import modulate, Modulation
from flowkit.nn._layers.time_embeddings import (
    AbstractTimeEmbedding,
    embedded_time,
    LearnedTime,
    SinusoidalTime,
)
from flowkit.nn._layers.transformer import split_or_none


# A scale and a shift for each norm: three in a block of the reader; for the decoder that
# of the queries, two of its own, and that of the output.
PER_BLOCK = 6
OF_DECODER = 8


class PixelField(eqx.Module):
    r"""The velocity of a field at any coordinates, given some of its values.

    As a velocity network it is called `(t, x, cond)`, where `x`, `(m, value_size)`, is
    the state at the `m` query coordinates and `cond` is an `Observed`:

    ```python
    flow = fk.Flow(fk.nn.PixelField(3, key=key))
    cond = fk.nn.Observed(query_coords, coords, values)
    loss = fk.flow_matching_loss(flow, x1, cond, key=key)
    samples = fk.sample(flow, (m, 3), num_samples=b, cond=cond, key=key)
    ```

    Like `PerceiverIO`, it reads the observed values and the state into latents and answers
    the queries from them. It starts at zero and differs in these ways:

    - Observed values and states become tokens by linear maps of their own,
      $\mathrm{GELU}(\mathrm{LN}(W \phi(c) + V_{\text{type}} v + b_{\text{type}}))$.
    - The time scales and shifts all normalized features, by vectors that start at zero.
    - A query also holds its own state, and the values and offsets of the observations
      nearest to it, and goes through attention to the latents and an MLP, both with
      residual connections.

    It does not depend on the order of the observations, and is equivariant in the
    queries. The cost is linear in the numbers of observations and queries.

    The queried points see each other, because their states are tokens. Without that,
    each value would be plausible by itself, but not jointly with the others. So the
    velocity at one point depends on which others are queried. If many more points are
    queried than in training, set `state_tokens` to about the number of points in
    training. The other points are then queried, but not read, and the latents see about
    as many tokens as in training.

    **Arguments:**

    - `value_size`, `coord_size`: the number of channels, and the dimension of the
      coordinates.
    - `width_size`, `num_latents`, `depth`: as in `PerceiverIO`.
    - `features`: fixed features of the coordinates; by default `FourierFeatures` with
      128 frequencies of scale 10.
    - `num_neighbors`: the number of nearest observations that a query holds.
    - `state_tokens`: the maximum number of states that become tokens, spread evenly
      over the queries by their coordinates; `None` for all. With 0 the queries do not
      see each other.
    - `cond_size`: the width of the embedded time.
    - `time_embedding`: how the time enters; `SinusoidalTime(32)` by default, and
      `TwoTimes(...)` for flow maps.
    - `key`: the key of the initial weights.
    - options of the blocks, as in `PerceiverIO`: `num_heads` (8), `mlp_ratio` (4),
      `dropout` (0).

    Without a valid observation the latents see the state alone.

    **Raises:** `ValueError` for an `x` or a `cond` that does not fit, and if there is
    nothing to read: no observation and `state_tokens=0`.

    **Reference:** Jaegle et al., Perceiver IO, 2021 (arXiv 2107.14795); Peebles, Xie,
    2023 (arXiv 2212.09748), for the time.
    """

    time: LearnedTime
    modulation: Modulation
    tokens: FieldTokens
    reader: LatentReader
    latent_norm: LayerNorm
    queries: FieldQueries
    decoder: LatentBlock
    out: Linear
    value_size: int = eqx.field(static=True, converter=operator.index)
    coord_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        value_size: int = 3,
        coord_size: int = 2,
        *,
        width_size: int = 256,
        num_latents: int = 256,
        depth: int = 6,
        features: AbstractFeatures | None = None,
        num_neighbors: int = 4,
        state_tokens: int | None = None,
        cond_size: int = 256,
        time_embedding: AbstractTimeEmbedding | None = None,
        key: PRNGKey,
        **block_options: Any,
    ):
        check_sizes(width_size=width_size, cond_size=cond_size)
        keys = jr.split(key, 8)
        if time_embedding is None:
            time_embedding = SinusoidalTime(32)
        if features is None:
            features = FourierFeatures(coord_size, num_frequencies=128, key=keys[0])
        sizes = (value_size, coord_size, width_size)
        self.value_size = value_size
        self.coord_size = coord_size

        self.time = LearnedTime(cond_size, embedding=time_embedding, key=keys[1])
        number = PER_BLOCK * depth + OF_DECODER
        self.modulation = Modulation(
            cond_size, width_size, number, zero_init=True, key=keys[2]
        )
        self.tokens = FieldTokens(
            *sizes, features=features, max_states=state_tokens, key=keys[3]
        )
        self.reader = LatentReader(
            width_size, num_latents, depth, **block_options, key=keys[4]
        )
        self.latent_norm = LayerNorm(width_size)
        self.queries = FieldQueries(
            *sizes, features=features, num_neighbors=num_neighbors, key=keys[5]
        )
        self.decoder = LatentBlock(
            width_size, thinks=False, **block_options, key=keys[6]
        )
        self.out = Linear(width_size, value_size, zero_init=True, key=keys[7])

    def __call__(
        self,
        t: Times,
        x: Float[AnyArray, "..."],
        cond: Cond,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "m c"]:
        """The velocity at the query coordinates, zero where masked.

        `mask` marks the valid rows of `x`; the key is for dropout, without one nothing
        is dropped.
        """
        x = zero_masked(checked_state(x, self.value_size), mask)
        seen = checked_observed(cond, x, mask, self.coord_size)
        reader_key, decoder_key = split_or_none(key, 2)

        time = jax.nn.silu(embedded_time(self.time, t, x.dtype))
        modulation = self.modulation(time[None])
        of_reader = modulation[:-OF_DECODER]
        of_queries = modulation[-8:-6]
        of_decoder = modulation[-6:-2]
        scale, shift = modulation[-2:]

        tokens, there = self.tokens(x, seen, mask)
        latents = self.reader(tokens, there, of_reader, key=reader_key)
        latents = self.latent_norm(latents)

        h = self.queries(x, seen, of_queries)
        h = self.decoder(h, latents, None, of_decoder, key=decoder_key)
        return zero_masked(self.out(modulate(normalize(h), scale, shift)), mask)
