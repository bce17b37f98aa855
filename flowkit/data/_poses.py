"""Rotations, scales and translations of point clouds, drawn at random and applied in this order."""

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

    - `axis`: its direction, of any length.
    - `angles`: ends of the uniform distribution of the angle, in radians.
    """

    axis: tuple[Number, Number, Number] = (0.0, 1.0, 0.0)
    angles: Range = FULL_TURN

    def __post_init__(self):
        check_range("angles", self.angles)
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
        return Rotation.from_rotvec(
            uniform(rng, self.angles, num, 1) * axis / np.linalg.norm(axis)
        ).as_matrix()


def any_rotation(
    rng: np.random.Generator, num: int, dim: int
) -> Float[np.ndarray, "{num} {dim} {dim}"]:
    """Uniform random rotations in any dimension, the Haar measure of SO(d), for `Augment(rotate=...)`.

    QR decompositions of Gaussian matrices, whose signs are made unique, and one reflection where that left SO(d).

    **Reference:** How to generate random matrices from the classical compact groups, F. Mezzadri, 2006,
    arXiv math-ph/0609050.
    """
    orthogonal, upper = np.linalg.qr(rng.standard_normal((num, dim, dim)))
    orthogonal *= np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None]
    orthogonal[:, :, 0] *= np.linalg.det(orthogonal)[:, None]
    return orthogonal


def in_plane(angles: Float[np.ndarray, " b"]) -> Float[np.ndarray, "b 2 2"]:
    """Counter-clockwise rotation matrices."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack(
        [np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2
    )


def pose(
    points: Float[np.ndarray, "b n d"],
    rotations: Float[AnyArray, "b d d"] | None = None,
    scales: Float[AnyArray, " b"] | None = None,
    translations: Float[AnyArray, "b d"] | None = None,
    mask: Bool[AnyArray, "b n"] | None = None,
) -> Float[np.ndarray, "b n d"]:
    """`scale (rotation x) + translation` for the valid points of each cloud; others become zero."""
    dtype = points.dtype
    if mask is not None:
        points = np.where(mask[..., None], points, dtype.type(0))
    if rotations is not None:
        points = points @ np.swapaxes(rotations, 1, 2).astype(dtype)
    if scales is not None:
        points = points * scales[:, None, None].astype(dtype)
    if translations is not None:
        points = points + translations[:, None].astype(dtype)
        points = (
            points if mask is None else np.where(mask[..., None], points, dtype.type(0))
        )
    return points


def uniform(rng: np.random.Generator, ends: Range, *shape: int) -> np.ndarray:
    return rng.uniform(float(ends[0]), float(ends[1]), shape)


def check_range(name: str, ends: Range, *, positive: bool = False) -> None:
    low, high = ends
    if not -np.inf < low <= high < np.inf or (positive and low <= 0):
        wanted = "0 < low <= high" if positive else "low <= high"
        raise ValueError(
            f"`{name}` must be two finite numbers (low, high) with {wanted}, got {ends}."
        )
