r"""Convolutions of images `(h, w, c)` that are as fast inside a loop as outside.

On a CPU, XLA's gradient of a convolution takes tens of times as long inside a loop, and
every solver, `block=` and `steps_per_call=` runs one. Written out over the taps $(i, j)$
of the kernel,

$$y_{a,b} = \sum_{i,j} x_{s a + d i,\; s b + d j}\, W_{i,j},$$

the convolution is one matrix product of shifted views with the kernel, and so are its
derivatives. When derivatives are taken, the value is computed in this way as well.
"""

import functools as ft
import operator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import AnyArray, FloatArray, PRNGKey
from flowkit.nn._layers.arrays import per_feature
from flowkit.nn._layers.initial import lecun_normal, zeros


class Conv(eqx.Module):
    r"""A convolution of an image `(h, w, in_size)`, channels last.

    $$y_{a,b} = \sum_{i,j} x_{s a + d i - p,\; s b + d j - p}\, W_{i,j} + b$$

    with stride $s$, dilation $d$ and padding $p$ of zeros. Forward and reverse mode are
    exact and can be nested. On a CPU, derivatives are matrix products of shifted views,
    which stay fast inside solvers and scans; elsewhere they are XLA's own. Parameters
    are cast to the dtype of the image. Weights are drawn from LeCun's normal
    distribution, and biases are zero.

    **Arguments:**

    - `in_size`, `out_size`: the numbers of channels.
    - `kernel_size`: the side of the kernel.
    - `stride`: the step between outputs.
    - `dilation`: the distance between the taps of the kernel.
    - `padding`: how many zeros are added on each side. By default a stride of 1 keeps
      the sides of the image, and a stride `s` gives `ceil(h / s)`.
    - `groups`: the number of groups of channels; groups do not mix.
    - `use_bias`: whether there is a `b`.
    - `zero_init`: whether the layer starts at zero.
    - `key`: the key of the initial weights.
    """

    weight: Float[AnyArray, "kernel kernel in_per_group out_size"]
    bias: Float[AnyArray, " out_size"] | None
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)
    geometry: "Geometry" = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        groups: int = 1,
        use_bias: bool = True,
        zero_init: bool = False,
        key: PRNGKey,
    ):
        sizes = {
            "in_size": in_size,
            "out_size": out_size,
            "kernel_size": kernel_size,
            "stride": stride,
            "dilation": dilation,
            "groups": groups,
        }
        _check_positive(sizes)
        if in_size % groups or out_size % groups:
            raise ValueError(
                f"`groups` must divide the {in_size} channels in and the {out_size} "
                f"channels out, got {groups}."
            )
        shape = (kernel_size, kernel_size, in_size // groups, out_size)
        self.weight = zeros(shape) if zero_init else lecun_normal(shape, key=key)
        self.bias = zeros(out_size) if use_bias else None
        self.in_size = in_size
        self.out_size = out_size
        paddings = _paddings(padding, dilation * (kernel_size - 1))
        self.geometry = Geometry(stride, dilation, paddings, groups)

    def __call__(self, x: FloatArray) -> Float[Array, "h_out w_out out_size"]:
        x = jnp.asarray(x)
        if x.ndim != 3 or x.shape[-1] != self.in_size:
            raise ValueError(
                f"`x` must be one image (h, w, {self.in_size}), channels last, got shape "
                f"{x.shape}; for a batch use `jax.vmap`."
            )
        if min(_output_sides(x, self.weight, self.geometry)) < 1:
            raise ValueError(
                f"`x` of {x.shape[0]} x {x.shape[1]} pixels is smaller than the kernel of "
                f"{self.weight.shape[0]} x {self.weight.shape[1]}."
            )

        # Parameters stay in their own precision; the result is in that of the image.
        weight = self.weight.astype(x.dtype)
        if weight.shape[:2] == (1, 1) and self.geometry == Geometry():
            y = x @ weight[0, 0]
        else:
            y = convolve(x, weight, geometry=self.geometry)
        return y if self.bias is None else y + per_feature(self.bias, y)


def _paddings(padding: int | None, reach: int) -> tuple[int, int]:
    """The zeros before and after; by default, a stride of 1 keeps the side."""
    if padding is None:
        return reach // 2, reach - reach // 2
    if padding < 0:
        raise ValueError(f"`padding` must not be negative, got {padding}.")
    return padding, padding


def _check_positive(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be positive, got {size}.")


class Geometry(NamedTuple):
    """How a kernel moves over an image; the same in both directions."""

    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)
    groups: int = 1


@eqx.filter_custom_jvp
def convolve(
    x: Float[Array, "h w in_size"],
    weight: Float[Array, "kernel kernel in_per_group out_size"],
    *,
    geometry: Geometry,
) -> Float[Array, "h_out w_out out_size"]:
    """The convolution of an image, without a bias."""
    return _by_xla(x, weight, geometry)


@convolve.def_jvp
def _convolve_jvp(primals, tangents, *, geometry):
    # A tangent is `None` where nothing is differentiated.
    x, weight = primals
    dx, d_weight = tangents
    terms = []
    if dx is not None:
        terms.append(_linear(dx, weight, geometry))
    if d_weight is not None:
        terms.append(_linear(x, d_weight, geometry))
    # In training the views are faster for the value, too; for the value alone, XLA is.
    return _linear(x, weight, geometry), sum(terms)


def _linear(x, weight, geometry):
    """The convolution in the form whose transpose is fast on the platform."""
    # The views, nine times the image, are made again for the transpose.
    by_views = jax.checkpoint(ft.partial(_by_views, geometry=geometry))
    by_xla = ft.partial(_by_xla, geometry=geometry)
    return jax.lax.platform_dependent(x, weight, cpu=by_views, default=by_xla)


def _by_xla(x, weight, geometry):
    stride, dilation, padding, groups = geometry
    y = jax.lax.conv_general_dilated(
        x[None],
        weight,
        window_strides=(stride, stride),
        padding=(padding, padding),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y[0]


def _by_views(x, weight, geometry):
    """One matrix product of all shifted views with the kernel."""
    views = _shifted_views(x, weight, geometry)
    num_taps = len(views)
    in_size = weight.shape[2]
    groups = geometry.groups
    if groups == 1:
        kernel = weight.reshape(num_taps * in_size, -1)
        return jnp.concatenate(views, axis=-1) @ kernel

    grouped = jnp.stack(views, axis=2)
    grouped = grouped.reshape(*grouped.shape[:3], groups, in_size)
    kernel = weight.reshape(num_taps, in_size, groups, -1)
    y = jnp.einsum("hwtgi,tigo->hwgo", grouped, kernel)
    return y.reshape(*y.shape[:2], -1)


def _shifted_views(x, weight, geometry):
    stride, dilation, padding, _ = geometry
    height, width = _output_sides(x, weight, geometry)
    x = jnp.pad(x, (padding, padding, (0, 0)))
    views = []
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            top = dilation * i
            left = dilation * j
            bottom = top + stride * (height - 1) + 1
            right = left + stride * (width - 1) + 1
            views.append(x[top:bottom:stride, left:right:stride])
    return views


def _output_sides(x, weight, geometry):
    reach = geometry.dilation * (weight.shape[0] - 1)
    return tuple(
        (side + sum(geometry.padding) - reach - 1) // geometry.stride + 1
        for side in x.shape[:2]
    )
