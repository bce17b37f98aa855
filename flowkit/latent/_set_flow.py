r"""Generative models of point clouds: every point moves on its own from noise, given the latents of the cloud.

$$z = \mathrm{encoder}(X), \qquad \dot X_t = v(t, X_t; z), \qquad z \sim \mathrm{prior}.$$

With $z$ from the encoder the flow reconstructs a cloud, with any number of points; with $z$ from the prior it
generates one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._blocks import mean_over_batch
from flowkit._checks import check_data, check_mask
from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import Flow
from flowkit._integrate import DEFAULT_CONTROLLER, DEFAULT_SOLVER
from flowkit._losses import draw_examples, Example, ExampleError, Weighting
from flowkit._predictions import AbstractPrediction, Target, Velocity
from flowkit._sampling import sample, Samples
from flowkit._times import uniform
from flowkit._types import AnyArray, Mask, Points, PRNGKey, Scalar
from flowkit.latent._divergences import marginal_kl, standard_normal_kl
from flowkit.latent._priors import prior_loss


class SetFlow(eqx.Module):
    """An encoder, a flow conditioned on its latents, and a prior over them.

    ```python
    flow = fk.Flow(fk.nn.AdaLNMLP(2, 32, key=fkey))
    model = fk.latent.SetFlow(fk.nn.PointNet(2, 32, key=ekey), flow, fk.Normal())
    ```

    **Arguments:**

    - `encoder`: `(points, mask=None, key=None) -> (k, c)`, with attributes `in_size` and `out_size`, such as
      `fk.nn.PointNet`.
    - `flow`: a `fk.Flow` whose network takes the latents as its condition, such as `fk.nn.AdaLNMLP`.
    - `prior`: over latents: `fk.Normal()`, a trainable `fk.GaussianMixture`, or `fk.latent.FlowPrior`.
    - `variational`: the encoder's output is read as means and log-variances, so its `out_size` is twice that of the
      latents.

    **Reference:** Yang et al., PointFlow (2019), arXiv 1906.12320, for the two levels.
    """

    encoder: Callable
    flow: Flow
    prior: AbstractDistribution
    variational: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.variational and self.encoder.out_size % 2:
            raise ValueError(
                "`encoder` must have an even `out_size` if `variational=True`, since it holds means and log-variances; "
                f"got {self.encoder.out_size}."
            )

    @property
    def in_size(self) -> int:
        """The dimension of the points."""
        return self.encoder.in_size

    @property
    def latent_shape(self) -> tuple[int, int]:
        """The shape `(k, c)` of the latents; for encoders with one latent per point, that of one point."""
        points = jax.ShapeDtypeStruct((1, self.in_size), jnp.result_type(float))
        return eqx.filter_eval_shape(eqx.nn.inference_mode(self).posterior, points)[0].shape

    def posterior(
        self, points: Points, mask: Mask | None = None, *, key: PRNGKey | None = None
    ) -> tuple[Float[Array, "k c"], Float[Array, "k c"] | None]:
        """Means and log-variances of the latents of one cloud; no log-variances unless the model is variational."""
        output = self.encoder(jnp.asarray(points), mask=mask, key=key)
        if not self.variational:
            return output, None
        mean, log_variance = jnp.split(output, 2, axis=-1)
        return mean, log_variance

    def encode(self, points: Points, mask: Mask | None = None, *, key: PRNGKey | None = None) -> Float[Array, "k c"]:
        """The latents of one cloud. With a key a variational model draws them, without one it returns their means."""
        check_mask("mask", mask)
        ekey, zkey = (None, None) if key is None else jr.split(key)
        mean, log_variance = self.posterior(points, mask, key=ekey)
        if log_variance is None or zkey is None:
            return mean
        return mean + jnp.exp(0.5 * log_variance) * jr.normal(zkey, mean.shape, mean.dtype)

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
        stepsize_controller: dfx.AbstractStepSizeController = DEFAULT_CONTROLLER,
    ) -> Float[Array, "m d"]:
        """A new cloud from the latents of one cloud.

        **Arguments:**

        - `points`, `mask`: the cloud `(n, d)`; only its valid points are seen.
        - `num_points`: how many points to draw, `n` if `None`.
        - `source`, `solver`, `num_steps`, `stepsize_controller`: as in `fk.sample`.
        """
        shape = (points.shape[0] if num_points is None else num_points, self.in_size)
        samples = sample(
            self.flow,
            shape,
            num_samples=1,
            key=key,
            cond=eqx.nn.inference_mode(self).encode(points, mask),
            cond_axes=None,
            source=source,
            solver=solver,
            num_steps=num_steps,
            stepsize_controller=stepsize_controller,
        )
        return samples.values[0]

    def sample(
        self,
        num_points: int,
        *,
        num_samples: int,
        key: PRNGKey,
        mask: Bool[AnyArray, "batch n"] | None = None,
        source: AbstractDistribution = Normal(),
        solver: dfx.AbstractSolver = DEFAULT_SOLVER,
        num_steps: int | None = None,
        stepsize_controller: dfx.AbstractStepSizeController = DEFAULT_CONTROLLER,
    ) -> Samples:
        """New clouds from the prior: `fk.Samples` with values `(num_samples, num_points, d)`.

        Encoders with one latent per point have no fixed `latent_shape` to draw from; use `reconstruct`.
        """
        zkey, xkey = jr.split(key)
        latents = self.prior.sample((num_samples, *self.latent_shape), key=zkey)
        return sample(
            self.flow,
            (num_points, self.in_size),
            num_samples=num_samples,
            key=xkey,
            cond=latents,
            mask=mask,
            source=source,
            solver=solver,
            num_steps=num_steps,
            stepsize_controller=stepsize_controller,
        )


def set_flow_loss(
    model: SetFlow,
    points: Float[AnyArray, "batch n d"],
    *,
    key: PRNGKey,
    mask: Bool[AnyArray, "batch n"] | None = None,
    encoder_mask: Bool[AnyArray, "batch n"] | None = None,
    vae_kl_weight: Scalar = 0.0,
    marginal_kl_weight: Scalar = 0.0,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    times: Callable = uniform,
    targets: Sequence[AbstractPrediction] | None = None,
    weighting: Weighting | None = None,
    block: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a `SetFlow` on a batch of clouds, and its parts.

    The sum of the flow-matching loss given the latents, the loss of the prior on these latents (of a variational
    model: on their means), which moves the prior and never the encoder, and the weighted divergences.

    **Arguments:**

    - `model`: the model.
    - `points`, `mask`: clouds `(batch, n, d)` and which of their points are valid.
    - `encoder_mask`: `(batch, n)`, which valid points the encoder may see, such as those of a grid mask; the flow is
      trained on all valid ones.
    - `vae_kl_weight`: of `standard_normal_kl`, for variational models.
    - `marginal_kl_weight`: of `marginal_kl`.
    - `source`, `coupling`, `times`, `weighting`, `block`: as in `fk.flow_matching_loss`. With `block` the encoder is
      worked on in the same blocks.
    - `targets`: as there; `None` is `(fk.Velocity(),)`, and for variational models `fk.Target()` as well.

    **Returns:** the loss, and the parts `flow_loss`, `prior_loss`, `vae_kl` and `marginal_kl`, those that apply.
    """
    check_data("points", points, mask)
    check_mask("encoder_mask", encoder_mask if mask is None or encoder_mask is None else encoder_mask & mask)
    if not (_is_zero(vae_kl_weight) or model.variational):
        raise ValueError("`vae_kl_weight` needs a model with `variational=True`.")
    if targets is None:
        targets = (Velocity(), Target()) if model.variational else (Velocity(),)
    # As arrays, so that a warm-up of the weights recompiles nothing; only the number 0 leaves a term out.
    vae_kl_weight, marginal_kl_weight = (
        0 if _is_zero(weight) else jnp.asarray(weight, points.dtype) for weight in (vae_kl_weight, marginal_kl_weight)
    )
    error = _CloudError(ExampleError(tuple(targets), weighting), vae_kl_weight)
    return _loss(model, points, key, mask, encoder_mask, marginal_kl_weight, source, coupling, times, error, block)


