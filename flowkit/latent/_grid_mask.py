"""Masks that hide whole regions of a cloud from the encoder.

The encoder learns to work from parts of a cloud.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool

from flowkit._types import is_traced, Mask, Points, PRNGKey, Scalar


class GridMask(eqx.Module):
    """`grid_mask` with its options fixed, drawn again for each cloud and step.

    It is an `encoder_mask` of `set_flow_loss`:

    ```python
    hide = fk.latent.GridMask(3, 0.33)
    fk.latent.set_flow_loss(model, points, mask=mask, encoder_mask=hide, key=key)
    ```

    **Arguments:** as in `grid_mask`.
    """

    grid_size: int = eqx.field(static=True, default=3)
    probability: Scalar = 0.33

    def __check_init__(self):
        _check(self.grid_size, self.probability)

    def __call__(
        self, points: Points, mask: Mask | None = None, *, key: PRNGKey
    ) -> Bool[Array, " n"]:
        return grid_mask(
            points,
            mask,
            grid_size=self.grid_size,
            probability=self.probability,
            key=key,
        )


def grid_mask(
    points: Points,
    mask: Mask | None = None,
    *,
    grid_size: int = 3,
    probability: Scalar = 0.33,
    key: PRNGKey,
) -> Bool[Array, " n"]:
    """Which points of a cloud are visible once random cells of a grid are hidden.

    The grid divides the smallest box around the valid points into `grid_size` equal parts
    along every axis, in any dimension. Points in one cell are hidden together. If no valid
    point would be left, all of them are visible: with `m` occupied cells the expected
    visible fraction is `1 - p + p**m`.

    **Arguments:**

    - `points`, `mask`: one cloud `(n, d)` and its valid points; the others are not visible
      and have no influence.
    - `grid_size`: the number of cells along each axis.
    - `probability`: the probability that a cell is hidden, in [0, 1].
    - `key`: the key of the cells.
    """
    _check(grid_size, probability)
    points = jnp.asarray(points)
    valid = jnp.ones(points.shape[0], bool) if mask is None else jnp.asarray(mask)

    # Masked points, which may hold anything, are moved onto a valid one, where they do not
    # widen the box.
    points = jnp.where(valid[:, None], points, 0)
    points = jnp.where(valid[:, None], points, points[jnp.argmax(valid)][None])

    low = jnp.min(points, axis=0, keepdims=True)
    high = jnp.max(points, axis=0, keepdims=True)
    # A cloud may have no extent along an axis; the clip below is for its upper face.
    scaled = grid_size * (points - low) / (high - low + 1e-8)
    cells = jnp.clip(jnp.floor(scaled).astype(jnp.int32), 0, grid_size - 1)

    # Each cell has a key of its own: a table of all cells would have `grid_size**d` entries.
    def is_hidden(cell: Array) -> Array:
        return jr.bernoulli(ft.reduce(jr.fold_in, cell, key), probability)

    visible = valid & ~jax.vmap(is_hidden)(cells)
    return jnp.where(jnp.any(visible), visible, valid)


def _check(grid_size: int, probability: Scalar) -> None:
    if grid_size < 1:
        raise ValueError(f"`grid_size` must be at least 1, got {grid_size}.")
    if not is_traced(probability) and not 0 <= probability <= 1:
        raise ValueError(f"`probability` must lie in [0, 1], got {probability}.")
