"""The condition of a field: where its values are wanted, and its known values."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowkit._masks import zero_masked
from flowkit._types import AnyArray, Cond, is_traced, Mask


class Observed(eqx.Module):
    """What a velocity network of a field is conditioned on.

    ```python
    cond = fk.nn.Observed(query_coords, coords, values)
    loss = fk.flow_matching_loss(flow, x1, cond, key=key)
    ```

    The state `x`, `(m, c)`, holds the values at the `m` query coordinates. All arrays may
    have a leading axis of a batch.

    **Arguments:**

    - `query_coords`: `(m, d)`, where values are wanted.
    - `coords`: `(n, d)`, where values were observed.
    - `values`: `(n, c)`, the observed values.
    - `mask`: `(n,)`, which observations are valid, so that images with different numbers
      of them fit into one batch; `None` for all of them. The others have no influence,
      whatever they hold.

    Coordinates are in [0, 1]: pixel `i` of a row of 32 is at `i / 31`.

    **Raises:** `ValueError` if shapes do not fit together, and, where the coordinates
    are known, if they are outside [0, 1].
    """

    query_coords: Float[AnyArray, "..."]
    coords: Float[AnyArray, "..."]
    values: Float[AnyArray, "..."]
    mask: Bool[AnyArray, "..."] | None = None

    # Not run by transformations of JAX, which take the record apart and build it again.
    def __check_init__(self):
        leading = self.query_coords.shape[:-2]
        shapes = {"coords": self.coords.shape, "values": self.values.shape}
        for name, shape in shapes.items():
            if len(shape) != len(leading) + 2 or shape[:-2] != leading:
                raise ValueError(
                    f"`{name}` must have shape {(*leading, 'n', 'size')}, as "
                    f"`query_coords` has shape {self.query_coords.shape}, got {shape}."
                )
        check_rows_fit(self)

        valid = True if self.mask is None else self.mask
        _check_range("query_coords", self.query_coords, True)
        _check_range("coords", self.coords, valid)

    def as_null(self) -> "Observed":
        """The same queries with nothing observed: the empty condition for `fk.guided`.

        **Raises:** `ValueError` without a mask.
        """
        if self.mask is None:
            raise ValueError(
                "`mask` is missing, and without one no observation can be left out; "
                "give `fk.nn.Observed` a mask of `True`, with one entry per observation."
            )
        return eqx.tree_at(lambda seen: seen.mask, self, jnp.zeros_like(self.mask))


def check_rows_fit(cond: Observed) -> None:
    """Raises unless coordinates, values and mask describe the same observations."""
    rows = cond.coords.shape[:-1]
    if cond.values.shape[:-1] != rows:
        raise ValueError(
            f"`values` must have one row for each of `coords`, got the shapes "
            f"{cond.values.shape} and {cond.coords.shape}."
        )
    if cond.query_coords.shape[-1] != cond.coords.shape[-1]:
        raise ValueError(
            f"`query_coords` and `coords` must have the same dimension, got the shapes "
            f"{cond.query_coords.shape} and {cond.coords.shape}."
        )
    if cond.mask is not None and cond.mask.shape != rows:
        raise ValueError(
            f"`mask` must have shape {rows}, one entry per observation, got "
            f"{cond.mask.shape}."
        )


def _check_range(name: str, coords: AnyArray, valid: AnyArray | bool) -> None:
    if is_traced(coords, valid):
        return
    outside = ~((np.asarray(coords) >= 0) & (np.asarray(coords) <= 1))
    if np.any(np.any(outside, axis=-1) & valid):
        raise ValueError(
            f"`{name}` must be in [0, 1]; divide the indices of pixels by the number of "
            "pixels along the axis, minus 1."
        )


def checked_observed(
    cond: Cond, x: Float[Array, "m c"], mask: Mask | None, coord_size: int
) -> Observed:
    """The condition with masked rows set to zero and values in the dtype of `x`.

    `mask` marks the valid rows of `x`, and so of the query coordinates. Raises a
    `ValueError` if the condition is not an `Observed` or does not fit `x`.
    """
    if not isinstance(cond, Observed):
        raise ValueError(
            "`cond` must be the observations, `fk.nn.Observed(query_coords, coords, "
            f"values)`, got {type(cond).__name__}."
        )
    if cond.query_coords.shape != (x.shape[0], coord_size):
        raise ValueError(
            f"`query_coords` must have shape {(x.shape[0], coord_size)}, one row for "
            f"each of `x`, got {cond.query_coords.shape}; a batch needs a leading axis "
            "in all arrays of `cond`, or `jax.vmap`."
        )
    check_rows_fit(cond)
    if cond.values.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"`values` must have {x.shape[-1]} channels, as `x`, got shape "
            f"{cond.values.shape}."
        )
    return Observed(
        zero_masked(cond.query_coords, mask),
        zero_masked(cond.coords, cond.mask),
        zero_masked(jnp.asarray(cond.values, x.dtype), cond.mask),
        cond.mask,
    )


def checked_state(x: AnyArray, value_size: int) -> Float[Array, "m c"]:
    """The state `(m, value_size)`; raises a `ValueError` for any other shape."""
    if x.ndim != 2 or x.shape[-1] != value_size:
        raise ValueError(
            f"`x` must have shape (m, {value_size}), the values at the query "
            f"coordinates, got {x.shape}."
        )
    if not len(x):
        raise ValueError("`x` is empty: give at least one row, and its `query_coords`.")
    return jnp.asarray(x)


def joined_masks(
    first: Bool[AnyArray, " _"] | None,
    num_first: int,
    second: Bool[AnyArray, " _"] | None,
    num_second: int,
) -> Bool[Array, " _"] | None:
    """The joint mask of two sets, either of which may have none."""
    if first is None and second is None:
        return None
    masks = [
        jnp.ones(num, bool) if mask is None else jnp.asarray(mask)
        for mask, num in [(first, num_first), (second, num_second)]
    ]
    return jnp.concatenate(masks)
