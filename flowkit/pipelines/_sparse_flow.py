r"""Images from some of their pixels: one conditional flow, whatever its network.

The condition $y$ is the observed pixels. The flow moves a start $x_0$, which is white noise
or a draw of a Gaussian process given $y$, to the values at the queried coordinates,

$$ \frac{dx}{dt} = v(t, x, y), \qquad x(0) = x_0, $$

so that $x(1)$ is a sample of what these values may be. Intensities stay in $[0, 1]$.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowkit._checks import as_size, check_units
from flowkit._couplings import independent, Paired
from flowkit._flow import Flow
from flowkit._losses import flow_matching_loss
from flowkit._solve import integrate, sample
from flowkit._types import AnyArray, is_traced, PRNGKey
from flowkit.data import pixel_coords, SparsePixels
from flowkit.inverse import GaussianProcess
from flowkit.nn import Observed


_BETWEEN_PIXELS = GaussianProcess(0.3)


class SparseFlow(eqx.Module):
    """A flow to the pixels of an image, given some of them. `SparseFlowConfig` builds it.

    ```python
    model = fk.pipelines.SparseFlowConfig(shape=(8, 8, 1)).build(key=key)
    pixels = fk.data.sparse_pixels(images, key=key)
    loss = model.loss(images, pixels, key=key)
    grid = fk.data.pixel_coords(16, 16)
    values = model.sample(pixels.input_coords, pixels.input_values, grid, key=key)
    ```

    **Arguments:**

    - `flow`: a flow whose condition is an `fk.nn.Observed`; with a `process` it is the pair
        of that and the mean of the process at the queries.
    - `process`: what the flow starts from, given the observed pixels: an object with
        the method `sample` of `fk.inverse.GaussianProcess`, or with a `grid` its
        `sample_image`. `None` starts from white noise.
    - `grid`: the height and width of the images if the network answers for all of their
        pixels together; `None` if it answers at any coordinates.
    """

    flow: Flow
    process: Any = None
    grid: tuple[int, int] | None = eqx.field(default=None, static=True)

    def loss(
        self,
        images: Float[AnyArray, "b h w c"],
        pixels: SparsePixels,
        *,
        key: PRNGKey,
    ) -> Float[Array, ""]:
        """The flow-matching loss at the output pixels; with a `grid`, at all of them.

        **Arguments:** the images, in [0, 1], and pixels of each by `fk.data.sparse_pixels`.
        """
        check_units("images", images, signed=False)
        coords = jnp.asarray(pixels.output_coords)
        values = jnp.asarray(pixels.output_values)
        # A network of images sees the state of all pixels, so it is trained on all.
        if self.grid is not None:
            coords = self._all_coords(len(images))
            values = jnp.asarray(images).reshape(len(images), -1, images.shape[-1])

        seen = Observed(coords, pixels.input_coords, pixels.input_values)
        start_key, key = jr.split(key)
        coupling = independent
        cond = seen
        if self.process is not None:
            starts, cond = self._starts(seen, key=start_key)
            # A process that has weights was trained before.
            starts, cond = jax.lax.stop_gradient((starts, cond))
            coupling = Paired(starts)
        return flow_matching_loss(self.flow, values, cond, coupling=coupling, key=key)

    def sample(
        self,
        coords: Float[AnyArray, "b n 2"],
        values: Float[AnyArray, "b n c"],
        query_coords: Float[AnyArray, "m 2"] | Float[AnyArray, "b m 2"],
        *,
        mirrored: bool = False,
        key: PRNGKey,
        **options: Any,
    ) -> Float[Array, "b m c"]:
        """One sample for each image, clipped to [0, 1]. Other keys give other samples.

        **Arguments:**

        - `coords`, `values`: the observed pixels.
        - `query_coords`: where values are wanted, `(m, 2)` for all images alike or
            `(b, m, 2)`. With a `grid` these must be all pixels, by `fk.data.pixel_coords`.
        - `mirrored`: start on the other side of the mean. The sample is as good as the one
            of the same key, and their errors cancel in part: if half of the samples are
            mirrored, their mean is nearer to the expected image. The two are not
            independent, so pairs are for means, not for the CRPS or for intervals.
        - `options`: `solver`, `num_steps` and others, as in `fk.sample`.

        **Raises:** `ValueError`, where values are known, for coordinates outside [0, 1], for
        observed values that leave it by more than a tenth, and with a `grid` for other
        queries than all of its pixels.
        """
        seen = self._observed(coords, values, query_coords)
        return _sample(self, seen, mirrored, key, options)

    def sample_image(
        self,
        coords: Float[AnyArray, "b n 2"],
        values: Float[AnyArray, "b n c"],
        h: int,
        w: int,
        *,
        key: PRNGKey,
        **options: Any,
    ) -> Float[Array, "b {h} {w} c"]:
        """One sample of each image, of any size.

        A network that answers at any coordinates is asked for those of all pixels. One with
        a `grid` makes the image of its own size. What is wanted between those pixels is the
        mean of a `fk.inverse.GaussianProcess` given them, which is smooth.

        **Arguments:**

        - `coords`, `values`: the observed pixels.
        - `h`, `w`: the size of the images.
        - `options`: as in `sample`.
        """
        size = (as_size("h", h), as_size("w", w))
        own = self.grid or size
        options = {"key": key} | options
        found = self.sample(coords, values, pixel_coords(*own), **options)
        if own != size:
            found = _between(found, own, size)
        return found.reshape(len(found), *size, -1)

    def trajectories(
        self,
        coords: Float[AnyArray, "b n 2"],
        values: Float[AnyArray, "b n c"],
        query_coords: Float[AnyArray, "m 2"] | Float[AnyArray, "b m 2"],
        times: Float[AnyArray, " t"],
        *,
        key: PRNGKey,
        **options: Any,
    ) -> Float[Array, "b t m c"]:
        """Samples on their way from start to data, not clipped.

        **Arguments:** `times` in [0, 1]; all others as in `sample`.
        """
        seen = self._observed(coords, values, query_coords)
        return _trajectories(self, seen, jnp.asarray(times), key, options)

    def predict(
        self, pixels: SparsePixels, *, key: PRNGKey, **options: Any
    ) -> Float[Array, "b m c"]:
        """One sample of the output pixels of each image, queried as in training.

        **Arguments:** as in `sample`.
        """
        seen = (pixels.input_coords, pixels.input_values)
        # A velocity depends on which other pixels are queried: here those of training.
        if self.grid is None:
            return self.sample(*seen, pixels.output_coords, key=key, **options)
        image = self.sample(*seen, pixel_coords(*self.grid), key=key, **options)
        indices = jnp.asarray(pixels.output_indices)[..., None]
        return jnp.take_along_axis(image, indices, axis=1)

    def _all_coords(self, number: int) -> Float[Array, "b m 2"]:
        coords = pixel_coords(*self.grid)  # pyright: ignore[reportOptionalIterable]
        return jnp.broadcast_to(coords, (number, *coords.shape))

    def _observed(self, coords, values, query_coords) -> Observed:
        check_units("values", values, signed=False)
        if query_coords.ndim == 2:
            shape = (len(coords), *query_coords.shape)
            query_coords = jnp.broadcast_to(query_coords, shape)
        if self.grid is not None:
            _check_queries(query_coords, self.grid)
        return Observed(query_coords, coords, values)

    def _starts(
        self, seen: Observed, *, key: PRNGKey
    ) -> tuple[Float[Array, "b m c"], Any]:
        """Where the flow starts, independent for each image, and its condition."""
        number, num_queries, _ = seen.query_coords.shape
        if self.process is None:
            values = jnp.asarray(seen.values)
            shape = (number, num_queries, values.shape[-1])
            return jr.normal(key, shape, values.dtype), seen

        def draw(seen, key):
            where = (seen.coords, seen.values)
            if self.grid is None:
                return self.process.sample(*where, seen.query_coords, key=key)
            return self.process.sample_image(*where, *self.grid, key=key)

        starts, means = jax.vmap(draw)(seen, jr.split(key, number))
        return starts, (seen, means)


@eqx.filter_jit
def _sample(model, seen, mirrored, key, options):
    starts, cond = model._starts(seen, key=key)
    if mirrored:
        mean = 0 if model.process is None else cond[1]
        starts = 2 * mean - starts
    number, *shape = starts.shape
    drawn = sample(
        model.flow,
        shape,
        num_samples=number,
        x0=starts,
        cond=cond,
        **options,
    )
    # A solver with few steps may overshoot the range of intensities.
    return jnp.clip(drawn.values, 0, 1)


@eqx.filter_jit
def _trajectories(model, seen, times, key, options):
    saveat = dfx.SaveAt(ts=times)

    def path(x0, cond):
        solution = integrate(model.flow, x0, cond, saveat=saveat, **options)
        return jnp.asarray(solution.ys)

    return jax.vmap(path)(*model._starts(seen, key=key))


def _check_queries(query_coords: AnyArray, grid: tuple[int, int]) -> None:
    """Raises for queries that are not the pixels of a network of whole images."""
    height, width = grid
    advice = (
        f"but the network answers for the {height} x {width} pixels of an image together: "
        f"give `fk.data.pixel_coords({height}, {width})`, or take another network."
    )
    if query_coords.shape[1] != height * width:
        raise ValueError(f"`query_coords` are {query_coords.shape[1]} points, {advice}")
    if is_traced(query_coords):
        return
    pixels = np.asarray(pixel_coords(height, width))
    if not np.allclose(np.asarray(query_coords), pixels[None], atol=1e-4):
        raise ValueError(f"`query_coords` are not those of the pixels, {advice}")


@eqx.filter_jit
def _between(
    values: Float[Array, "b n c"], own: tuple[int, int], wanted: tuple[int, int]
) -> Float[Array, "b m c"]:
    """Images of another size, from all pixels of their own."""
    coords = pixel_coords(*own)
    queries = pixel_coords(*wanted)

    def interpolate(values):
        return _BETWEEN_PIXELS.mean(coords, values, queries)

    # One after another: each needs the squares of the numbers of pixels.
    return jnp.clip(jax.lax.map(interpolate, values), 0, 1)
