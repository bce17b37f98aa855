r"""Linear observations $y = A x + \epsilon$ of one example."""

import abc
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_example
from flowkit._types import AnyArray, FloatArray, sum_dtype


Shape = tuple[int, ...]


class AbstractOperator(eqx.Module):
    r"""A linear map $A$ from an example to what is observed of it.

    To add one, write its three methods; or give the function to `LinearMap`, which derives
    the adjoint.
    """

    @abc.abstractmethod
    def __call__(self, x: FloatArray) -> Float[Array, "..."]:
        """What is observed of one example, without noise."""

    @abc.abstractmethod
    def in_shape(self, observed_shape: Shape) -> Shape:
        """The shape of the example behind an observation of this shape."""

    @abc.abstractmethod
    def adjoint(self, y: FloatArray) -> Float[Array, "..."]:
        r"""$A^\top y$, in the shape of an example."""


class PixelMask(AbstractOperator):
    """Some entries are observed, and the others are zero in the observation.

    If no entry is observed, the samples of `DPS`, `RePaint` and `TwistedSMC` are those of the
    flow without an observation, and those of `PiGDM` nearly so.

    **Arguments:** `mask`, which entries are observed: `(h, w)` for all channels of an image,
    or the shape of the example, such as `(d,)`.
    """

    mask: Bool[AnyArray, "..."]

    def __call__(self, x: FloatArray) -> Float[Array, "..."]:
        return jnp.where(self._like(x), x, 0)

    def in_shape(self, observed_shape: Shape) -> Shape:
        return observed_shape

    def adjoint(self, y: FloatArray) -> Float[Array, "..."]:
        return self(y)

    def _like(self, x: Any) -> Bool[Array, "..."]:
        mask = jnp.asarray(self.mask)
        if mask.shape not in (x.shape, x.shape[:-1]):
            raise ValueError(
                f"`mask` of shape {mask.shape} does not fit an example of shape {x.shape}; "
                "give one entry for each pixel, or one for each number."
            )
        return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


class Subsample(AbstractOperator):
    """Means of blocks of `factor x factor` pixels: an image with smaller sides.

    **Arguments:** `factor`, which divides the sides of the image.
    """

    factor: int = eqx.field(static=True, converter=operator.index)

    def __check_init__(self):
        if self.factor < 1:
            raise ValueError(f"`factor` must be positive, got {self.factor}.")

    def __call__(self, x: FloatArray) -> Float[Array, "..."]:
        if x.ndim != 3 or x.shape[0] % self.factor or x.shape[1] % self.factor:
            raise ValueError(
                f"`Subsample({self.factor})` takes one image (h, w, c) whose sides it "
                f"divides, got shape {x.shape}."
            )
        height, width, channels = x.shape
        blocks = (height // self.factor, self.factor, width // self.factor, self.factor)
        return jnp.mean(jnp.reshape(x, (*blocks, channels)), axis=(1, 3))

    def in_shape(self, observed_shape: Shape) -> Shape:
        if len(observed_shape) != 3:
            raise ValueError(
                f"`observed` must be one image (h, w, c) for `Subsample`, got shape "
                f"{observed_shape}."
            )
        height, width, channels = observed_shape
        return self.factor * height, self.factor * width, channels

    def adjoint(self, y: FloatArray) -> Float[Array, "..."]:
        shared = jnp.asarray(y) / self.factor**2
        rows = jnp.repeat(shared, self.factor, axis=0)
        return jnp.repeat(rows, self.factor, axis=1)


class Blur(AbstractOperator):
    """Every channel of an image `(h, w, c)` is convolved with a kernel, zero outside.

    **Arguments:** `kernel`, `(k, l)` with odd sides; see `gaussian_kernel`.
    """

    kernel: Float[AnyArray, "k l"]

    def __check_init__(self):
        if any(side % 2 == 0 for side in self.kernel.shape):
            raise ValueError(
                f"`kernel` must have odd sides, got {self.kernel.shape}; otherwise the "
                "image would move."
            )

    def __call__(self, x: FloatArray) -> Float[Array, "..."]:
        if x.ndim != 3:
            raise ValueError(
                "`Blur` takes one image (h, w, c), "
                f"got shape {x.shape}; a gray one is "
                "`image[..., None]`."
            )
        return _correlate(jnp.asarray(x), jnp.flip(jnp.asarray(self.kernel)))

    def in_shape(self, observed_shape: Shape) -> Shape:
        return observed_shape

    def adjoint(self, y: FloatArray) -> Float[Array, "..."]:
        return _correlate(jnp.asarray(y), jnp.asarray(self.kernel))


class Matrix(AbstractOperator):
    """`y = matrix @ x` for vectors.

    **Arguments:** `matrix`, `(m, d)`.
    """

    matrix: Float[AnyArray, "m d"]

    def __call__(self, x: FloatArray) -> Float[Array, "..."]:
        matrix = jnp.asarray(self.matrix, x.dtype)
        return jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST)

    def in_shape(self, observed_shape: Shape) -> Shape:
        return (self.matrix.shape[1],)

    def adjoint(self, y: FloatArray) -> Float[Array, "..."]:
        return Matrix(jnp.asarray(self.matrix).T)(y)


class LinearMap(AbstractOperator):
    r"""Any linear function as an operator.

    **Arguments:**

    - `fn`: the function of one example.
    - `shape`: the shape of the example.
    - `transpose`: $A^\top$ of one observation; derived from `fn` by default.
    """

    fn: Callable[[Array], Array]
    shape: Shape = eqx.field(static=True)
    transpose: Callable[[Array], Array] | None = None

    def __call__(self, x: FloatArray) -> Float[Array, "..."]:
        return self.fn(jnp.asarray(x))

    def in_shape(self, observed_shape: Shape) -> Shape:
        return self.shape

    def adjoint(self, y: FloatArray) -> Float[Array, "..."]:
        y = jnp.asarray(y)
        if self.transpose is not None:
            return self.transpose(y)
        example = jax.ShapeDtypeStruct(self.shape, y.dtype)
        (x,) = jax.linear_transpose(self.fn, example)(y)
        return x


