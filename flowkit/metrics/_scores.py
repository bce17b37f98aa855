"""Scores of a set of generated clouds, from matrices of distances; pairs are `(samples, reference)`.

Yang et al., *PointFlow* (2019), arXiv 1906.12320, define the three and argue for 1-NNA; Lopez-Paz & Oquab,
*Revisiting Classifier Two-Sample Tests* (2017), arXiv 1610.06545, give its statistics.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced


def one_nna(
    d_xx: Float[AnyArray, "a1 a2"],
    d_xy: Float[AnyArray, "a b"],
    d_yy: Float[AnyArray, "b1 b2"],
) -> Float[Array, ""]:
    """The leave-one-out accuracy of a nearest-neighbour classifier that tells samples `x` from references `y`.

    Each cloud of the pool is assigned to the list of its nearest other cloud. 0.5 is ideal: the lists cannot be
    told apart. 1 means that they are disjoint, below 0.5 that samples copy the reference. For `a` samples of the
    reference's own law the value scatters by about `0.5 / sqrt(a)`.

    Ties: where the nearest cloud of the same list is exactly as far as that of the other, the classifier tosses a
    coin and half a hit is counted.

    **Arguments:** the distances within the samples `(a, a)`, between samples and references `(a, b)`, and within
    the references `(b, b)`. The lists must be equally long, `a == b >= 2`; otherwise 0.5 would not be ideal.
    """
    num_x, num_y = d_xy.shape
    for name, matrix, size in (("d_xx", d_xx, num_x), ("d_yy", d_yy, num_y)):
        if matrix.shape != (size, size):
            raise ValueError(
                f"`{name}` has shape {matrix.shape}, but `d_xy` of shape {d_xy.shape} asks for {(size, size)}; "
                "the order is (samples, reference)."
            )
    if num_x != num_y or num_x < 2:
        raise ValueError(
            f"`d_xy` is {num_x} samples against {num_y} references; 1-NNA needs two equally long lists of at "
            "least two clouds."
        )
    _check_matrices(d_xx=d_xx, d_xy=d_xy, d_yy=d_yy)
    return _one_nna(d_xx, d_xy, d_yy)


def mmd(d_xy: Float[AnyArray, "a b"]) -> Float[Array, ""]:
    """The minimum matching distance: the mean over references of the distance to the nearest sample.

    **Arguments:** `d_xy (a, b)`, rows for samples and columns for references. Low is good; a poor sample among
    good ones goes unnoticed. Not the kernel statistic of the same initials.
    """
    _check_matrices(d_xy=d_xy)
    return _mmd(d_xy)


def coverage(d_xy: Float[AnyArray, "a b"]) -> Float[Array, ""]:
    """The fraction of references that are the nearest reference of some sample.

    **Arguments:** `d_xy (a, b)`, rows for samples and columns for references. High is good; of references equally
    near to a sample the first one counts as covered.
    """
    _check_matrices(d_xy=d_xy)
    return _coverage(d_xy)


def _check_matrices(**matrices) -> None:
    for name, matrix in matrices.items():
        if 0 in matrix.shape:
            raise ValueError(
                f"`{name}` has shape {matrix.shape}; there must be a sample and a reference."
            )
        if not is_traced(matrix) and not np.isfinite(np.asarray(matrix)).all():
            raise ValueError(
                f"`{name}` holds values that are not finite; distances must be numbers."
            )


@eqx.filter_jit
def _one_nna(d_xx, d_xy, d_yy):
    d_xy = jnp.asarray(d_xy)
    hits = [_hits(d_xx, jnp.min(d_xy, 1)), _hits(d_yy, jnp.min(d_xy, 0))]
    return jnp.mean(jnp.concatenate(hits))


def _hits(d_same, other):
    d_same = jnp.asarray(d_same, other.dtype)
    same = jnp.min(jnp.where(jnp.eye(len(d_same), dtype=bool), jnp.inf, d_same), 1)
    return jnp.where(same < other, 1, jnp.where(same == other, 0.5, 0)).astype(
        other.dtype
    )


@eqx.filter_jit
def _mmd(d_xy):
    return jnp.mean(jnp.min(jnp.asarray(d_xy), 0))


@eqx.filter_jit
def _coverage(d_xy):
    d_xy = jnp.asarray(d_xy)
    return jnp.mean(jnp.zeros(d_xy.shape[1], d_xy.dtype).at[jnp.argmin(d_xy, 1)].set(1))
