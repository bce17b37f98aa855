"""A Gaussian mixture as the latents of a cloud."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._types import Mask, Points, PRNGKey
from flowkit.nn._geometry import order_of_coordinates
from flowkit.nn._pooling import mean_pool
from flowkit.nn._shapes import zero_masked
from flowkit.nn.encoders._encoder import AbstractEncoder, checked_points
from flowkit.nn.encoders._variational_mixture import fit, prior_mixture


class FittedMixture(NamedTuple):
    """The components of a mixture, the heaviest first; those that hold next to no points are not valid."""

    weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    covariances: Float[Array, "k d d"]
    valid: Bool[Array, " k"]


class GMMFeaturizer(AbstractEncoder):
    r"""A structured encoder without weights: the components of a Gaussian mixture fitted to the cloud.

    Of each component the mean $m$ and the points $m \pm \sigma_i e_i$, with the eigenvectors and the roots of the
    eigenvalues of its covariance: `(n, in_size) -> (num_components (1 + 2 in_size), in_size)`. Components are sorted
    by weight, axes by length, shortest first and directed so that their largest entry is positive; axes of the same
    length may be turned. The rows of components with at most 1 % of the points are zero.

    The rows are points themselves, so another encoder can read them:
    `Chained(GMMFeaturizer(2), SetTransformer(2, 32, key=key))`.

    The mixture is fitted by variational Bayes, see Bishop, section 10.2, with damped steps from means that are far
    from each other. Its prior keeps components from collapsing and empties those that are not needed, which takes
    longer than the default number of steps. Points count at most 40 for each component.

    **Arguments:**

    - `in_size`: the dimension of the points, which is `out_size` too.
    - `num_components`: the largest number of components.
    - `scale`: the scale of the cloud. A priori a component has a standard deviation of about
        `scale * num_components^(-1 / in_size)` along each axis.
    - `num_steps`, `rate`: of the fit; with a rate of 1 steps are not damped.
    - `stop_gradient`: whether the result is a constant to differentiation. If it is not, gradients are not finite
        where a component has two equal eigenvalues.

    **Reference:** Bishop, Pattern Recognition and Machine Learning, 2006, section 10.2.
    """

    num_components: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    rate: float = eqx.field(static=True)
    stop_gradient: bool = eqx.field(static=True)
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        *,
        num_components: int = 10,
        scale: float = 0.3,
        num_steps: int = 10,
        rate: float = 0.5,
        stop_gradient: bool = True,
    ):
        if num_components < 1:
            raise ValueError(
                f"`num_components` must be at least 1, got {num_components}."
            )
        if num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
        if not scale > 0:
            raise ValueError(f"`scale` must be positive, got {scale}.")
        if not 0 < rate <= 1:
            raise ValueError(f"`rate` must be in (0, 1], got {rate}.")
        self.num_components = num_components
        self.scale = scale
        self.num_steps = num_steps
        self.rate = rate
        self.stop_gradient = stop_gradient
        self.in_size = in_size
        self.out_size = in_size

    def __call__(
        self, points: Points, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "k d"]:
        """The means and axes of the components, component after component."""
        del key
        components = self.components(points, mask)
        axes = _principal_axes(components.covariances)
        means = components.means[:, None]
        rows = jnp.concatenate([means, means + axes, means - axes], axis=1)
        valid = jnp.repeat(components.valid, rows.shape[1])
        return zero_masked(rows.reshape(-1, self.in_size), valid)

    def components(self, points: Points, mask: Mask | None = None) -> FittedMixture:
        """Weights, means and covariances of the fitted mixture, `k = num_components` of them."""
        points = checked_points(points, mask, self.in_size)
        if self.stop_gradient:
            points = jax.lax.stop_gradient(points)
        # In an order of their own, so that not even rounding depends on the given one: it would turn equal axes.
        order = order_of_coordinates(points, mask)
        points, mask = points[order], None if mask is None else jnp.asarray(mask)[order]
        center = mean_pool(points, mask)
        points = zero_masked(points - center, mask)
        prior = prior_mixture(
            self.num_components, self.in_size, self.scale, points.dtype
        )
        mixture, responsibilities = fit(
            points, mask, prior, num_steps=self.num_steps, rate=self.rate
        )
        sizes = jnp.sum(responsibilities, axis=0)
        valid = sizes > 0.01 * jnp.sum(sizes)
        weights = mixture.concentration / jnp.sum(mixture.concentration)
        order = jnp.argsort(-jnp.where(valid, weights, weights - 1))
        covariances = mixture.inverse_scale / mixture.degrees[:, None, None]
        return FittedMixture(
            weights[order],
            (mixture.mean + center)[order],
            covariances[order],
            valid[order],
        )


def _principal_axes(covariances: Float[Array, "k d d"]) -> Float[Array, "k d d"]:
    """The eigenvectors as rows, as long as the roots of their eigenvalues."""
    values, vectors = jnp.linalg.eigh(covariances)
    vectors = jnp.swapaxes(vectors, 1, 2)
    largest = jnp.argmax(jnp.abs(vectors), axis=-1, keepdims=True)
    signs = jnp.where(jnp.take_along_axis(vectors, largest, axis=-1) < 0, -1, 1).astype(
        vectors.dtype
    )
    return jnp.sqrt(jnp.maximum(values, 0))[..., None] * signs * vectors
