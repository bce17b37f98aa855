r"""Wasserstein distances on the line, and of projections onto lines.

On the line the best plan is monotone, so the distance is that of the quantile functions,

$$W_p^p = \int_0^1 |F_x^{-1}(q) - F_y^{-1}(q)|^p\, dq,$$

which are step functions for samples: a sum over the intervals where both are constant.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, is_traced, Mask, PRNGKey, Scalar
from flowkit.metrics._inputs import check_pair, prepare_pair, working_dtype
from flowkit.metrics._reductions import safe_sqrt


def wasserstein_1d(
    x: Float[AnyArray, " n"],
    y: Float[AnyArray, " m"],
    p: Scalar = 1,
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    r"""The p-Wasserstein distance of two samples on the line.

    $$\Bigl(\int_0^1 |F_x^{-1}(q) - F_y^{-1}(q)|^p\, dq\Bigr)^{1/p}.$$

    For equal sizes that is `(mean_i |x_(i) - y_(i)|^p)^(1/p)` of the sorted values. For
    unequal ones it is the integral of the step functions, exactly. With `p = 1` it is
    `scipy.stats.wasserstein_distance`.

    **Arguments:**

    - `x (n,)`, `y (m,)`: the samples.
    - `p`: the order, at least 1. Infinity gives the largest difference of quantiles.
    - `mask_x`, `mask_y`: the valid values.
    """
    check_pair(x, y, mask_x, mask_y)
    if not is_traced(p) and not p >= 1:
        raise ValueError(
            f"`p` is {p}; a Wasserstein distance needs an order of at least 1."
        )
    order = jnp.asarray(p, working_dtype(x))
    return _wasserstein_1d(x, y, order, mask_x, mask_y)


def sliced_w2(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    num_projections: int = 128,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
    key: PRNGKey,
) -> Float[Array, ""]:
    r"""The sliced 2-Wasserstein distance.

    $$\sqrt{E_\theta\, W_2(\theta \cdot x, \theta \cdot y)^2}, \qquad
    \theta \text{ uniform on the sphere}.$$

    The expectation is a mean over random directions, so the square is unbiased in them;
    the same key gives the same directions. Sizes may differ. A shift by `a` gives
    `|a| / sqrt(d)`.

    **Arguments:**

    - `x (n, d)`, `y (m, d)`: the samples.
    - `num_projections`: the number of directions.
    - `mask_x`, `mask_y`: the valid points.

    **Reference:** Bonneel et al., *Sliced and Radon Wasserstein Barycenters of Measures*
    (2015).
    """
    check_pair(x, y, mask_x, mask_y)
    if num_projections < 1:
        raise ValueError(
            f"`num_projections` is {num_projections}; at least one direction is needed."
        )
    return _sliced_w2(x, y, int(num_projections), mask_x, mask_y, key)


@eqx.filter_jit
def _wasserstein_1d(x, y, p, mask_x, mask_y):
    gaps, widths = _quantile_gaps(*_prepared(x, y, mask_x, mask_y))
    largest = jnp.max(jnp.where(widths > 0, gaps, 0))

    # Powers of gaps between 0 and 1 stay in range; W_p(c x, c y) = c W_p(x, y).
    scale = lax.stop_gradient(jnp.where(largest > 0, largest, 1))
    infinite = jnp.isinf(p)
    order = jnp.where(infinite, 1, p)
    mean = jnp.sum(widths * _power(gaps / scale, order))
    return jnp.where(infinite, largest, scale * _power(mean, 1 / order))


def _power(x, p):
    """`x**p` for `x >= 0`, with derivative zero at zero, where that of a power may be NaN."""
    positive = x > 0
    return jnp.where(positive, jnp.where(positive, x, 1) ** p, x)


@eqx.filter_jit
def _sliced_w2(x, y, num_projections, mask_x, mask_y, key):
    x, y, mask_x, mask_y = _prepared(x, y, mask_x, mask_y)
    directions = jr.normal(key, (num_projections, x.shape[1]), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)

    def squared(direction):
        # Sums of products, since some accelerators round the factors of a matrix product.
        line_x = jnp.sum(x * direction[None], axis=1)
        line_y = jnp.sum(y * direction[None], axis=1)
        gaps, widths = _quantile_gaps(line_x, line_y, mask_x, mask_y)
        return jnp.sum(widths * jnp.square(gaps))

    return safe_sqrt(jnp.mean(jax.vmap(squared)(directions)))


def _prepared(x, y, mask_x, mask_y):
    """The sets in one type; masks stay `None` where neither set has one."""
    full = mask_x is None and mask_y is None
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    return (x, y, None, None) if full else (x, y, mask_x, mask_y)


def _quantile_gaps(x, y, mask_x, mask_y):
    """`|F_x^-1 - F_y^-1|` where both are constant, and the lengths of these intervals."""
    # The steps of both functions coincide, so sorting is enough.
    if mask_x is None and x.shape == y.shape:
        gaps = jnp.abs(jnp.sort(x) - jnp.sort(y))
        return gaps, jnp.full(x.shape, 1 / len(x), x.dtype)

    x, levels_x = _quantiles(x, mask_x)
    y, levels_y = _quantiles(y, mask_y)
    levels = jnp.sort(jnp.concatenate([jnp.zeros(1, x.dtype), levels_x, levels_y]))

    # In the middle of an interval no rounding decides on which side of a step it lies.
    middles = (levels[1:] + levels[:-1]) / 2
    at_x = x[jnp.searchsorted(levels_x, middles)]
    at_y = y[jnp.searchsorted(levels_y, middles)]
    return jnp.abs(at_x - at_y), jnp.diff(levels)


def _quantiles(x, mask):
    """The valid values in order, the last one repeated, and the level each ends at."""
    size = len(x)
    mask = jnp.ones(size, bool) if mask is None else mask
    count = jnp.sum(mask)

    # Infinity puts what is masked behind every valid value.
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf))
    values = ordered[jnp.minimum(jnp.arange(size), count - 1)]
    # Masked values end at level 1, as the last valid one does: their intervals are
    # empty.
    ends = jnp.minimum(jnp.arange(1, size + 1), count)
    return values, ends.astype(x.dtype) / count.astype(x.dtype)
