"""Perceiver IO: values at any coordinates, read off latents that have read a set."""

import operator

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._checks import check_sizes
from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Mask, Points, PRNGKey
from flowkit.nn._fields.latent_blocks import gelu, LatentReader
from flowkit.nn._layers.attention import Attention
from flowkit.nn._layers.features import FourierFeatures
from flowkit.nn._layers.layer_norm import LayerNorm
from flowkit.nn._layers.linear import Linear
from flowkit.nn._sets.masks import valid_points


class PerceiverIO(eqx.Module):
    r"""Values at any coordinates, given values at some.

    With Fourier features $\phi$ of coordinates, the inputs become tokens
    $\mathrm{GELU}(\mathrm{LN}(W [\phi(c), v]))$. Learned latents $h$ read them and attend
    to each other in every block,

    $$h \leftarrow h + \mathrm{Attn}(\mathrm{LN}\, h, \text{tokens}), \quad
    h \leftarrow h + \mathrm{Attn}(\mathrm{LN}\, h), \quad
    h \leftarrow h + \mathrm{MLP}(\mathrm{LN}\, h),$$

    and queries $\mathrm{GELU}(\mathrm{LN}(U \phi(q)))$ read the latents by one
    attention, without a residual connection, before a last linear map. The result does
    not depend on the order of the inputs, and each query is answered on its own. The
    cost is linear in the numbers of inputs and of queries.

    **Arguments:**

    - `coord_size`, `value_size`: the dimension of the coordinates, and the number of
      input channels.
    - `out_size`: the number of output channels; `value_size` by default.
    - `width_size`, `num_latents`, `depth`: the width of everything, the number of
      latents, and the number of blocks, each with its own weights.
    - `num_heads`: the number of heads of each attention, which has biases.
    - `num_frequencies`, `frequency_scale`: the number and `scale` of the frequencies of
      `FourierFeatures`, which are fixed. The default scale is for coordinates in [0, 1].
    - `mlp_ratio`: the hidden width of the MLP, divided by `width_size`.
    - `dropout`: as in `Residual`.
    - `key`: the key of the initial weights.

    **Raises:** `ValueError` for arrays whose sizes are not those that the network was
    built for, and if there are no inputs at all.

    **Reference:** Jaegle et al., Perceiver, 2021 (arXiv 2103.03206), and Perceiver IO,
    2021 (arXiv 2107.14795); Tancik et al., 2020 (arXiv 2006.10739), for the features.
    """

    features: FourierFeatures
    token_in: Linear
    token_norm: LayerNorm
    reader: LatentReader
    query_in: Linear
    query_norm: LayerNorm
    decoder: Attention
    out: Linear
    coord_size: int = eqx.field(static=True, converter=operator.index)
    value_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        coord_size: int,
        value_size: int,
        out_size: int | None = None,
        *,
        width_size: int = 512,
        num_latents: int = 512,
        depth: int = 6,
        num_heads: int = 8,
        num_frequencies: int = 256,
        frequency_scale: float = 10.0,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        key: PRNGKey,
    ):
        keys = jr.split(key, 6)
        self.coord_size = coord_size
        self.value_size = value_size
        self.out_size = value_size if out_size is None else out_size
        check_sizes(value_size=value_size, coord_size=coord_size)

        self.features = FourierFeatures(
            coord_size,
            num_frequencies=num_frequencies,
            scale=frequency_scale,
            key=keys[0],
        )
        sizes = (width_size, num_latents, depth)
        self.reader = LatentReader(
            *sizes,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            key=keys[2],
        )
        num_features = 2 * num_frequencies
        self.token_in = Linear(num_features + value_size, width_size, key=keys[1])
        self.token_norm = LayerNorm(width_size)
        self.query_in = Linear(num_features, width_size, key=keys[3])
        self.query_norm = LayerNorm(width_size)
        self.decoder = Attention(
            width_size, num_heads=num_heads, use_bias=True, key=keys[4]
        )
        self.out = Linear(width_size, self.out_size, key=keys[5])

    def __call__(
        self,
        coords: Points,
        values: Float[AnyArray, "n c"],
        query_coords: Float[AnyArray, "m _"],
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "m out_size"]:
        """The values at the query coordinates, in the dtype of `values`.

        `mask` marks the valid inputs. If there are none, no token is read. The key is
        for dropout; without one nothing is dropped.
        """
        if coords.shape[0] == 0:
            raise ValueError(
                "`coords` is an empty set: pad it to at least one row and mask that."
            )
        if query_coords.shape[0] == 0:
            raise ValueError("`query_coords` is empty: give at least one.")
        if values.shape[-1] != self.value_size:
            raise ValueError(
                f"`values` have {values.shape[-1]} channels, but the network was built "
                f"with value_size={self.value_size}."
            )
        coords = valid_points(coords, mask, self.coord_size)
        query_coords = valid_points(query_coords, None, self.coord_size)
        values = zero_masked(values, mask)

        # Features are computed in the precision of the coordinates.
        place = self.features(coords).astype(values.dtype)
        tokens = self.token_in(jnp.concatenate([place, values], axis=-1))
        latents = self.reader(gelu(self.token_norm(tokens)), mask, key=key)

        place = self.features(query_coords).astype(values.dtype)
        queries = gelu(self.query_norm(self.query_in(place)))
        return self.out(self.decoder(queries, latents))
