"""The networks of a `SparseFlow`: each is called `(t, x, cond)` at queried coordinates."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowkit._masks import has_parameter
from flowkit._types import AnyArray, Cond, PRNGKey, Times
from flowkit.nn import Observed


# The size of what the process leaves open, so that the network deals in numbers near 1.
UNIT = 0.1


class WithMean(eqx.Module):
    r"""The network's correction to the velocity that would be correct if the process were.

    If the data were further draws of the process, with its mean $\mu$ given the observed
    pixels, the velocity would be, whatever the covariance,

    $$v(t, x) = \frac{t - (1 - t)}{t^2 + (1 - t)^2}\, (x - \mu).$$

    The network learns the difference. It sees $x - \mu$, next to the mean, in a unit in which
    both are of order 1.

    `cond` is the pair of an `Observed` and the mean `(m, c)`. The network was built for
    `2 c` channels: the deviation, and the mean. The mean at an observed pixel is its value.
    Only the first `c` channels of the network's output are used.
    """

    network: Callable

    def __call__(
        self,
        t: Times,
        x: Float[AnyArray, "m c"],
        cond: Cond,
        key: PRNGKey | None = None,
    ) -> Float[Array, "m c"]:
        seen, mean = cond
        mean = jnp.asarray(mean, x.dtype)
        deviation = x - mean
        # At the observed pixels nothing deviates.
        values = jnp.concatenate([jnp.zeros_like(seen.values), seen.values], axis=-1)
        both = Observed(seen.query_coords, seen.coords, values, seen.mask)
        state = jnp.concatenate([deviation / UNIT, mean], axis=-1)
        learned = call_network(self.network, t, state, both, key)[:, : x.shape[1]]

        factor = (2 * t - 1) / (t * t + (1 - t) * (1 - t))
        return factor * deviation + UNIT * learned


class OnGrid(eqx.Module):
    """A network of images as one of coordinates, for all pixels of an image at once.

    The observed pixels become an image, zero elsewhere, and a mask, which the network is
    conditioned on.

    **Arguments:** the `network`, and the height and width of the images.
    """

    network: Callable
    height: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __call__(
        self,
        t: Times,
        x: Float[AnyArray, "m c"],
        cond: Cond,
        key: PRNGKey | None = None,
    ) -> Float[Array, "m c_out"]:
        size = (self.height, self.width)
        # A one next to each value makes the mask with the same assignment.
        ones = jnp.ones_like(cond.values[:, :1])
        rows = jnp.concatenate([cond.values, ones], axis=-1)

        num_pixels = self.height * self.width
        indices = self.indices_of(cond.coords)
        # Masked rows may hold anything, so they go beyond the last pixel, and are dropped.
        if cond.mask is not None:
            indices = jnp.where(cond.mask, indices, num_pixels)
        image = jnp.zeros((num_pixels, rows.shape[1]), rows.dtype)
        image = image.at[indices].set(rows, mode="drop").reshape(*size, -1)

        state = jnp.reshape(x, (*size, -1))
        result = call_network(self.network, t, state, image, key)
        return jnp.reshape(result, (len(x), -1))

    def indices_of(self, coords: Float[AnyArray, "n 2"]) -> Int[Array, " n"]:
        """Which pixels have these coordinates: the inverse of `fk.data.pixel_coords`."""
        last = jnp.asarray([self.width - 1, self.height - 1], coords.dtype)
        # Rounded, since a product of coordinates may end just below a whole number.
        columns, rows = jnp.round(coords * last[None]).astype(int).T
        return rows * self.width + columns


def call_network(network, t, x, cond, key):
    """The network with a key, which is for dropout, if it takes one."""
    keywords = {"key": key} if has_parameter(network, "key") else {}
    return network(t, x, cond, **keywords)