def _is_zero(weight: Scalar) -> bool:
    return isinstance(weight, int | float) and weight == 0


class _CloudError(eqx.Module):
    """The error of one cloud, encoder included, with the latents and the parts beside it."""

    flow_error: ExampleError
    vae_kl_weight: Scalar

    def __call__(self, model: SetFlow, example: Example) -> tuple[Float[Array, ""], dict[str, Any]]:
        mean, log_variance = model.posterior(example.cond["points"], example.cond["mask"], key=example.cond["key"])
        latents = mean
        if log_variance is not None:
            noise = jr.normal(example.cond["latent_key"], mean.shape, mean.dtype)
            latents = mean + jnp.exp(0.5 * log_variance) * noise
        flow_loss, _ = self.flow_error(model.flow, example._replace(cond=latents))
        aux = {"latents": mean, "flow_loss": flow_loss}
        if log_variance is None:
            return flow_loss, aux
        kl = standard_normal_kl(mean, log_variance)
        return flow_loss + self.vae_kl_weight * kl, aux | {"vae_kl": kl}


@eqx.filter_jit
def _loss(model, points, key, mask, encoder_mask, marginal_kl_weight, source, coupling, times, error, block):
    fkey, ekey, zkey, pkey = jr.split(key, 4)
    num = points.shape[0]
    visible = mask if encoder_mask is None else encoder_mask if mask is None else encoder_mask & mask
    # The points as the encoder sees them travel with the flow's draws, so that a coupling permutes both alike.
    cond = {
        "points": jnp.asarray(points),
        "mask": visible,
        "key": jr.split(ekey, num),
        "latent_key": jr.split(zkey, num),
    }
    examples = draw_examples(model.flow, points, cond, fkey, source, coupling, times, mask)
    loss, aux = mean_over_batch(error, model, examples, block=block)
    latents = aux.pop("latents")
    metrics = {name: jnp.mean(value) for name, value in aux.items()}
    metrics["prior_loss"] = prior_loss(model.prior, latents, key=pkey)
    loss = loss + metrics["prior_loss"]
    if not _is_zero(marginal_kl_weight):
        encode = jax.checkpoint(lambda cloud: model.posterior(cloud["points"], cloud["mask"], key=cloud["key"])[0])
        latents = jax.lax.map(encode, cond, batch_size=block or num)
        metrics["marginal_kl"] = marginal_kl(latents)
        loss = loss + marginal_kl_weight * metrics["marginal_kl"]
    return loss, metrics
