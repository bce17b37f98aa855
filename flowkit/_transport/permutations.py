"""Permutations from scores, and their improvement by exchanging partners."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def round_to_permutation(
    scores: Float[Array, "n n"], mask: Bool[Array, " n"]
) -> Int[Array, " n"]:
    """A permutation of high scores: the best of all free pairs is taken, again and again.

    All pairs that are the best of both their row and their column are taken at once,
    which gives the same permutation in far fewer turns.

    **Returns:** a column for each row; masked rows keep their own.
    """
    own = jnp.arange(mask.shape[0], dtype=jnp.int32)
    # No pair with a NaN would ever be taken, and the loop would not end.
    scores = jnp.nan_to_num(scores)

    def step(state):
        columns, taken = state
        unassigned = columns < 0
        free = jnp.where(unassigned[:, None] & ~taken[None, :], scores, -jnp.inf)

        best_column = jnp.argmax(free, axis=1).astype(jnp.int32)
        best_row = jnp.argmax(free, axis=0).astype(jnp.int32)
        mutual = unassigned & (best_row[best_column] == own)

        # The index n is out of range, so rows without a partner mark nothing.
        marks = jnp.where(mutual, best_column, len(own))
        taken = taken.at[marks].set(True, mode="drop")
        return jnp.where(mutual, best_column, columns), taken

    start = (jnp.where(mask, -1, own), ~mask)
    columns, _ = jax.lax.while_loop(lambda state: jnp.any(state[0] < 0), step, start)
    return columns


def improve_by_swaps(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    columns: Int[Array, " n"],
    mask: Bool[Array, " n"],
    num_rounds: int,
) -> Int[Array, " n"]:
    r"""Lowers $\sum_i \|x_i - y_{\pi(i)}\|^2$ by rounds of exchanges between two partners.

    With $z_i = y_{\pi(i)}$, an exchange of the partners of $i$ and $k$ lowers the cost by
    $2 g_{ik}$, where

    $$g_{ik} = -(x_i - x_k) \cdot (z_i - z_k)
      = x_i \cdot z_k + z_i \cdot x_k - x_i \cdot z_i - x_k \cdot z_k,$$

    which is never positive for an optimal permutation: optimal transport is monotone. Each
    round makes all exchanges at once whose two partners gain most from each other.
    """
    own = jnp.arange(mask.shape[0], dtype=jnp.int32)

    def step(state):
        columns, num, _ = state
        z = y[columns]

        # One matrix product gives both mixed terms: (x_i, z_i) . (z_k, x_k).
        left = jnp.concatenate([x, z], axis=1)
        right = jnp.concatenate([z, x], axis=1)
        mixed = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
        inner = jnp.sum(x * z, axis=1)
        gain = mixed - inner[:, None] - inner[None, :]
        gain = jnp.where(mask[:, None] & mask[None, :], gain, -jnp.inf)

        improves = (jnp.max(gain, axis=1) > 0) & mask
        favorite = jnp.argmax(gain, axis=1).astype(jnp.int32)
        favorite = jnp.where(improves, favorite, own)
        partner = jnp.where(favorite[favorite] == own, favorite, own)
        return columns[partner], num + 1, jnp.any(partner != own)

    def unfinished(state):
        _, num, changed = state
        return changed & (num < num_rounds)

    start = (columns, 0, jnp.asarray(True))
    columns, _, _ = jax.lax.while_loop(unfinished, step, start)
    return columns
