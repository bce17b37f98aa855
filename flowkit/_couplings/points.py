r"""Couplings within clouds: the points of a noise cloud are matched with the data points of
the same cloud.

The points of a noise cloud are exchangeable, so any order of them is the same set, however
it was chosen. The source of a model of sets therefore stays unchanged, given any condition.
"""

import operator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowkit._checks import check_data
from flowkit._couplings.base import Coupling, NO_ASSIGNMENT, Pairing, reorder_source
from flowkit._distances import squared_costs
from flowkit._transport import (
    check_epsilon,
    improve_by_swaps,
    round_to_permutation,
    sinkhorn,
    soft_minima,
    solve_assignment,
)
from flowkit._types import AnyArray, Cond, FloatArray, Number, PRNGKey, sum_dtype


# Entries of the cost matrices that are worked on together: 64 MB in float32.
_ENTRIES = 2**24


class _Clouds(NamedTuple):
    """Noise and data clouds with their full masks, one of each or a batch."""

    x0: Array
    x1: Array
    mask: Array


def point_assignment(
    x0: FloatArray,
    x1: FloatArray,
    cond: Cond = None,
    *,
    mask: Bool[AnyArray, "batch n"] | None = None,
    key: PRNGKey,
) -> Pairing:
    r"""Exact optimal transport within each cloud.

    The order $\pi$ of its noise with the least $\sum_i \|x_{0,\pi(i)} - x_{1,i}\|^2$ over
    valid points. Noise points are exchangeable, so this is legitimate for any model of
    sets, including conditional ones.

    Solved on the host (scipy), several clouds at a time. A cloud of 256 points takes a few
    milliseconds, and the cost is cubic: for more than about 500 points use
    `fk.EntropicPointAssignment`, or assign once with `fk.superset_pairs`.

    **Arguments:**

    - `x0`, `x1`: clouds `(b, n, d)`.
    - `mask`: the valid points. The noise of the others stays in its place.

    **Reference:** Klein et al., Equivariant Flow Matching (2023), arXiv 2306.15030; Song et
    al., Equivariant Flow Matching with Hybrid Probability Transport (2023), arXiv 2312.07168.
    """
    del cond, key
    _check_clouds(x0, x1, mask)
    cost, full = _costs(x0, x1, mask)
    # Not in a program, unless it is called in one: known costs go straight to the host.
    columns = solve_assignment(cost, full, full, failure=NO_ASSIGNMENT)
    return Pairing(x0=_reorder(x0, columns, full))


