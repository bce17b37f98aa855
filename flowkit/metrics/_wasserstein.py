"""Wasserstein distances on the line, and of projections onto lines."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._types import AnyArray, is_traced, Mask, PRNGKey, Scalar
from flowkit.metrics._distances import check_pair, prepare_pair, safe_sqrt


def wasserstein_1d(
    x: Float[AnyArray, " n"],
    y: Float[AnyArray, " m"],
    p: Scalar = 1,
    *,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
) -> Float[Array, ""]:
    """The p-Wasserstein distance of two samples on the line, `(int_0^1 |F_x^-1(q) - F_y^-1(q)|^p dq)^(1/p)`.

    For equal sizes that is `(mean_i |x_(i) - y_(i)|^p)^(1/p)` of the sorted values; for unequal ones the integral
    of the step functions, exactly. With `p = 1` it is `scipy.stats.wasserstein_distance`.

    **Arguments:** `x (n,)`, `y (m,)`, the order `p >= 1`, and optional masks of the valid values.
    """
    check_pair(x, y, mask_x, mask_y)
    if not is_traced(p) and not p >= 1:
        raise ValueError(
            f"`p` is {p}; a Wasserstein distance needs an order of at least 1."
        )
    return _wasserstein_1d(
        x, y, jnp.asarray(p, jax.dtypes.canonicalize_dtype(x.dtype)), mask_x, mask_y
    )


def sliced_w2(
    x: Float[AnyArray, "n d"],
    y: Float[AnyArray, "m d"],
    *,
    num_projections: int = 128,
    mask_x: Mask | None = None,
    mask_y: Bool[AnyArray, " m"] | None = None,
    key: PRNGKey,
) -> Float[Array, ""]:
    """The sliced 2-Wasserstein distance, `sqrt(E_theta W_2(theta.x, theta.y)^2)`, `theta` uniform on the sphere.

    The expectation is a mean over `num_projections` directions, so the square is unbiased in the directions; the
    same key gives the same directions. Sizes may differ. A shift by `a` gives `|a| / sqrt(d)`.

    **Arguments:** `x (n, d)`, `y (m, d)` with optional masks `(n,)`, `(m,)` of the valid points.

    **Reference:** Bonneel et al., *Sliced and Radon Wasserstein Barycenters of Measures* (2015).
    """
    check_pair(x, y, mask_x, mask_y)
    if num_projections < 1:
        raise ValueError(
            f"`num_projections` is {num_projections}; at least one direction is needed."
        )
    return _sliced_w2(x, y, num_projections, mask_x, mask_y, key)


@eqx.filter_jit
def _wasserstein_1d(x, y, p, mask_x, mask_y):
    full = mask_x is None and mask_y is None
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    gaps, widths = _quantile_gaps(x, y, mask_x, mask_y, full)
    positive = (
        gaps > 0
    )  # the derivative of gaps**p at zero has a logarithm of zero in it
    mean = jnp.sum(
        widths * jnp.where(positive, jnp.where(positive, gaps, 1) ** p, gaps)
    )
    positive = mean > 0
    return jnp.where(positive, jnp.where(positive, mean, 1) ** (1 / p), mean)


@eqx.filter_jit
def _sliced_w2(x, y, num_projections, mask_x, mask_y, key):
    full = mask_x is None and mask_y is None
    x, y, mask_x, mask_y = prepare_pair(x, y, mask_x, mask_y)
    directions = jr.normal(key, (num_projections, x.shape[1]), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)

    def squared(direction):
        # Sums of products, not a matrix product, which an accelerator would do in low precision.
        line_x, line_y = jnp.sum(x * direction, 1), jnp.sum(y * direction, 1)
        gaps, widths = _quantile_gaps(line_x, line_y, mask_x, mask_y, full)
        return jnp.sum(widths * jnp.square(gaps))

    return safe_sqrt(jnp.mean(jax.vmap(squared)(directions)))


def _quantile_gaps(x, y, mask_x, mask_y, full):
    """`|F_x^-1 - F_y^-1|` on the intervals where both are constant, and the lengths of these intervals."""
    if full and x.shape == y.shape:
        return jnp.abs(jnp.sort(x) - jnp.sort(y)), jnp.asarray(1 / x.shape[0], x.dtype)
    x, levels_x = _quantiles(x, mask_x)
    y, levels_y = _quantiles(y, mask_y)
    levels = jnp.sort(jnp.concatenate([jnp.zeros(1, x.dtype), levels_x, levels_y]))
    middles = (levels[1:] + levels[:-1]) / 2
    gaps = jnp.abs(
        x[jnp.searchsorted(levels_x, middles)] - y[jnp.searchsorted(levels_y, middles)]
    )
    return gaps, jnp.diff(levels)


def _quantiles(x, mask):
    """The valid values in order, the last one repeated, with the levels up to which each is the quantile."""
    count = jnp.sum(mask)
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf))[
        jnp.minimum(jnp.arange(x.shape[0]), count - 1)
    ]
    steps = jnp.minimum(jnp.arange(1, x.shape[0] + 1), count)
    return ordered, steps.astype(x.dtype) / count.astype(x.dtype)
