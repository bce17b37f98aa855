"""What an encoder is."""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from flowkit._types import Mask, Points, PRNGKey
from flowkit.nn._sets.masks import valid_points


class AbstractEncoder(eqx.Module):
    """A map from a cloud `(n, in_size)` to latents `(k, out_size)`.

    A global encoder has `k = 1`, a local one `k = n`, a structured one any other `k`. A
    row of zeros means that there is no latent: local encoders return it for masked
    points.

    To add an encoder, give it `in_size`, `out_size` and `__call__`, all in one class,
    and test it with `flowkit.testing.assert_permutation_invariant` (or `_equivariant` if
    it is local) and `assert_mask_independent`.
    """

    in_size: eqx.AbstractVar[int]
    out_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "k c"]:
        """The latents of one cloud.

        Masked points have no influence; `key` is for random encoders.
        """


def checked_points(
    points: Points, mask: Mask | None, in_size: int
) -> Float[Array, "n d"]:
    """The points with masked rows set to zero.

    Raises a `ValueError` if there are none, or if they do not have `in_size`
    coordinates.
    """
    if points.shape[0] == 0:
        raise ValueError(
            "`points` is an empty set: pad it to at least one row and mask that."
        )
    return valid_points(points, mask, in_size)
