"""Distances by an exact optimal assignment of points."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowkit._distances import squared_distances
from flowkit._transport import solve_assignment
from flowkit._types import AnyArray, is_traced, Mask
from flowkit.metrics._inputs import check_pair, prepare_pair
from flowkit.metrics._reductions import safe_sqrt, valid_mean


def emd(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    r"""The earth mover's distance, exactly.

    $$\min_\pi \tfrac1n \sum_i |x_i - y_{\pi(i)}|, \qquad \pi \text{ a bijection}.$$

    Distances are plain, not squared, and averaged over points: this is the 1-Wasserstein
    distance of two clouds of equal size. The assignment is solved on the host in `O(n^3)`,
    about 2 ms for 256 points, and several at a time under `jax.vmap` or in `pairwise`.
    The value is differentiable, with the assignment held fixed.

    **Arguments:** `x (n, d)` and `y (m, d)`, with optional masks `(n,)` and `(m,)`. Both
    need the same number of valid points; otherwise a `ValueError` is raised, or the value
    is NaN under a transformation.

    **Reference:** Rubner, Tomasi & Guibas (2000); in this form Yang et al., *PointFlow*
    (2019), arXiv 1906.12320.
    """
    _check_counts(x, y, mask_x, mask_y)
    return _emd(x, y, mask_x, mask_y)


def w2(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    r"""The 2-Wasserstein distance of two clouds of equal size, exactly.

    $$\sqrt{\min_\pi \tfrac1n \sum_i |x_i - y_{\pi(i)}|^2}, \qquad
    \pi \text{ a bijection}.$$

    Everything else is as in `emd`, but the assignment differs, since the cost is squared.
    Two samples of one smooth distribution are not at distance 0, but at about `n^(-1/2)`
    on a line, `sqrt(log(n) / n)` in the plane, and `n^(-1/d)` in more dimensions (Ajtai,
    Komlos & Tusnady, 1984), so compare a value with that of two such samples. Where two
    distributions differ by more than that, the bias is smaller.
    """
    _check_counts(x, y, mask_x, mask_y)
    return _w2(x, y, mask_x, mask_y)


def _check_counts(x, y, mask_x, mask_y) -> None:
    check_pair(x, y, mask_x, mask_y)
    # Counts are not known yet: unequal ones make the assignment fail, and the value
    # NaN.
    if is_traced(mask_x, mask_y):
        return

    num_x = len(x) if mask_x is None else int(np.sum(mask_x))
    num_y = len(y) if mask_y is None else int(np.sum(mask_y))
    if num_x != num_y:
        raise ValueError(
            f"`x` has {num_x} valid points and `y` has {num_y}: an assignment needs equal "
            "numbers. Subsample the larger cloud, or use `chamfer`, `energy_distance` or "
            "`sliced_w2`, which allow unequal sizes."
        )


@eqx.filter_jit
def _emd(x, y, mask_x, mask_y):
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    costs = safe_sqrt(squared_distances(x, y))
    indices = solve_assignment(costs, mask_x, mask_y)
    return _mean_or_nan(safe_sqrt(_squared_gaps(x, y, indices)), mask_x, indices)


@eqx.filter_jit
def _w2(x, y, mask_x, mask_y):
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    indices = solve_assignment(squared_distances(x, y), mask_x, mask_y)
    return safe_sqrt(_mean_or_nan(_squared_gaps(x, y, indices), mask_x, indices))


def _squared_gaps(x, y, indices):
    """`|x_i - y_indices(i)|^2`, through which the gradient flows."""
    # A masked row has index -1, which takes the last point; the mean leaves it out.
    return jnp.sum(jnp.square(x - y[indices]), axis=1)


def _mean_or_nan(costs, mask_x, indices):
    """The mean over valid points; NaN if the assignment failed, which gives -1."""
    failed = jnp.any(mask_x & (indices < 0))
    return jnp.where(failed, jnp.nan, valid_mean(costs, mask_x))
