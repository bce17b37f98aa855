"""The velocity network for vectors, or for small arrays read as vectors."""

import operator
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, Cond, PRNGKey, Times
from flowkit.nn._layers.feed_forward import FeedForward
from flowkit.nn._layers.time_embeddings import (
    AbstractTimeEmbedding,
    embedded_time,
    RawTime,
)


class MLP(eqx.Module):
    """A fully connected velocity network: `v = layers([x, embedding(t), cond])`.

    The initial velocity is 0, because the last layer starts at zero. An array of another
    shape, such as latents `(k, c)`, is flattened, and the result is reshaped to match it.

    **Arguments:**

    - `in_size`: the size of `x`.
    - `out_size`: the size of the result; `in_size` by default.
    - `hidden_sizes`: the widths of the hidden layers.
    - `cond_size`: the total number of entries of the arrays in `cond`; 0 for an
      unconditional network.
    - `time_embedding`: how the time enters; `None` appends the time itself.
    - `activation`: the activation of the hidden layers.
    - `zero_init`: whether the last layer starts at zero.
    - `key`: the key of the initial weights.
    """

    layers: FeedForward
    time_embedding: AbstractTimeEmbedding
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)
    cond_size: int = eqx.field(static=True, converter=operator.index)

    def __init__(
        self,
        in_size: int,
        out_size: int | None = None,
        *,
        hidden_sizes: Sequence[int] = (128, 128, 128),
        cond_size: int = 0,
        time_embedding: AbstractTimeEmbedding | None = None,
        activation: Callable[[Array], Array] = jax.nn.silu,
        zero_init: bool = True,
        key: PRNGKey,
    ):
        if time_embedding is None:
            time_embedding = RawTime()
        self.in_size = in_size
        self.out_size = in_size if out_size is None else out_size
        self.cond_size = cond_size
        self.time_embedding = time_embedding
        self.layers = FeedForward(
            in_size + time_embedding.out_size + cond_size,
            self.out_size,
            hidden_sizes=hidden_sizes,
            activation=activation,
            zero_init=zero_init,
            key=key,
        )

    def __call__(
        self, t: Times, x: Float[AnyArray, "..."], cond: Cond = None
    ) -> Float[Array, "..."]:
        """The velocity at time `t` and place `x`, in the shape of `x`.

        If `out_size` is not `in_size`, the result is a vector `(out_size,)`. `cond` may
        be any pytree of arrays; they are flattened and joined. A `ValueError` is raised
        if `x` or `cond` does not have the size that the network was built for.
        """
        x = jnp.asarray(x)
        if x.size != self.in_size:
            raise ValueError(
                f"`x` has {x.size} entries, but the network was built with "
                f"in_size={self.in_size}. It takes one example; map a batch with "
                "`jax.vmap`."
            )
        time = embedded_time(self.time_embedding, t, x.dtype)
        cond_vectors = self._flat_cond(cond, x.dtype)
        out = self.layers(jnp.concatenate([jnp.ravel(x), time, *cond_vectors]))

        return jnp.reshape(out, x.shape) if self.out_size == self.in_size else out

    def _flat_cond(self, cond: Cond, dtype: jnp.dtype) -> list[Float[Array, " _"]]:
        # Leaves come in the order of the tree: those of a dictionary by sorted keys.
        leaves = jax.tree.leaves(cond)
        vectors = [jnp.ravel(jnp.asarray(leaf)).astype(dtype) for leaf in leaves]
        size = sum(vector.size for vector in vectors)

        if size == self.cond_size:
            return vectors

        numbers = "1 number" if size == 1 else f"{size} numbers"
        came = "is None" if cond is None else f"holds {numbers}"
        hint = ""
        if any(jnp.issubdtype(jnp.result_type(leaf), jnp.integer) for leaf in leaves):
            hint = "; give labels as `jax.nn.one_hot(labels, num_classes)`"
        if self.cond_size == 0:
            raise ValueError(
                f"`cond` {came}, but the network is unconditional: build it with "
                f"cond_size={size}{hint}."
            )
        raise ValueError(
            f"`cond` {came}, but the network was built with "
            f"cond_size={self.cond_size}{hint}."
        )
