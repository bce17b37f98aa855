r"""How similar two images are: the ratio of signal to noise, and the structure in windows.

The structural similarity compares means $\mu$, variances $\sigma^2$ and the covariance
$\sigma_{xy}$ of two images in a window around each pixel:

$$\frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
{(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}, \qquad
C_1 = (0.01 L)^2, \quad C_2 = (0.03 L)^2,$$

where $L$ is the range of the values. Only windows that lie within the image count.
"""

from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced, Scalar
from flowkit.metrics._inputs import check_values, working_dtype


class GaussianWindow(NamedTuple):
    """Weights that fall off like a Gaussian, cut off and normalized: the original window.

    **Arguments:** the side of the window, and the standard deviation, in pixels.
    """

    size: int = 11
    std: float = 1.5

    def weights(self) -> np.ndarray:
        """The weights along one axis, `(size,)`, which sum to one."""
        offsets = np.arange(self.size) - (self.size - 1) / 2
        values = np.exp(-0.5 * np.square(offsets / self.std))
        return values / np.sum(values)

    def correction(self) -> float:
        """The factor of the variances: none."""
        return 1.0


class UniformWindow(NamedTuple):
    """Equal weights and the sample covariance, which divides by `size**2 - 1`.

    **Arguments:** the side of the window in pixels.
    """

    size: int = 7

    def weights(self) -> np.ndarray:
        """The weights along one axis, `(size,)`, which sum to one."""
        return np.full(self.size, 1 / self.size)

    def correction(self) -> float:
        """The factor of the variances, 49/48 for the default size."""
        return self.size**2 / (self.size**2 - 1)


Window: TypeAlias = GaussianWindow | UniformWindow


def psnr(
    x: Float[AnyArray, " *shape"],
    y: Float[AnyArray, " *shape"],
    *,
    data_range: Scalar = 1.0,
) -> Float[Array, ""]:
    r"""The peak signal-to-noise ratio of two images, in decibels.

    $$10 \log_{10} \frac{L^2}{\mathrm{mean}\, (x - y)^2},$$

    which is infinite for equal images. The mean over images is taken of these values, not
    of the errors inside the logarithm: `jnp.mean(jax.vmap(fk.metrics.psnr)(x, y))`.

    **Arguments:**

    - `x`, `y`: two images `(h, w, c)`, or values of any one shape.
    - `data_range`: the range $L$ of the values, 1 for `[0, 1]` and 2 for `[-1, 1]`.
    """
    _check_pair(x, y, data_range)
    return _psnr(x, y, _as_range(data_range, x))


def ssim(
    x: Float[AnyArray, "h w c"],
    y: Float[AnyArray, "h w c"],
    *,
    data_range: Scalar = 1.0,
    window: Window = GaussianWindow(),
) -> Float[Array, ""]:
    r"""The mean structural similarity of two images, at most 1, the value for equal images.

    The mean is over windows and channels. For constant images $a$ and $b$ the value is
    $(2ab + C_1) / (a^2 + b^2 + C_1)$, with $C_1 = (0.01 L)^2$.

    Published numbers depend on the window: the original one is Gaussian, while the
    default of scikit-image is `UniformWindow()`. Values in `[-1, 1]` are not only
    stretched but also shifted, which changes the first factor: map them to `[0, 1]` first.

    **Arguments:**

    - `x`, `y`: two images `(h, w, c)`; use `jax.vmap` for several pairs.
    - `data_range`: the range $L$ of the values.
    - `window`: `GaussianWindow(size=11, std=1.5)` or `UniformWindow(size=7)`. Windows
      that cross the border of the image are left out.

    **Raises:** `ValueError` for an image smaller than the window.

    **Reference:** Wang, Bovik, Sheikh & Simoncelli, *Image Quality Assessment: From Error
    Visibility to Structural Similarity* (2004).
    """
    _check_pair(x, y, data_range)
    if window.size < 2 or window.size > min(x.shape[:2]):
        raise ValueError(
            f"`window` has size {window.size} for images of shape {x.shape}; it must be "
            "at least 2 and fit into the image."
        )
    if isinstance(window, GaussianWindow) and not window.std > 0:
        raise ValueError(f"`window` must have a positive `std`, got {window.std}.")
    return _ssim(x, y, _as_range(data_range, x), window)


def _check_pair(x, y, data_range) -> None:
    check_values("x", x)
    check_values("y", y)
    if not is_traced(data_range) and not data_range > 0:
        raise ValueError(
            f"`data_range` is {data_range}; it is the positive width of the range of the "
            "values, such as 1 for values in [0, 1]."
        )


def _as_range(data_range, x):
    # An array, since a number would be a constant of the compiled program.
    return jnp.asarray(data_range, working_dtype(x))


@eqx.filter_jit
def _psnr(x, y, data_range):
    dtype = working_dtype(x)
    difference = jnp.asarray(x, dtype) - jnp.asarray(y, dtype)
    mse = jnp.mean(jnp.square(difference))
    return 20 * jnp.log10(data_range) - 10 * jnp.log10(mse)


@eqx.filter_jit
def _ssim(x, y, data_range, window):
    dtype = working_dtype(x)
    x = jnp.asarray(x, dtype)
    y = jnp.asarray(y, dtype)
    rows = _filter_matrix(window, x.shape[0]).astype(dtype)
    columns = _filter_matrix(window, x.shape[1]).astype(dtype)

    def average(image):
        highest = lax.Precision.HIGHEST
        return jnp.einsum("ah,bw,hwc->abc", rows, columns, image, precision=highest)

    # Variances are differences of mean squares, which cancel less around the mean.
    shift_x = jnp.mean(x, axis=(0, 1), keepdims=True)
    shift_y = jnp.mean(y, axis=(0, 1), keepdims=True)
    x = x - shift_x
    y = y - shift_y
    mean_x = average(x)
    mean_y = average(y)

    scale = window.correction()
    var_x = scale * (average(jnp.square(x)) - jnp.square(mean_x))
    var_y = scale * (average(jnp.square(y)) - jnp.square(mean_y))
    covariance = scale * (average(x * y) - mean_x * mean_y)

    mean_x = mean_x + shift_x
    mean_y = mean_y + shift_y
    c1 = jnp.square(0.01 * data_range)
    c2 = jnp.square(0.03 * data_range)
    means = (2 * mean_x * mean_y + c1) / (jnp.square(mean_x) + jnp.square(mean_y) + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return jnp.mean(means * structure)


def _filter_matrix(window: Window, length: int) -> np.ndarray:
    """Weighted means of `length` values in all windows within them: `(windows, length)`."""
    num_windows = length - window.size + 1
    matrix = np.zeros((num_windows, length))
    for i in range(num_windows):
        matrix[i, i : i + window.size] = window.weights()
    return matrix
