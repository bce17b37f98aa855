"""The Jensen-Shannon divergence of where two collections of clouds have their points."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, Number
from flowkit.metrics._distances import check_values


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
    """The Jensen-Shannon divergence of the occupancy histograms of two collections, in nats, from 0 to `log 2`.

    All points of all clouds of a collection are counted in the cells of one grid, which gives `p` for the samples and
    `q` for the reference; the value is `KL(p, m) / 2 + KL(q, m) / 2` with `m = (p + q) / 2`. It sees where points
    are on average, not which shapes they form: clouds whose points were exchanged among each other score 0. Of `N`
    points of one law in each collection it is about `(number of occupied cells) / (4 N)`, not 0.

    **Arguments:**

    - `samples (a, n, d)`, `reference (b, m, d)`, with optional masks of the valid points.
    - `num_cells`: equal cells along each axis.
    - `limits`: `(low, high)` of the grid along every axis. By default the smallest cube with the centre of the
      reference's bounding box that holds the reference, whatever the samples. A point outside counts in the nearest
      cell.

    **Reference:** Achlioptas et al., *Learning Representations and Generative Models for 3D Point Clouds* (2018),
    arXiv 1707.02392, who use 28 cells and give bits: divide by `log 2`.
    """
    check_values("samples", samples, mask_samples)
    check_values("reference", reference, mask_reference)
    size = samples.shape[-1]
    if num_cells < 1:
        raise ValueError(
            f"`num_cells` is {num_cells}; the grid needs at least one cell along each axis."
        )
    if num_cells**size > MAX_CELLS:
        raise ValueError(
            f"`num_cells` is {num_cells}, which makes {num_cells}^{size} cells; use fewer along each axis."
        )
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"`limits` is {limits}; the lower limit comes first.")
    return _jsd(samples, reference, num_cells, limits, mask_samples, mask_reference)


@eqx.filter_jit
def _jsd(samples, reference, num_cells, limits, mask_samples, mask_reference):
    samples = jnp.asarray(samples)
    reference = jnp.asarray(reference, samples.dtype)
    low, width = _grid(reference, mask_reference, limits)
    p = _occupancy(samples, mask_samples, low, width, num_cells)
    q = _occupancy(reference, mask_reference, low, width, num_cells)
    middle = (p + q) / 2
    return jnp.sum(_kl_terms(p, middle) + _kl_terms(q, middle)) / 2


def _grid(points, mask, limits):
    """The lower corner `(d,)` and the width of the cube."""
    size = points.shape[-1]
    if limits is not None:
        low, high = (jnp.asarray(limit, points.dtype) for limit in limits)
        return jnp.broadcast_to(low, size), high - low
    valid = jnp.ones(points.shape[:2], bool) if mask is None else jnp.asarray(mask)
    lowest = jnp.min(jnp.where(valid[..., None], points, jnp.inf), (0, 1))
    highest = jnp.max(jnp.where(valid[..., None], points, -jnp.inf), (0, 1))
    width = jnp.max(highest - lowest)
    return (lowest + highest - width) / 2, width


def _occupancy(points, mask, low, width, num_cells):
    """The fraction of valid points in each cell."""
    scaled = (points.reshape(-1, points.shape[-1]) - low) / jnp.where(
        width > 0, width, 1
    )
    valid = (
        jnp.ones(len(scaled), bool) if mask is None else jnp.asarray(mask).reshape(-1)
    )
    scaled = jnp.where(valid[:, None], scaled, 0)
    cells = jnp.clip(jnp.floor(scaled * num_cells), 0, num_cells - 1).astype(jnp.int32)
    index = sum(cells[:, k] * num_cells**k for k in range(cells.shape[1]))
    counts = jax.ops.segment_sum(
        valid.astype(jnp.int32), index, num_cells ** cells.shape[1]
    )
    return counts.astype(points.dtype) / jnp.sum(counts).astype(points.dtype)


def _kl_terms(p, middle):
    present = p > 0
    return jnp.where(
        present,
        p * jnp.log(jnp.where(present, p / jnp.where(present, middle, 1), 1)),
        0,
    )
