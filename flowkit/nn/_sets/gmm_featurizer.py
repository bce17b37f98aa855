"""A Gaussian mixture as the latents of a cloud."""

import operator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowkit._masks import zero_masked
from flowkit._types import Mask, Points, PRNGKey
from flowkit.nn._layers.arrays import in_sum_dtype
from flowkit.nn._sets.encoder import AbstractEncoder, checked_points
from flowkit.nn._sets.geometry import order_of_coordinates
from flowkit.nn._sets.pooling import mean_pool
from flowkit.nn._sets.variational_mixture import fit, prior_mixture


class FittedMixture(NamedTuple):
    """The components of a mixture, the heaviest first.

    Components that hold next to no points are not valid.
    """

    weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    covariances: Float[Array, "k d d"]
    valid: Bool[Array, " k"]


class GMMFeaturizer(AbstractEncoder):
    r"""A structured encoder without weights: a Gaussian mixture fitted to the cloud.

    Each component gives its mean $m$ and the points $m \pm \sigma_i e_i$, where $e_i$
    are the eigenvectors of its covariance and $\sigma_i$ the roots of the eigenvalues:
    `(n, in_size) -> (num_components (1 + 2 in_size), in_size)`. Components are sorted by
    weight, heaviest first, and axes by length, shortest first. Axes are directed so that
    their largest entry is positive; axes of equal length may be rotated. The rows of
    components with at most 1% of the points are zero.

    The rows are points themselves, so another encoder can read them:
    `Chained(GMMFeaturizer(2), SetTransformer(2, 32, key=key))`.

    The mixture is fitted by variational Bayes with damped steps, from means that are
    far from each other. Its prior keeps components from collapsing and empties those
    that are not needed, which takes longer than the default number of steps. Together,
    the points count as at most 40 per component.

    **Arguments:**

    - `in_size`: the dimension of the points, which is `out_size` too.
    - `num_components`: the maximum number of components.
    - `scale`: the scale of the cloud. A priori a component has a standard deviation of
      about `scale * num_components^(-1 / in_size)` along each axis.
    - `num_steps`: the number of steps of the fit.
    - `rate`: the damping of the steps; with a rate of 1 they are not damped.
    - `stop_gradient`: whether the result is a constant to differentiation. If it is not,
      gradients are not finite where a component has two equal eigenvalues.

    **Reference:** Bishop, Pattern Recognition and Machine Learning, 2006, section 10.2.
    """

    num_components: int = eqx.field(static=True, converter=operator.index)
    scale: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True, converter=operator.index)
    rate: float = eqx.field(static=True)
    stop_gradient: bool = eqx.field(static=True)
    in_size: int = eqx.field(static=True, converter=operator.index)
    out_size: int = eqx.field(static=True, converter=operator.index)

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
        components = self._fitted(points, mask)
        axes = _principal_axes(components.covariances)
        means = components.means[:, None]

        rows = jnp.concatenate([means, means + axes, means - axes], axis=1)
        valid = jnp.repeat(components.valid, rows.shape[1])
        rows = zero_masked(rows.reshape(-1, self.in_size), valid)
        return rows.astype(jnp.asarray(points).dtype)

    def components(self, points: Points, mask: Mask | None = None) -> FittedMixture:
        """The fitted mixture, with `k = num_components`."""
        fitted = self._fitted(points, mask)
        dtype = jnp.asarray(points).dtype
        return FittedMixture(
            fitted.weights.astype(dtype),
            fitted.means.astype(dtype),
            fitted.covariances.astype(dtype),
            fitted.valid,
        )

    def _fitted(self, points: Points, mask: Mask | None) -> FittedMixture:
        points = checked_points(points, mask, self.in_size)
        # There is no Cholesky factorization in half precision.
        points = in_sum_dtype(points)
        if self.stop_gradient:
            points = jax.lax.stop_gradient(points)

        # Sorted, because rounding errors that depend on the given order would rotate
        # axes of equal length.
        order = order_of_coordinates(points, mask)
        points = points[order]
        if mask is not None:
            mask = jnp.asarray(mask)[order]

        center = mean_pool(points, mask)
        points = zero_masked(points - center[None], mask)
        prior = prior_mixture(
            self.num_components, self.in_size, self.scale, points.dtype
        )
        mixture, responsibilities = fit(
            points, mask, prior, num_steps=self.num_steps, rate=self.rate
        )

        sizes = jnp.sum(responsibilities, axis=0)
        valid = sizes > 0.01 * jnp.sum(sizes)
        weights = mixture.concentration / jnp.sum(mixture.concentration)
        fitted = FittedMixture(
            weights,
            mixture.mean + center[None],
            mixture.inverse_scale / mixture.degrees[:, None, None],
            valid,
        )
        # Weights are below 1, so that components that are not valid come last.
        heaviest = jnp.argsort(-jnp.where(valid, weights, weights - 1))
        return FittedMixture(*[leaf[heaviest] for leaf in fitted])


def _principal_axes(covariances: Float[Array, "k d d"]) -> Float[Array, "k d d"]:
    """The eigenvectors as rows, as long as the roots of their eigenvalues."""
    values, vectors = jnp.linalg.eigh(covariances)
    vectors = jnp.swapaxes(vectors, 1, 2)

    # An eigenvector has no sign of its own: its largest entry is made positive.
    largest = jnp.argmax(jnp.abs(vectors), axis=-1, keepdims=True)
    negative = jnp.take_along_axis(vectors, largest, axis=-1) < 0
    directed = jnp.where(negative, -vectors, vectors)
    return jnp.sqrt(jnp.maximum(values, 0))[..., None] * directed
