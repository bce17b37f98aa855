r"""A process whose mean a network corrects: what is certain is predicted, the rest drawn.

With the mean $\mu$ and a draw $x$ of a process given the observed pixels $y$, the mean and
the draw become

$$\hat\mu = \mu + f(\mu, y), \qquad \hat x = x + f(\mu, y).$$

The network in $f$ is trained by the squared error, so that $\hat\mu$ is the expected image.
A flow that starts from $\hat x$ only has to model the deviations from this image.

The network does not have to handle brightness and contrast. It sees the image with the mean
$m$ of the observed pixels of each channel subtracted, divided by their standard deviation
$s$,

$$f(\mu, y) = \tfrac{s}{3}\, \mathrm{net}\Big(\frac{\mu - m}{s}, \frac{y - m}{s}\Big),$$

so that $f(a \mu + b, a y + b) = a\, f(\mu, y)$ for any $b$ and $a > 0$. (A uniform image has
a standard deviation of 1e-3 here.)
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._blocks import AutomaticBlock, Block, mean_over_batch
from flowkit._types import AnyArray, PRNGKey
from flowkit.data import pixel_coords, SparsePixels
from flowkit.inverse import GaussianProcess
from flowkit.nn import Observed, UNet
from flowkit.pipelines._sparse_flow_parts import OnGrid


UNIT = 1 / 3
"""What the network predicts, in standard deviations of the observed pixels."""

LEAST_SCALE = 1e-3
"""The standard deviation that a uniform image is taken to have."""


class RefinedProcess(eqx.Module):
    """A `fk.inverse.GaussianProcess` of whole images, whose mean a U-Net corrects.

    ```python
    process = fk.pipelines.RefinedProcess((32, 32, 3), patch_size=2, key=key)
    loss = process.loss(images, pixels)  # train it first
    config = fk.pipelines.SparseFlowConfig(shape=(32, 32, 3), network="unet")
    model = config.build(process=process)  # and then the flow
    ```

    Before training, the mean is that of the process. Observed pixels keep their values.

    **Arguments:**

    - `shape`: height, width and channels of the images.
    - `process`: the process.
    - `key`: the key of the initial weights.
    - `options`: of the `fk.nn.UNet`, such as `width_size`, `multipliers`, `patch_size`.

    **Reference:** Whang et al., Deblurring via Stochastic Refinement, 2022 (arXiv
    2112.02475), for the division of labor.
    """

    process: GaussianProcess
    network: OnGrid

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        process: GaussianProcess = GaussianProcess(0.3),
        key: PRNGKey,
        **options,
    ):
        height, width, channels = shape
        self.process = process
        # The observed pixels, and which they are.
        network = UNet(channels, cond_image_size=channels + 1, key=key, **options)
        self.network = OnGrid(network, height, width)

    def mean(
        self,
        coords: Float[AnyArray, "n 2"],
        values: Float[AnyArray, "n c"],
    ) -> Float[Array, "m c"]:
        """The expected values of all pixels of an image.

        **Arguments:** `coords`, `values`: the observed pixels, and their values.
        """
        mean = self.process.mean(coords, values, self._all_coords())
        return mean + self._correction(coords, values, mean)

    def sample_image(
        self,
        coords: Float[AnyArray, "n 2"],
        values: Float[AnyArray, "n c"],
        h: int,
        w: int,
        *,
        key: PRNGKey,
    ) -> tuple[Float[Array, "m c"], Float[Array, "m c"]]:
        """One draw of all pixels of an image, and their mean.

        **Arguments:** as in `fk.inverse.GaussianProcess.sample_image`.
        """
        if (h, w) != (self.network.height, self.network.width):
            raise ValueError(
                f"`h` and `w` are {h} and {w}, but the network was built for images of "
                f"{self.network.height} x {self.network.width} pixels."
            )
        draw, mean = self.process.sample_image(coords, values, h, w, key=key)
        correction = self._correction(coords, values, mean)
        return draw + correction, mean + correction

    def loss(
        self,
        images: Float[AnyArray, "b h w c"],
        pixels: SparsePixels,
        *,
        block: Block = AutomaticBlock(),
    ) -> Float[Array, ""]:
        """The mean squared error of the mean, whose minimum is the expected image.

        **Arguments:** the images, and pixels of each by `fk.data.sparse_pixels`; `block` as
        in `fk.flow_matching_loss`.
        """
        images = jnp.asarray(images)
        targets = images.reshape(len(images), -1, images.shape[-1])
        rows = (pixels.input_coords, pixels.input_values, targets)

        def error(process, row):
            coords, values, target = row
            return jnp.mean((process.mean(coords, values) - target) ** 2), None

        return mean_over_batch(error, self, rows, block=block)[0]

    def _all_coords(self) -> Float[Array, "m 2"]:
        return pixel_coords(self.network.height, self.network.width)

    def _correction(self, coords, values, mean) -> Float[Array, "m c"]:
        center = jnp.mean(values, axis=0)
        deviations = values - center
        # Of all channels together, so that the network sees the color.
        variance = jnp.mean(deviations**2)
        scale = jnp.sqrt(jnp.maximum(variance, LEAST_SCALE**2))

        seen = Observed(self._all_coords(), coords, deviations / scale)
        correction = UNIT * scale * self.network(0.0, (mean - center) / scale, seen)
        # What was observed is known.
        return correction.at[self.network.indices_of(coords)].set(0)
