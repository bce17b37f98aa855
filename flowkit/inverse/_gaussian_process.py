r"""A Gaussian process over the pixels of an image: classical interpolation, with its spread.

The values of each channel are $m + s\, g$ with a constant $m$, a scale $s$, and a process
$g$ with the Matern covariance of smoothness 3/2,

$$k(r) = \Big(1 + \tfrac{\sqrt 3\, r}{\ell}\Big)\, e^{-\sqrt 3\, r / \ell},$$

plus a nugget on the diagonal. With $K$ of the observed coordinates and $\mathbf 1$ a vector
of ones, the constant and the scale are those of maximum likelihood, for each channel,

$$m = \frac{\mathbf 1^\top K^{-1} y}{\mathbf 1^\top K^{-1} \mathbf 1}, \qquad
s^2 = \frac 1 n\, (y - m)^\top K^{-1} (y - m).$$
"""

import functools as ft
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._distances import squared_distances
from flowkit._types import AnyArray, PRNGKey


# Weights cancel, and some devices would round them to 10 bits or fewer.
_matmul = ft.partial(jnp.matmul, precision="highest")

LEAST_SCALE = 1e-3
"""The scale of equal values."""


class GaussianProcess(eqx.Module):
    r"""A Gaussian process over pixels, given some of them.

    ```python
    process = fk.inverse.GaussianProcess(0.3)
    mean = process.mean(coords, values, query_coords)
    x0, mean = process.sample(coords, values, query_coords, key=key)
    ```

    `mean` is the classical answer to start a network from, known as kriging. `sample` draws
    from the posterior, which gives a flow a source that is closer to the data than noise.
    Use it in training as `coupling=fk.Paired(x0)`, and in sampling as
    `fk.sample(..., x0=x0)`. Every method takes one image, can be compiled and vmapped, and
    has a cost that is cubic in the number of observations. Without observations, the
    mean and the scale are unknown. The likeliest scale of equal values, or of a single one,
    is 0, and all draws would be the same. So the scale is at least 1e-3, which is little
    for values in [0, 1].

    **Arguments:**

    - `length_scale`: $\ell$, in the units of the coordinates. Means depend little on it.
    - `nugget`: the variance of noise, in units of the variance of the process. It also
      keeps the arithmetic in float32 stable, so it must be positive.

    **Raises:** `ValueError` for options that are not positive; in its methods, where
    nothing was observed.

    **Reference:** Rasmussen, Williams, Gaussian Processes for Machine Learning, 2006,
    chapters 2 and 4.
    """

    length_scale: float
    nugget: float = 1e-4

    def __check_init__(self):
        for name in ("length_scale", "nugget"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be positive, got {value}.")

    def mean(
        self,
        coords: Float[AnyArray, "n d"],
        values: Float[AnyArray, "n c"],
        query_coords: Float[AnyArray, "m d"],
    ) -> Float[Array, "m c"]:
        r"""$m + k(q, \cdot)\, K^{-1} (y - m)$, the expected values at the queries.

        **Arguments:**

        - `coords`, `values`: where values were observed, and which.
        - `query_coords`: where values are wanted.
        """
        _check_observed(coords)
        solved = self._solve(coords, _with_ones(values))
        return self._krige(coords, query_coords, values, solved)[0]

    def sample(
        self,
        coords: Float[AnyArray, "n d"],
        values: Float[AnyArray, "n c"],
        query_coords: Float[AnyArray, "m d"],
        *,
        key: PRNGKey,
    ) -> tuple[Float[Array, "m c"], Float[Array, "m c"]]:
        r"""One draw of the values at the queries, given the observed ones, and their mean.

        The draw has noise, as the observed values have: see `nugget`. By Matheron's
        rule, a draw $g$ of the process is corrected so that it fits the observations:
        $\text{mean} + s\, (g_q - k(q, \cdot)\, K^{-1} g_o)$. The cost is cubic in the
        number of all coordinates; for the pixels of an image, use `sample_image`.

        **Arguments:** `coords`, `values`, `query_coords`: as in `mean`.

        **Returns:** the draw, and the `mean`, which comes at no extra cost.

        **Reference:** Wilson et al., Efficiently Sampling Functions from Gaussian Process
        Posteriors, 2020 (arXiv 2002.09309).
        """
        _check_observed(coords)
        together = jnp.concatenate([jnp.asarray(coords), jnp.asarray(query_coords)])
        normal = jr.normal(key, (len(together), values.shape[1]), together.dtype)
        draw = _matmul(self._factor(together), normal)
        return self._moved(coords, values, query_coords, draw)

    def sample_image(
        self,
        coords: Float[AnyArray, "n 2"],
        values: Float[AnyArray, "n c"],
        h: int,
        w: int,
        *,
        key: PRNGKey,
    ) -> tuple[Float[Array, "{h}*{w} c"], Float[Array, "{h}*{w} c"]]:
        """One draw of all pixels of an image, of which some were observed, and their mean.

        It is `sample` at `fk.data.pixel_coords(h, w)`, but without noise at the queries. Its
        cost is cubic only in the number of observations, since `draw_image` draws the
        process.

        **Arguments:**

        - `coords`, `values`: the coordinates of observed pixels of this image, and their
          values. Between its pixels draws would spread too much: use `sample` there.
        - `h`, `w`: the size of the image.

        **Returns:** the draw and the mean.
        """
        _check_observed(coords)
        draw_key, noise_key = jr.split(key)
        draw = self.draw_image(h, w, values.shape[1], key=draw_key)
        columns = jnp.round(jnp.asarray(coords)[:, 0] * (w - 1)).astype(int)
        rows = jnp.round(jnp.asarray(coords)[:, 1] * (h - 1)).astype(int)
        at_coords = draw[rows * w + columns]
        # A draw is observed as the values were: with noise.
        noise = jr.normal(noise_key, at_coords.shape, at_coords.dtype)
        at_coords = at_coords + self.nugget**0.5 * noise
        together = jnp.concatenate([at_coords, draw])
        queries = _pixels(h, w, jnp.asarray(coords).dtype)
        return self._moved(coords, values, queries, together)

    def draw_image(
        self, h: int, w: int, num_channels: int, *, key: PRNGKey
    ) -> Float[Array, "{h}*{w} {num_channels}"]:
        """A draw of the process at `fk.data.pixel_coords(h, w)`, with variance 1.

        It is made by a Fourier transform on a torus of three times the sides, so it costs
        little at any size. The torus is finite, so the covariance is exact to 1e-4 up to a
        length scale of 0.3, to 0.003 at 0.5, and to 0.04 at 1.

        **Reference:** Dietrich, Newsam, Fast and Exact Simulation of Stationary Gaussian
        Processes through Circulant Embedding of the Covariance Matrix, 1997.
        """
        power = self._power(as_size("h", h), as_size("w", w))
        normal = jr.normal(key, (num_channels, *power.shape), power.dtype)
        amplitudes = jnp.sqrt(power / power.size)
        draw = _hartley(amplitudes[None] * normal, h, w)
        return draw.reshape(num_channels, h * w).T

    def _power(self, h: int, w: int) -> Float[Array, "3*{h} 3*{w}"]:
        """The transform of the covariance on the torus."""
        sides = (3 * h, 3 * w)
        rows, columns = (
            np.minimum(np.arange(side), side - np.arange(side)) / max(length - 1, 1)
            for side, length in zip(sides, (h, w), strict=True)
        )
        distances = np.hypot(rows[:, None], columns[None])
        # Rounding and the finite torus make some of them slightly negative.
        return jnp.maximum(_hartley(self._matern(jnp.asarray(distances)), *sides), 0)

    def _matern(self, distances: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        scaled = math.sqrt(3.0) / self.length_scale * distances
        return (1 + scaled) * jnp.exp(-scaled)

    def _covariance(self, x: AnyArray, y: AnyArray) -> Float[Array, "n m"]:
        x = jnp.asarray(x)
        pair = (_stored(x), _stored(jnp.asarray(y, x.dtype)))
        squares = squared_distances(*pair).astype(x.dtype)
        # The root has no derivative at 0, where that of the covariance is 0.
        apart = squares > 0
        distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
        return self._matern(distances)

    def _factor(self, coords: AnyArray) -> Float[Array, "n n"]:
        covariance = self._covariance(coords, coords)
        nugget = self.nugget * jnp.eye(len(covariance), dtype=covariance.dtype)
        return _cholesky(covariance + nugget)

    def _solve(self, coords: AnyArray, columns: Array) -> Float[Array, "n columns"]:
        """`K^-1` of the columns."""
        return _solve_by(self._factor(coords), columns)

    def _krige(
        self, coords: AnyArray, queries: AnyArray, values: AnyArray, solved: Array
    ) -> tuple[Float[Array, "m c"], Float[Array, " c"]]:
        """The mean at the queries and the scale, of `K^-1` of the values and of ones."""
        values = jnp.asarray(values)
        size = values.shape[1]
        ones = solved[:, size]
        constant = (jnp.sum(solved[:, :size], axis=0) / jnp.sum(ones))[None]

        weights = solved[:, :size] - ones[:, None] * constant
        mean = constant + _matmul(self._covariance(queries, coords), weights)
        variance = jnp.mean((values - constant) * weights, axis=0)
        # Rounding may leave a negative one, and the root has no derivative at 0.
        return mean, jnp.sqrt(jnp.maximum(variance, LEAST_SCALE**2))

    def _moved(
        self, coords: AnyArray, values: AnyArray, queries: AnyArray, draw: Array
    ) -> tuple[Float[Array, "m c"], Float[Array, "m c"]]:
        """A draw of the process at `coords` and `queries`, given the values; the mean."""
        values = jnp.asarray(values)
        at_coords, at_queries = jnp.split(draw.astype(values.dtype), [len(values)])

        columns = jnp.concatenate([_with_ones(values), at_coords], axis=1)
        solved = self._solve(coords, columns)
        mean, scale = self._krige(coords, queries, values, solved)
        across = self._covariance(queries, coords)
        missing = _matmul(across, solved[:, values.shape[1] + 1 :])
        return mean + scale[None] * (at_queries - missing), mean


def _stored(coords: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """The same coordinates, copied into an array of their own.

    In a loop over images on a CPU, the compiler would otherwise look up the image again
    for each pair of pixels, and the mean would take three times as long.
    """
    return _matmul(coords, jnp.eye(coords.shape[-1], dtype=coords.dtype))


def _one_by_one(fn: Callable) -> Callable:
    """`fn`, which on a CPU works on the problems of a `jax.vmap` one after another.

    On a CPU, a batch of factorizations would wait for threads that other parts of the
    program hold, and would wait forever if several devices share them (`jaxlib` 0.10).
    Derivatives are those of `fn` on the whole batch at once.
    """
    in_turn = jax.custom_batching.sequential_vmap(fn)

    @jax.custom_jvp
    def either(*args):
        return jax.lax.platform_dependent(*args, cpu=in_turn, default=fn)

    either.defjvp(lambda primals, tangents: jax.jvp(fn, primals, tangents))
    return either


_cholesky = _one_by_one(jnp.linalg.cholesky)


@_one_by_one
def _solve_by(factor: Float[Array, "n n"], columns: Float[Array, "n c"]) -> Array:
    return jax.scipy.linalg.cho_solve((factor, True), columns)


def _check_observed(coords: AnyArray) -> None:
    if not len(coords):
        raise ValueError(
            "`coords` is empty: the process needs an observation for its mean and scale. "
            'Start a flow from noise instead, `SparseFlowConfig(start="noise")`.'
        )


def _hartley(x: Float[Array, "*c k l"], h: int, w: int) -> Float[Array, "*c h w"]:
    r"""$\sum_{kl} x_{kl}\, \text{cas}(2 \pi i k / K)\, \text{cas}(2 \pi j l / L)$ at the first
    $h \times w$ places, with $\text{cas} = \cos + \sin$: the real form of Fourier's transform.

    It uses matrix products. On a CPU, the FFT of `jaxlib` 0.10 may deadlock when it is
    part of a larger program, waiting for threads that wait for it.
    """
    rows, columns = (
        jnp.asarray(_cas(length, side), x.dtype)
        for length, side in zip((h, w), x.shape[-2:], strict=True)
    )
    return jnp.einsum("ik,...kl,jl->...ij", rows, x, columns, precision="highest")


def _cas(length: int, side: int) -> Float[np.ndarray, "{length} {side}"]:
    angles = 2 * np.pi / side * np.outer(np.arange(length), np.arange(side))
    return np.cos(angles) + np.sin(angles)


def _with_ones(values: Float[AnyArray, "n c"]) -> Float[Array, "n c_and_1"]:
    values = jnp.asarray(values)
    return jnp.concatenate([values, jnp.ones_like(values[:, :1])], axis=1)


def _pixels(h: int, w: int, dtype: Any) -> Float[Array, "{h}*{w} 2"]:
    """The coordinates of `fk.data.pixel_coords`."""
    x, y = np.meshgrid(np.linspace(0, 1, w), np.linspace(0, 1, h))
    return jnp.asarray(np.stack([x.ravel(), y.ravel()], axis=1), dtype)
