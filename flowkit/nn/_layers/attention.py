"""Attention over a set."""

import functools as ft
import math
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_sizes
from flowkit._masks import zero_masked
from flowkit._types import AnyArray, PRNGKey, sum_dtype
from flowkit.nn._layers.linear import Linear


class Attention(eqx.Module):
    r"""Multi-head attention of rows $x_i$ to the rows $y_j$ of a context.

    $$\mathrm{softmax}_j\big( q_i \cdot k_j / \sqrt{d_h} \big)\, v_j, \qquad
    q = x W_q,\ k = y W_k,\ v = y W_v$$

    in every head; $W_o$ joins the heads. There are no positions: the result is
    equivariant under permutations of the rows, and invariant under permutations of the
    rows of the context. If `num_kv_heads` is less than `num_heads`, consecutive heads
    share keys and values. This is grouped-query attention, or multi-query attention if
    `num_kv_heads` is 1.

    **Arguments:**

    - `width_size`: the width of the rows and of the result.
    - `context_size`: the width of the rows of the context; `width_size` by default.
    - `num_heads`: the number of heads, which divides `width_size`.
    - `num_kv_heads`: the number of heads of keys and values, which divides `num_heads`
      and is `num_heads` by default.
    - `use_bias`: whether the four linear maps have biases.
    - `key`: the key of the initial weights.

    **Reference:** Vaswani et al., 2017 (arXiv 1706.03762); Shazeer, 2019
    (arXiv 1911.02150), for one key-value head; Ainslie et al., 2023 (arXiv 2305.13245),
    for groups.
    """

    query: Linear
    keys: Linear
    values: Linear
    out: Linear
    num_heads: int = eqx.field(static=True, converter=operator.index)
    num_kv_heads: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        width_size: int,
        *,
        context_size: int | None = None,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        use_bias: bool = False,
        key: PRNGKey,
    ):
        if context_size is None:
            context_size = width_size
        if num_kv_heads is None:
            num_kv_heads = num_heads
        check_sizes(width_size=width_size, context_size=context_size)
        if num_heads < 1 or width_size % num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of {width_size}, got {num_heads}."
            )
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(
                f"`num_kv_heads` must divide the {num_heads} heads, got {num_kv_heads}."
            )
        query_key, keys_key, values_key, out_key = jr.split(key, 4)
        kv_size = width_size // num_heads * num_kv_heads

        self.query = Linear(width_size, width_size, use_bias=use_bias, key=query_key)
        self.keys = Linear(context_size, kv_size, use_bias=use_bias, key=keys_key)
        self.values = Linear(context_size, kv_size, use_bias=use_bias, key=values_key)
        self.out = Linear(width_size, width_size, use_bias=use_bias, key=out_key)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads

    def __call__(
        self,
        x: Float[AnyArray, "n width"],
        context: Float[AnyArray, "m context"] | None = None,
        mask: Bool[AnyArray, " m"] | None = None,
    ) -> Float[Array, "n width"]:
        """The result for the rows of `x`; the context is `x` itself if `None`.

        `mask` marks the valid rows of the context, whatever the others hold; if there
        are none, the result is zero.
        """
        if mask is not None:
            mask = jnp.asarray(mask)
        if context is None:
            # As queries too: NaN in one row would be in the gradients of all.
            x = context = zero_masked(x, mask)
        else:
            context = zero_masked(context, mask)

        gathered = _gather(
            _split_heads(self.query(x), self.num_heads),
            _split_heads(self.keys(context), self.num_kv_heads),
            _split_heads(self.values(context), self.num_kv_heads),
            mask,
        )
        gathered = self.out(jnp.swapaxes(gathered, 0, 1).reshape(x.shape[0], -1))

        if mask is not None:
            # Without a valid row, the softmax is a mean over rows that are not there.
            gathered = jnp.where(jnp.any(mask), gathered, 0)
        return gathered


def _split_heads(
    rows: Float[Array, "n width"], num_heads: int
) -> Float[Array, "heads n size"]:
    return jnp.swapaxes(rows.reshape(rows.shape[0], num_heads, -1), 0, 1)


def _gather(
    query: Float[Array, "heads n size"],
    keys: Float[Array, "kv_heads m size"],
    values: Float[Array, "kv_heads m size"],
    mask: Bool[Array, " m"] | None,
) -> Float[Array, "heads n size"]:
    r"""$\sum_j e_{ij} v_j / \sum_j e_{ij}$ with $e_{ij} = \exp(q_i \cdot k_j / \sqrt{d})$.

    The division comes last, between two sums over the context. So no `n x m` matrix is
    divided, and the derivative takes one product with `e`, half as many passes over memory
    as for a softmax.
    """
    # Half precision is multiplied without a cast, and summed in float32.
    product = ft.partial(jnp.matmul, preferred_element_type=sum_dtype(values.dtype))

    # Heads that share keys and values are rows of one product with them.
    rows = query.reshape(keys.shape[0], -1, query.shape[-1])
    logits = product(rows / math.sqrt(rows.shape[-1]), jnp.swapaxes(keys, 1, 2))
    if mask is not None:
        # Finite, so that no row is NaN even if nothing is valid.
        least = jnp.finfo(logits.dtype).min
        logits = jnp.where(mask[None, None], logits, least)

    # Against overflow only: the quotient does not depend on it.
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest).astype(values.dtype)
    total = jnp.sum(weights, axis=-1, keepdims=True, dtype=logits.dtype)
    gathered = product(weights, values) / total
    return gathered.astype(values.dtype).reshape(query.shape)
