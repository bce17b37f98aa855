r"""Generative models of point clouds: given the latents, points move independently.

$$z = \mathrm{encoder}(X), \qquad \dot X_t = v(t, X_t; z), \qquad z \sim \mathrm{prior}.$$

With $z$ from the encoder the flow reconstructs a cloud, with any number of points; with $z$
from the prior it generates one.
"""

from collections.abc import Callable

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_mask, check_sampling
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import Flow
from flowkit._print import ShortDoc
from flowkit._solve import DEFAULT_ADJOINT, DEFAULT_SOLVER, sample, Samples
from flowkit._types import AnyArray, Cond, Mask, Points, PRNGKey
from flowkit.latent._priors import prior_keywords


class SetFlow(ShortDoc, eqx.Module):
    r"""An encoder, a flow conditioned on its latents, and a prior over them.

    ```python
    flow = fk.Flow(fk.nn.AdaLNMLP(2, 32, key=fkey))
    model = fk.latent.SetFlow(fk.nn.PointNet(2, 32, key=ekey), flow, fk.Normal())
    ```

    **Arguments:**

    - `encoder`: `(points, mask=None, key=None) -> (k, c)`, with attributes `in_size` and
      `out_size`, such as `fk.nn.PointNet`.
    - `flow`: a `fk.Flow` whose network takes the latents as its condition, such as
      `fk.nn.AdaLNMLP`.
    - `prior`: the distribution of the latents: `fk.Normal()`, a trainable
      `fk.latent.mixture_prior`, or `fk.latent.FlowPrior`. A prior with a condition, such as
      a class, gets the `cond` of `sample` and of the losses.
    - `variational`: whether the encoder's output is read as means and log-variances; its
      `out_size` is then twice the size of the latents.
    - `normalize`: whether each latent is divided by its length,
      $z / \sqrt{\sum_j z_j^2 + 10^{-8}}$: those of the encoder (in a variational model the
      means, before the noise) and those of the prior.

    **Reference:** Yang et al., PointFlow (2019), arXiv 1906.12320, for the two levels.
    """

    encoder: Callable
    flow: Flow
    prior: AbstractDistribution
    variational: bool = eqx.field(static=True, default=False)
    normalize: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.variational and self.encoder.out_size % 2:
            raise ValueError(
                "`encoder` must have an even `out_size` if `variational=True`, since it holds "
                f"means and log-variances; got {self.encoder.out_size}."
            )

    @property
    def in_size(self) -> int:
        """The dimension of the points."""
        return self.encoder.in_size

    @property
    def latent_shape(self) -> tuple[int, int]:
        """The shape `(k, c)` of the latents.

        For encoders with one latent per point it is that of a single point.
        """
        # Shapes only, nothing is computed; in inference mode, since dropout would want
        # a key.
        encoder = eqx.nn.inference_mode(self)
        points = jax.ShapeDtypeStruct((1, self.in_size), jnp.result_type(float))
        mean, _ = eqx.filter_eval_shape(encoder.posterior, points)
        return mean.shape

    def posterior(
        self, points: Points, mask: Mask | None = None, *, key: PRNGKey | None = None
    ) -> tuple[Float[Array, "k c"], Float[Array, "k c"] | None]:
        """Means and log-variances of the latents of one cloud.

        The log-variances are `None` unless the model is variational.
        """
        output = self.encoder(jnp.asarray(points), mask=mask, key=key)
        if not self.variational:
            return self._normalized(output), None
        mean, log_variance = jnp.split(output, 2, axis=-1)
        return self._normalized(mean), log_variance

    def _normalized(self, latents: Float[Array, "... c"]) -> Float[Array, "... c"]:
        if not self.normalize:
            return latents
        squared_length = jnp.sum(latents**2, axis=-1, keepdims=True)
        # The constant keeps the gradient finite at zero latents.
        return latents * jax.lax.rsqrt(squared_length + 1e-8)

    def encode(
        self, points: Points, mask: Mask | None = None, *, key: PRNGKey | None = None
    ) -> Float[Array, "k c"]:
        """The latents of one cloud.

        A variational model draws them with a key, and returns their means without one.
        """
        check_mask("mask", mask)
        if key is None:
            mean, _ = self.posterior(points, mask)
            return mean

        ekey, zkey = jr.split(key)
        mean, log_variance = self.posterior(points, mask, key=ekey)
        if log_variance is None:
            return mean
        return draw_latents(mean, log_variance, key=zkey)

    def reconstruct(
        self,
        points: Points,
        mask: Mask | None = None,
        *,
        key: PRNGKey,
        num_points: int | None = None,
        source: AbstractDistribution = Normal(),
        solver: dfx.AbstractSolver = DEFAULT_SOLVER,
        num_steps: int | None = None,
        stepsize_controller: dfx.AbstractStepSizeController | None = None,
        max_steps: int = 4096,
        adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
        throw: bool = True,
    ) -> Float[Array, "m d"]:
        """A new cloud from the latents of one cloud.

        **Arguments:**

        - `points`, `mask`: the cloud `(n, d)`; only its valid points are seen. With an
          encoder that has a latent for each point, masked rows of the result are zero, and
          the others do not depend on them.
        - `num_points`: the number of points to draw, `n` if `None`.
        - `source`, `solver`, `num_steps`, `stepsize_controller`, `max_steps`, `adjoint`, `throw`:
          as in `fk.sample`.
        """
        size = points.shape[0] if num_points is None else num_points
        latents = eqx.nn.inference_mode(self).encode(points, mask)
        shown = None
        # Where each point has a latent, the others must not attend to masked ones.
        if mask is not None and len(latents) == size != self.latent_shape[0]:
            shown = mask[None]

        samples = sample(
            self.flow,
            (size, self.in_size),
            num_samples=1,
            key=key,
            cond=latents,
            cond_axes=None,
            mask=shown,
            source=source,
            solver=solver,
            num_steps=num_steps,
            stepsize_controller=stepsize_controller,
            max_steps=max_steps,
            adjoint=adjoint,
            throw=throw,
        )

        return samples.values[0]

    def sample(
        self,
        num_points: int,
        *,
        num_samples: int,
        key: PRNGKey,
        cond: Cond = None,
        cond_axes: int | None = 0,
        mask: Bool[AnyArray, "batch n"] | None = None,
        source: AbstractDistribution = Normal(),
        solver: dfx.AbstractSolver = DEFAULT_SOLVER,
        num_steps: int | None = None,
        stepsize_controller: dfx.AbstractStepSizeController | None = None,
        max_steps: int = 4096,
        adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
        throw: bool = True,
    ) -> Samples:
        """New clouds from the prior: `fk.Samples` with values `(num_samples, num_points, d)`.

        Encoders with one latent per point have no fixed `latent_shape` to draw from; use
        `reconstruct` with them.

        **Arguments:**

        - `num_points`, `num_samples`: the number of points per cloud, and of clouds.
        - `cond`: the condition of the prior: arrays with leading axis `num_samples`, or,
          with `cond_axes=None`, one shared by all. A prior that takes none is a
          `ValueError`.
        - `mask`, `source`, `solver`, `num_steps`, `stepsize_controller`, `max_steps`, `adjoint`,
          `throw`: as in `fk.sample`, for the points.
        """
        shape = (num_points, self.in_size)
        check_sampling(shape, num_samples, cond, cond_axes, mask)
        zkey, xkey = jr.split(key)
        if cond_axes is None:
            # The prior draws all latents in one call, with one condition for each of
            # them.
            cond = _repeated(cond, num_samples)
        latents = self.prior.sample(
            (num_samples, *self.latent_shape),
            key=zkey,
            **prior_keywords(self.prior, cond),
        )

        return sample(
            self.flow,
            shape,
            num_samples=num_samples,
            key=xkey,
            cond=self._normalized(latents),
            mask=mask,
            source=source,
            solver=solver,
            num_steps=num_steps,
            stepsize_controller=stepsize_controller,
            max_steps=max_steps,
            adjoint=adjoint,
            throw=throw,
        )


def _repeated(cond: Cond, num: int) -> Cond:
    """One condition, once for each of `num` samples."""
    repeat = lambda leaf: jnp.broadcast_to(leaf, (num, *jnp.shape(leaf)))
    return jax.tree.map(repeat, cond)


def draw_latents(
    mean: Float[Array, "k c"], log_variance: Float[Array, "k c"], *, key: PRNGKey
) -> Float[Array, "k c"]:
    """Normal latents; rows of zeros stand for nothing and stay zero."""
    # An encoder returns exact zeros for masked rows. Noise would turn them into
    # latents.
    exists = jnp.any((mean != 0) | (log_variance != 0), axis=-1, keepdims=True)
    noise = jnp.exp(0.5 * log_variance) * jr.normal(key, mean.shape, mean.dtype)
    return mean + jnp.where(exists, noise, 0)
