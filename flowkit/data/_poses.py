"""Rotations, scales and translations of point clouds, applied in this order."""

import dataclasses
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from flowkit._types import AnyArray, Number


Range: TypeAlias = tuple[Number, Number]
"""The ends of a uniform distribution."""

FULL_TURN = (0.0, 2 * np.pi)


@dataclasses.dataclass(frozen=True)
class AboutAxis:
    """Random rotations of space about one axis, for `Augment(rotate=...)`.

    - `axis`: the direction of the axis, of any length.
    - `angles`: the ends of the uniform distribution of the angle, in radians.
    """

    axis: tuple[Number, Number, Number] = (0.0, 1.0, 0.0)
    angles: Range = FULL_TURN

    def __post_init__(self):
        check_angles("angles", self.angles)
        if not 0 < np.linalg.norm(np.array(self.axis, float)) < np.inf:
            raise ValueError(
                f"`axis` must be a direction, not zero and finite; got {self.axis}."
            )

    def __call__(
        self, rng: np.random.Generator, num: int, dim: int
    ) -> Float[np.ndarray, "{num} {dim} {dim}"]:
        """Draws `num` rotation matrices; `dim` must be 3."""
        from scipy.spatial.transform import Rotation

        if dim != 3:
            raise ValueError(
                f"`fk.data.AboutAxis` rotates points in 3 dimensions, got {dim}."
            )

        axis = np.array(self.axis, float)
        direction = axis / np.linalg.norm(axis)
        angles = uniform(rng, self.angles, num, 1)

        return Rotation.from_rotvec(angles * direction).as_matrix()


def any_rotation(
    rng: np.random.Generator, num: int, dim: int
) -> Float[np.ndarray, "{num} {dim} {dim}"]:
    """Uniform random rotations in any dimension, for `Augment(rotate=...)`.

    They follow the Haar measure of SO(d): QR decompositions of Gaussian matrices, made
    unique by their signs, with one axis reflected where the determinant is -1.

    **Reference:** How to generate random matrices from the classical compact groups,
    F. Mezzadri, 2006, arXiv math-ph/0609050.
    """
    orthogonal, upper = np.linalg.qr(rng.standard_normal((num, dim, dim)))
    orthogonal *= np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None]
    orthogonal[:, :, 0] *= np.linalg.det(orthogonal)[:, None]
    return orthogonal


def in_plane(angles: Float[np.ndarray, " b"]) -> Float[np.ndarray, "b 2 2"]:
    """Counterclockwise rotation matrices."""
    cos = np.cos(angles)
    sin = np.sin(angles)
    rows = [np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)]
    return np.stack(rows, axis=-2)


def pose(
    points: Float[np.ndarray, "b n d"],
    rotations: Float[AnyArray, "b d d"] | None = None,
    scales: Float[AnyArray, " b"] | None = None,
    translations: Float[AnyArray, "b d"] | None = None,
    mask: Bool[AnyArray, "b n"] | None = None,
) -> Float[np.ndarray, "b n d"]:
    """`scale (rotation x) + translation` of valid points; the others become zero."""
    dtype = points.dtype
    if mask is not None:
        # What they hold may be infinite, and would spread in the product.
        points = np.where(mask[..., None], points, dtype.type(0))

    if rotations is not None:
        # Points are rows, so they meet the transposed matrix.
        points = points @ np.swapaxes(rotations, 1, 2).astype(dtype)
    if scales is not None:
        points = points * scales[:, None, None].astype(dtype)
    if translations is None:
        return points

    points = points + translations[:, None].astype(dtype)
    if mask is None:
        return points
    # The translation has moved the others away from zero.
    return np.where(mask[..., None], points, dtype.type(0))


def uniform(rng: np.random.Generator, ends: Range, *shape: int) -> np.ndarray:
    return rng.uniform(float(ends[0]), float(ends[1]), shape)


def check_range(name: str, ends: Range, *, positive: bool = False) -> None:
    """Raises unless the ends of a distribution are finite and in order."""
    low, high = ends
    if not -np.inf < low <= high < np.inf or (positive and low <= 0):
        wanted = "0 < low <= high" if positive else "low <= high"
        raise ValueError(
            f"`{name}` must be two finite numbers (low, high) with {wanted}, got {ends}."
        )


def check_angles(name: str, ends: Range) -> None:
    """Raises unless these are angles within a full turn; larger ones are likely degrees."""
    check_range(name, ends)
    # A little more than a turn, for ends that were rounded.
    if max(abs(float(end)) for end in ends) > 2 * np.pi + 1e-3:
        raise ValueError(
            f"`{name}` must be angles in radians, within a full turn of 2 pi; got {ends}. "
            "Convert degrees with `np.deg2rad`."
        )
