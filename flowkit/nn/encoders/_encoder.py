"""What an encoder is."""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from flowkit._types import Mask, Points, PRNGKey


class AbstractEncoder(eqx.Module):
    """A map from a cloud `(n, in_size)` to latents `(k, out_size)`.

    A global encoder has `k = 1`, a local one `k = n`, a structured one any other `k`. To add one: give it `in_size`,
    `out_size` and `__call__`, all in one class, and hold it to `flowkit.testing.assert_permutation_invariant` (or
    `_equivariant` if it is local) and `assert_mask_independent`.
    """

    in_size: eqx.AbstractVar[int]
    out_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None) -> Float[Array, "k c"]:
        """The latents of one cloud. Points outside of the mask have no influence; `key` is for random encoders."""