class Composed(AbstractOperator):
    """Operators one after another: the first one sees the example.

    ```python
    fk.inverse.Composed(fk.inverse.Blur(kernel), fk.inverse.Subsample(2))
    ```
    """

    operators: tuple[AbstractOperator, ...]

    def __init__(self, *operators: AbstractOperator):
        if not operators:
            raise ValueError("`operators` must hold at least one.")
        self.operators = operators

    def __call__(self, x: FloatArray) -> Float[Array, "..."]:
        for part in self.operators:
            x = part(x)
        return jnp.asarray(x)

    def in_shape(self, observed_shape: Shape) -> Shape:
        for part in reversed(self.operators):
            observed_shape = part.in_shape(observed_shape)
        return observed_shape

    def adjoint(self, y: FloatArray) -> Float[Array, "..."]:
        for part in reversed(self.operators):
            y = part.adjoint(y)
        return jnp.asarray(y)


def shape_behind(linear: AbstractOperator, observed: Array) -> Shape:
    """The shape of the example behind an observation; raises if they do not fit."""
    check_example("observed", observed)
    shape = linear.in_shape(observed.shape)
    example = jax.ShapeDtypeStruct(shape, observed.dtype)
    expected = eqx.filter_eval_shape(linear, example).shape
    if expected != observed.shape:
        raise ValueError(
            f"`observed` has shape {observed.shape}, but `operator` gives {expected} of an "
            f"example of shape {shape}."
        )
    return shape


def zero_unobserved(linear: AbstractOperator, y: FloatArray) -> Float[Array, "..."]:
    """The observation with zeros where a mask observes nothing."""
    last = linear.operators[-1] if isinstance(linear, Composed) else linear
    return last(y) if isinstance(last, PixelMask) else jnp.asarray(y)


def gaussian_kernel(size: int, std: float) -> Float[np.ndarray, "size size"]:
    """A kernel for `Blur`: a Gaussian of `std` pixels on `size x size`, with the sum 1."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"`size` must be odd and positive, got {size}.")
    if not std > 0:
        raise ValueError(f"`std` must be positive, got {std}.")
    offsets = np.arange(size) - size // 2
    line = np.exp(-0.5 * (offsets / std) ** 2)
    kernel = np.outer(line, line)
    return (kernel / kernel.sum()).astype(np.float32)


def _correlate(
    x: Float[Array, "h w c"], kernel: Float[Array, "k l"]
) -> Float[Array, "h w c"]:
    """Sums of shifted images: XLA's convolution of single channels is slow on a CPU."""
    height, width = kernel.shape
    margins = ((height // 2,) * 2, (width // 2,) * 2, (0, 0))
    padded = jnp.pad(x, margins)
    kernel = kernel.astype(x.dtype)

    total = jnp.zeros_like(x)
    for i in range(height):
        for j in range(width):
            view = padded[i : i + x.shape[0], j : j + x.shape[1]]
            total = total + kernel[i, j] * view
    return total


def check_operator(linear: AbstractOperator, shape: Shape, dtype: Any) -> None:
    r"""Raises unless $A$ is linear and $\langle A x, y \rangle = \langle x, A^\top y \rangle$."""
    random = np.random.default_rng(0)
    # In half precision, rounding would look like an error of the operator.
    dtype = sum_dtype(dtype)
    draw = lambda size: jnp.asarray(random.standard_normal(size), dtype)
    first = draw(shape)
    second = draw(shape)
    of_first = linear(first)

    of_sum = linear(first - 2 * second)
    if not _near(of_sum, of_first - 2 * linear(second)):
        raise ValueError(
            "`operator` is not linear: A(x - 2 z) differs from A(x) - 2 A(z) for random x "
            "and z. Offsets belong in `observed`."
        )

    y = draw(of_first.shape)
    forward = jnp.vdot(of_first, y)
    backward = jnp.vdot(first, linear.adjoint(y))
    size = float(jnp.linalg.norm(of_first) * jnp.linalg.norm(y))
    if abs(float(forward - backward)) > 1e-3 * max(size, 1e-30):
        raise ValueError(
            f"the adjoint of `operator` fails the dot-product test: <A x, y> is "
            f"{float(forward):.5g} and <x, A^T y> is {float(backward):.5g}; leave `transpose` "
            "out to have it derived."
        )


def _near(x: Array, y: Array) -> bool:
    scale = max(float(jnp.max(jnp.abs(y), initial=0.0)), 1e-30)
    return float(jnp.max(jnp.abs(x - y), initial=0.0)) <= 1e-3 * scale


def norm_squared(
    linear: AbstractOperator, shape: Shape, dtype: Any
) -> Float[Array, ""]:
    r"""The largest eigenvalue of $A^\top A$, by twenty steps of power iteration."""
    # Neither constant nor symmetric, so that it is orthogonal to no likely eigenvector.
    start = np.random.default_rng(0).standard_normal(shape)

    def step(x, _):
        x = x / jnp.maximum(jnp.linalg.norm(jnp.ravel(x)), 1e-30)
        y = linear.adjoint(linear(x))
        return y, jnp.linalg.norm(jnp.ravel(y))

    _, norms = jax.lax.scan(step, jnp.asarray(start, dtype), None, length=20)
    return norms[-1]