class EntropicPointAssignment(eqx.Module):
    r"""Nearly optimal transport within each cloud, on the device, for clouds of any size.

    Entropic potentials score all pairs by $f_i + g_j - c_{ij}$. The best free pair is
    taken, again and again, which makes a permutation. Then pairs exchange partners while
    that lowers the cost. Unlike draws from the plan, a permutation keeps every noise point
    once, so the source is unchanged.

    In two and three dimensions its cost exceeds the optimum by less than 1% on average, and
    by a few percent for clouds that are distributed like the noise, where the optimum is
    small. It needs `n^2` memory per cloud.

    **Arguments:**

    - `epsilon`: the regularization relative to the mean cost, at least 1e-6, the least that
      float32 resolves.
    - `max_iterations`: the maximum number of Sinkhorn iterations. It stops early once
      relative marginal errors are below 1/2, which is accurate enough for the scores.
    - `num_swaps`: the maximum number of rounds of exchanges.

    **Reference:** Cuturi, Sinkhorn Distances (2013), arXiv 1306.0895; see
    `fk.point_assignment` for the use within clouds.
    """

    epsilon: float = 0.01
    max_iterations: int = 100
    num_swaps: int = 20

    def __init__(
        self, epsilon: Number = 0.01, max_iterations: int = 100, num_swaps: int = 20
    ):
        check_epsilon(epsilon, instead="fk.point_assignment")
        if max_iterations < 1 or num_swaps < 0:
            raise ValueError(
                "`max_iterations` must be positive and `num_swaps` not negative; "
                f"got {max_iterations}, {num_swaps}."
            )
        self.epsilon = float(epsilon)
        self.max_iterations = operator.index(max_iterations)
        self.num_swaps = operator.index(num_swaps)

    def __call__(
        self,
        x0: FloatArray,
        x1: FloatArray,
        cond: Cond = None,
        *,
        mask: Bool[AnyArray, "batch n"] | None = None,
        key: PRNGKey,
    ) -> Pairing:
        del cond, key
        _check_clouds(x0, x1, mask)
        # An array, so that another one does not recompile.
        epsilon = jnp.asarray(self.epsilon)
        coupling = eqx.tree_at(lambda coupling: coupling.epsilon, self, epsilon)
        return Pairing(x0=coupling._assigned(x0, x1, mask))

    @eqx.filter_jit
    def _assigned(self, x0: FloatArray, x1: FloatArray, mask: AnyArray | None) -> Array:
        clouds = _centered(x0, x1, mask)
        at_once = max(1, _ENTRIES // x0.shape[1] ** 2)
        columns = jax.lax.map(self._order, clouds, batch_size=min(at_once, x0.shape[0]))
        return _reorder(x0, columns, clouds.mask)

    def _order(self, clouds: _Clouds) -> Int[Array, " n"]:
        x0, x1, mask = clouds
        cost = squared_costs(x1, x0)
        # At least 1, for a cloud without valid points.
        count = jnp.maximum(jnp.sum(mask, dtype=cost.dtype), 1)
        # Selected, not multiplied: the costs of masked points mean nothing, and must
        # not count.
        valid = mask[:, None] & mask[None, :]
        mean = jnp.sum(jnp.where(valid, cost, 0)) / count**2
        mean = jnp.maximum(mean, jnp.finfo(cost.dtype).tiny)

        f, g, *_ = sinkhorn(
            soft_minima(cost, mask, mask),
            (cost.shape[0], cost.shape[1]),
            self.epsilon * mean,
            mean,
            tolerance=0.5,
            max_iterations=self.max_iterations,
        )

        # Only the order of the scores matters, and exchanges repair what a loose
        # tolerance leaves.
        scores = f[:, None] + g[None, :] - cost
        columns = round_to_permutation(scores, mask)
        return improve_by_swaps(x1, x0, columns, mask, self.num_swaps)


class AlignedAssignment(eqx.Module):
    r"""An assignment within clouds, alternating with the best rotation of each noise cloud.

    The noise cloud becomes $x_0 R$ with the proper rotation $R$ about the origin that
    minimizes $\sum_i \|x_{0,\pi(i)} R - x_{1,i}\|^2$, found by a singular value
    decomposition; then $\pi$ is found again.

    This is valid if all orientations of a cloud are equally likely and the network cannot
    tell which one it sees, as with an equivariant network without a condition. An isotropic
    source is then unchanged. If clouds stand upright, or a condition reveals their
    orientation, the noise has that orientation in training but not in sampling.

    **Arguments:**

    - `assignment`: `fk.point_assignment` or a `fk.EntropicPointAssignment()`; it may
      neither move the data nor return weights.
    - `num_rounds`: the number of rotations, each followed by an assignment, after the first
      assignment.

    **Reference:** Kabsch (1976); Klein et al., Equivariant Flow Matching (2023), arXiv
    2306.15030.
    """

    assignment: Coupling = point_assignment
    num_rounds: int = 2

    def __check_init__(self):
        if self.num_rounds < 1:
            raise ValueError(f"`num_rounds` must be at least 1, got {self.num_rounds}.")

    def __call__(
        self,
        x0: FloatArray,
        x1: FloatArray,
        cond: Cond = None,
        *,
        mask: Bool[AnyArray, "batch n"] | None = None,
        key: PRNGKey,
    ) -> Pairing:
        _check_clouds(x0, x1, mask)
        data = (x1, cond, mask)

        x0 = reorder_source(self.assignment, jnp.asarray(x0), data, key=key)
        for _ in range(self.num_rounds):
            # Rotations are about the origin, so these clouds are not centered.
            rotated = _all_rotated(x0, x1, mask)
            x0 = reorder_source(self.assignment, rotated, data, key=key)
        return Pairing(x0=x0)


def superset_pairs(
    points: Float[AnyArray, "b n d"],
    *,
    mask: Bool[AnyArray, "b n"] | None = None,
    assignment: Coupling = point_assignment,
    block: int = 8,
    progress: bool = True,
    key: PRNGKey,
) -> Float[np.ndarray, "b n d"]:
    """Standard normal noise assigned to dense clouds, once before training.

    `x0[i, j]` belongs to `points[i, j]`. Batches then take the same few rows of both, by
    `fk.data.subsample` of `fk.data.PairedSets`. Rows are chosen regardless of the noise, so
    their noise is independent and standard normal, and pairs that are close in the dense
    clouds need no further assignment. Use `fk.Paired` in the loss.

    **Arguments:**

    - `points`: dense clouds `(b, n, d)`.
    - `mask`: their valid points.
    - `assignment`: `fk.point_assignment`, which is exact and cubic in `n` (a few seconds
      for a cloud of 2000 points), or a `fk.EntropicPointAssignment()`; it may neither move
      the data nor return weights.
    - `block`: the number of clouds that are worked on at a time.
    - `progress`: whether to show a progress bar.

    **Returns:** the noise, `(b, n, d)`, on the host.

    **Reference:** Hui et al., Not-So-Optimal Transport Flows for 3D Point Cloud Generation
    (2025), arXiv 2502.12456.
    """
    from tqdm import tqdm

    _check_clouds(points, points, mask)
    check_data("points", points, mask)
    if block < 1:
        raise ValueError(f"`block` must be at least 1, got {block}.")

    dtype = jax.dtypes.canonicalize_dtype(points.dtype)
    pairs = np.empty(points.shape, dtype)

    # Every block has the size of the first, so that one program is compiled: the last one
    # overlaps.
    last = max(0, len(points) - block)
    starts = [min(start, last) for start in range(0, len(points), block)]
    for start in tqdm(starts, desc="pairs", disable=not progress):
        rows = slice(start, start + block)
        # Where the last block overlaps, noise is drawn again and assigned with its
        # cloud, so the pairs still belong together.
        nkey, akey = jr.split(jr.fold_in(key, start))
        part = jnp.asarray(points[rows], dtype)
        part_mask = None if mask is None else mask[rows]
        noise = jr.normal(nkey, part.shape, dtype)
        pairs[rows] = _assigned(assignment, noise, part, part_mask, akey)

    return pairs


@eqx.filter_jit
def _assigned(
    assignment: Coupling, x0: Array, x1: Array, mask: AnyArray | None, key: PRNGKey
) -> Array:
    return reorder_source(assignment, x0, (x1, None, mask), key=key)


def _check_clouds(x0: FloatArray, x1: FloatArray, mask: AnyArray | None) -> None:
    if x1.ndim != 3 or x0.shape != x1.shape:
        raise ValueError(
            "`x0` and `x1` must be clouds of equal shape (batch, n, d), "
            f"got {x0.shape} and {x1.shape}; for other data use `fk.assignment`, which "
            "pairs whole examples."
        )
    if mask is not None and mask.shape != x1.shape[:2]:
        raise ValueError(
            f"`mask` must have shape {x1.shape[:2]}, one entry per point, "
            f"got {mask.shape}."
        )


def _valid(x0: FloatArray, x1: FloatArray, mask: AnyArray | None) -> _Clouds:
    """Both clouds in at least float32, without gradient, and zero where masked.

    So padding of any value is harmless, and sums of half-precision clouds do not overflow.
    """
    full = jnp.ones(x1.shape[:2], bool) if mask is None else jnp.asarray(mask)

    def clean(x: FloatArray) -> Array:
        x = jnp.where(full[..., None], jnp.asarray(x), 0)
        x = x.astype(sum_dtype(x.dtype))
        return jax.lax.stop_gradient(x)

    return _Clouds(clean(x0), clean(x1), full)


def _centered(x0: FloatArray, x1: FloatArray, mask: AnyArray | None) -> _Clouds:
    """The same, each cloud moved so that its valid points have mean zero.

    No optimal order changes, and products of far-away clouds keep their digits.
    """
    clouds = _valid(x0, x1, mask)
    full = clouds.mask[..., None]
    count = jnp.maximum(jnp.sum(full, axis=1, keepdims=True, dtype=clouds.x1.dtype), 1)

    def center(x: Array) -> Array:
        mean = jnp.sum(x, axis=1, keepdims=True) / count
        # The mean would move padding away from zero.
        return jnp.where(full, x - mean, 0)

    return _Clouds(center(clouds.x0), center(clouds.x1), clouds.mask)


@jax.jit
def _costs(
    x0: FloatArray, x1: FloatArray, mask: AnyArray | None
) -> tuple[Float[Array, "b n n"], Bool[Array, "b n"]]:
    """The costs of all pairs of each cloud, and the full masks."""
    clouds = _centered(x0, x1, mask)
    return jax.vmap(squared_costs)(clouds.x1, clouds.x0), clouds.mask


@jax.jit
def _reorder(
    x0: FloatArray, columns: Int[Array, "b n"], mask: Bool[Array, "b n"]
) -> Array:
    """The noise point of each data point; masked rows keep their own."""
    # The exact solver marks masked rows by -1, which as an index would be the last row.
    own = jnp.arange(mask.shape[1], dtype=columns.dtype)
    rows = jnp.where(mask, columns, own[None])
    return jnp.take_along_axis(jnp.asarray(x0), rows[..., None], axis=1)


@jax.jit
def _all_rotated(x0: Array, x1: FloatArray, mask: AnyArray | None) -> Array:
    return jax.vmap(_rotated)(x0, _valid(x0, x1, mask))


def _rotated(x0: Array, clouds: _Clouds) -> Array:
    """`x0` with its valid rows rotated so that they fit those of the data best (Kabsch)."""
    highest = jax.lax.Precision.HIGHEST
    inner = jnp.matmul(clouds.x0.T, clouds.x1, precision=highest)
    left, _, right = jnp.linalg.svd(inner)

    # A reflection would fit better still; the last axis is flipped back to exclude it.
    orientation = jnp.sign(jnp.linalg.det(left @ right))
    flips = jnp.ones((1, len(inner)), inner.dtype).at[0, -1].set(orientation)
    rotation = jnp.matmul(left * flips, right, precision=highest)
    rotated = jnp.matmul(x0, rotation.astype(x0.dtype), precision=highest)
    return jnp.where(clouds.mask[:, None], rotated, x0)
