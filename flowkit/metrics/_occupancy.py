r"""The Jensen-Shannon divergence between the occupancies of two collections of clouds.

With the fractions $p$ and $q$ of all points in the cells of one grid, and $m = (p + q)/2$,

$$\mathrm{JSD} = \tfrac12 \mathrm{KL}(p, m) + \tfrac12 \mathrm{KL}(q, m).$$
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, Number, numbers_as_arrays
from flowkit.metrics._inputs import check_values, nan_if_any, working_dtype


MAX_CELLS = 2**24


def jsd(
    samples: Float[AnyArray, "a n d"],
    reference: Float[AnyArray, "b m d"],
    *,
    num_cells: int = 28,
    limits: tuple[Number, Number] | None = None,
    mask_samples: Bool[AnyArray, "a n"] | None = None,
    mask_reference: Bool[AnyArray, "b m"] | None = None,
) -> Float[Array, ""]:
    """The Jensen-Shannon divergence of two occupancy histograms, from 0 to `log 2` nats.

    All points of all clouds of a collection are counted in the cells of one grid. The
    value sees where points are on average, not which shapes they form: clouds that
    exchange points among each other score 0. For `N` points of one distribution in each
    collection it is about `(number of occupied cells) / (4 N)`, not 0.

    **Arguments:**

    - `samples (a, n, d)`, `reference (b, m, d)`: the collections.
    - `num_cells`: the number of equal cells along each axis.
    - `limits`: `(low, high)` of the grid along every axis. By default the grid is the
      smallest cube that holds the reference, centered on its bounding box, regardless
      of the samples. A point outside counts in the nearest cell.
    - `mask_samples`, `mask_reference`: the valid points.

    **Reference:** Achlioptas et al., *Learning Representations and Generative Models for
    3D Point Clouds* (2018), arXiv 1707.02392, who use 28 cells and give bits: divide by
    `log 2`.
    """
    check_values("samples", samples, mask_samples)
    check_values("reference", reference, mask_reference)
    size = samples.shape[-1]
    num_cells = int(num_cells)
    if num_cells < 1:
        raise ValueError(
            f"`num_cells` is {num_cells}; the grid needs at least one cell along each axis."
        )
    if num_cells**size > MAX_CELLS:
        raise ValueError(
            f"`num_cells` is {num_cells}, which makes {num_cells}^{size} cells; use fewer "
            "along each axis."
        )
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"`limits` is {limits}; the lower limit comes first.")

    limits = numbers_as_arrays(limits)
    return _jsd(samples, reference, num_cells, limits, mask_samples, mask_reference)


@eqx.filter_jit
def _jsd(samples, reference, num_cells, limits, mask_samples, mask_reference):
    dtype = working_dtype(samples)
    samples = jnp.asarray(samples, dtype)
    reference = jnp.asarray(reference, dtype)
    low, width = _grid(reference, mask_reference, limits)

    p = _occupancy(samples, mask_samples, low, width, num_cells)
    q = _occupancy(reference, mask_reference, low, width, num_cells)
    middle = (p + q) / 2
    divergence = jnp.sum(_kl_terms(p, middle) + _kl_terms(q, middle)) / 2
    return nan_if_any(divergence, p, q)


def _grid(points, mask, limits):
    """The lower corner `(d,)` and the width of the cube."""
    if limits is not None:
        low = jnp.full(points.shape[-1], limits[0], points.dtype)
        return low, jnp.asarray(limits[1], points.dtype) - low[0]

    valid = jnp.ones(points.shape[:2], bool) if mask is None else jnp.asarray(mask)
    lowest = jnp.min(jnp.where(valid[..., None], points, jnp.inf), (0, 1))
    highest = jnp.max(jnp.where(valid[..., None], points, -jnp.inf), (0, 1))
    width = jnp.max(highest - lowest)
    return (lowest + highest - width) / 2, width


def _occupancy(points, mask, low, width, num_cells):
    """The fraction of valid points in each cell."""
    points = points.reshape(-1, points.shape[-1])
    valid = jnp.ones(len(points), bool)
    if mask is not None:
        valid = jnp.asarray(mask).reshape(-1)

    # A reference of one point has a cube of width zero, all of whose cells are one.
    scaled = (points - low[None]) / jnp.where(width > 0, width, 1)
    # Masked points may hold NaN, which has no integer; they are counted as zero below.
    scaled = jnp.where(valid[:, None], scaled, 0)
    cells = jnp.clip(jnp.floor(scaled * num_cells), 0, num_cells - 1).astype(jnp.int32)

    index = jnp.zeros(len(points), jnp.int32)
    for k in range(cells.shape[1]):
        index += cells[:, k] * num_cells**k
    num_all = num_cells ** cells.shape[1]
    # In integers: a float32 sum of ones stops growing at `2**24`.
    counts = jax.ops.segment_sum(valid.astype(jnp.int32), index, num_all)
    fractions = counts.astype(points.dtype) / jnp.sum(counts).astype(points.dtype)
    return nan_if_any(fractions, scaled)


def _kl_terms(p, middle):
    """`p log(p / middle)`, zero where `p` is."""
    present = p > 0
    ratio = jnp.where(present, p, 1) / jnp.where(present, middle, 1)
    return jnp.where(present, p * jnp.log(ratio), 0)
