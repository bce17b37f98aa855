"""Scores of a set of generated clouds, from matrices of distances.

Rows are samples and columns references, everywhere. Yang et al., *PointFlow* (2019),
arXiv 1906.12320, define the three scores and argue for 1-NNA; Lopez-Paz & Oquab,
*Revisiting Classifier Two-Sample Tests* (2017), arXiv 1610.06545, give its statistics.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced
from flowkit.metrics._inputs import nan_if_any, working_dtype


def one_nna(
    d_xx: Float[AnyArray, "a1 a2"],
    d_xy: Float[AnyArray, "a b"],
    d_yy: Float[AnyArray, "b1 b2"],
) -> Float[Array, ""]:
    """The accuracy of a nearest-neighbor classifier that tells samples from references.

    Each cloud of both lists is assigned to the list of its nearest other cloud. 0.5 is
    ideal: the lists cannot be told apart. 1 means that they are disjoint, and less than
    0.5 that samples copy the reference. For `a` samples from the distribution of the
    reference, the value fluctuates by about `0.5 / sqrt(a)`.

    Where the nearest cloud of the same list is exactly as far away as that of the other,
    the classifier tosses a coin, and half a hit is counted.

    **Arguments:** the distances within the samples `x`, `(a, a)`, between samples and
    references, `(a, b)`, and within the references `y`, `(b, b)`. The lists must be
    equally long, `a == b >= 2`; otherwise 0.5 would not be ideal.
    """
    num_x, num_y = d_xy.shape
    for name, matrix, size in (("d_xx", d_xx, num_x), ("d_yy", d_yy, num_y)):
        if matrix.shape != (size, size):
            raise ValueError(
                f"`{name}` has shape {matrix.shape}, but `d_xy` of shape {d_xy.shape} "
                f"needs {(size, size)}; the order is (samples, reference)."
            )

    if num_x != num_y or num_x < 2:
        raise ValueError(
            f"`d_xy` is {num_x} samples against {num_y} references; 1-NNA needs two "
            "equally long lists of at least two clouds."
        )
    _check_matrices(d_xx=d_xx, d_xy=d_xy, d_yy=d_yy)

    return _one_nna(d_xx, d_xy, d_yy)


def mmd(d_xy: Float[AnyArray, "a b"]) -> Float[Array, ""]:
    """The minimum matching distance: from a reference to the nearest sample, on average.

    Low is good. A poor sample among good ones goes unnoticed. This is not the kernel
    statistic of the same initials.

    **Arguments:** `d_xy (a, b)`, rows for samples and columns for references.
    """
    _check_matrices(d_xy=d_xy)
    return _mmd(d_xy)


def coverage(d_xy: Float[AnyArray, "a b"]) -> Float[Array, ""]:
    """The fraction of references that are the nearest reference of some sample.

    High is good. Among references equally near to a sample the first one is covered.

    **Arguments:** `d_xy (a, b)`, rows for samples and columns for references.
    """
    _check_matrices(d_xy=d_xy)
    return _coverage(d_xy)


def _check_matrices(**matrices) -> None:
    for name, matrix in matrices.items():
        if 0 in matrix.shape:
            raise ValueError(
                f"`{name}` has shape {matrix.shape}; at least one sample and one "
                "reference are needed."
            )
        if not is_traced(matrix) and not np.isfinite(np.asarray(matrix)).all():
            raise ValueError(
                f"`{name}` holds values that are not finite; distances must be numbers."
            )


@eqx.filter_jit
def _one_nna(d_xx, d_xy, d_yy):
    dtype = working_dtype(d_xx)
    d_xy = jnp.asarray(d_xy, dtype)
    of_samples = _hits(jnp.asarray(d_xx, dtype), jnp.min(d_xy, axis=1))
    of_references = _hits(jnp.asarray(d_yy, dtype), jnp.min(d_xy, axis=0))
    accuracy = jnp.mean(jnp.concatenate([of_samples, of_references]))
    return nan_if_any(accuracy, d_xx, d_xy, d_yy)


def _hits(d_same, to_other):
    """1 where the nearest other cloud is of the same list, 0.5 where both are."""
    # No cloud is its own neighbor.
    itself = jnp.eye(len(d_same), dtype=bool)
    to_same = jnp.min(jnp.where(itself, jnp.inf, d_same), axis=1)
    ties = jnp.where(to_same == to_other, 0.5, 0)
    return jnp.where(to_same < to_other, 1, ties).astype(to_other.dtype)


@eqx.filter_jit
def _mmd(d_xy):
    return jnp.mean(jnp.min(jnp.asarray(d_xy, working_dtype(d_xy)), axis=0))


@eqx.filter_jit
def _coverage(d_xy):
    nearest = jnp.argmin(jnp.asarray(d_xy), axis=1)
    covered = jnp.zeros(d_xy.shape[1], working_dtype(d_xy)).at[nearest].set(1)
    return nan_if_any(jnp.mean(covered), d_xy)
