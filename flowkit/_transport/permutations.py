"""Permutations from scores, and their improvement by exchanging partners."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def round_to_permutation(
    scores: Float[Array, "n n"], mask: Bool[Array, " n"]
) -> Int[Array, " n"]:
    """A permutation of high scores: of all free pairs the best is taken, again and again.

    All pairs that are the best of both their row and their column are taken at once, which comes to the same.

    **Returns:** a column for each row; rows that are masked keep their own.
    """
    own = jnp.arange(mask.shape[0], dtype=jnp.int32)
    scores = jnp.nan_to_num(
        scores
    )  # of non-finite data, of which no pair would ever be taken

    def step(state):
        columns, taken = state
        free = jnp.where((columns < 0)[:, None] & ~taken, scores, -jnp.inf)
        best = jnp.argmax(free, axis=1).astype(jnp.int32)
        mutual = (columns < 0) & (jnp.argmax(free, axis=0)[best] == own)
        return jnp.where(mutual, best, columns), taken.at[
            jnp.where(mutual, best, len(own))
        ].set(True, mode="drop")

    start = jnp.where(mask, -1, own), ~mask
    return jax.lax.while_loop(lambda state: jnp.any(state[0] < 0), step, start)[0]


def improve_by_swaps(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    columns: Int[Array, " n"],
    mask: Bool[Array, " n"],
    num_rounds: int,
) -> Int[Array, " n"]:
    r"""Lowers $\sum_i \|x_i - y_{\pi(i)}\|^2$ by exchanging two partners, all pairs at once that suit each other best.

    An exchange of $i$ and $k$ lowers the cost by $-2 (x_i - x_k) \cdot (y_{\pi(i)} - y_{\pi(k)})$: optimal transport is
    monotone.
    """
    own = jnp.arange(mask.shape[0], dtype=jnp.int32)

    def step(state):
        columns, num, _ = state
        z = y[columns]
        crossed = jnp.matmul(
            jnp.concatenate([x, z], 1),
            jnp.concatenate([z, x], 1).T,
            precision=jax.lax.Precision.HIGHEST,
        )
        inner = jnp.sum(x * z, axis=1)
        gain = jnp.where(
            mask[:, None] & mask, crossed - inner[:, None] - inner, -jnp.inf
        )
        best = jnp.where(
            (jnp.max(gain, axis=1) > 0) & mask,
            jnp.argmax(gain, axis=1).astype(jnp.int32),
            own,
        )
        partner = jnp.where(best[best] == own, best, own)
        return columns[partner], num + 1, jnp.any(partner != own)

    unfinished = lambda state: state[2] & (state[1] < num_rounds)
    return jax.lax.while_loop(unfinished, step, (columns, 0, jnp.asarray(True)))[0]
