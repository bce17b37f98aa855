"""What trains a `SetFlow`: all of it at once, or its prior on the latents of a finished encoder."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._blocks import check_block, mean_over_batch
from flowkit._checks import check_data, check_mask, check_rows
from flowkit._couplings import Coupling, independent
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import AbstractPrediction, Target, Velocity
from flowkit._losses import (
    Batch,
    check_targets,
    Draw,
    draw_examples,
    Example,
    ExampleError,
    uniform,
    Weighting,
)
from flowkit._types import AnyArray, Cond, PRNGKey, Scalar
from flowkit.latent._divergences import marginal_kl, sampled_kl, standard_normal_kl
from flowkit.latent._priors import prior_keywords, prior_loss
from flowkit.latent._set_flow import draw_latents, SetFlow


def set_flow_loss(
    model: SetFlow,
    points: Float[AnyArray, "batch n d"],
    *,
    key: PRNGKey,
    mask: Bool[AnyArray, "batch n"] | None = None,
    encoder_mask: Bool[AnyArray, "batch n"] | Callable[..., Array] | None = None,
    cond: Cond = None,
    prior_weight: Scalar = 1.0,
    vae_kl_weight: Scalar = 0.0,
    marginal_kl_weight: Scalar = 0.0,
    kl_reduction: Callable[[Array], Array] = jnp.mean,
    kl_samples: int | None = None,
    source: AbstractDistribution = Normal(),
    coupling: Coupling = independent,
    times: Callable = uniform,
    targets: Sequence[AbstractPrediction] | None = None,
    weighting: Weighting | None = None,
    block: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a `SetFlow` on a batch of clouds, and its parts.

    The sum of the flow-matching loss given the latents, the weighted loss of the prior on these latents (of a
    variational model: on their means), which moves the prior and never the encoder, and the weighted divergences.

    **Arguments:**

    - `model`: the model.
    - `points`, `mask`: clouds `(batch, n, d)` and which of their points are valid.
    - `encoder_mask`: `(batch, n)`, which valid points the encoder may see; the flow is trained on all valid ones. Or a
      function `(points, mask, *, key) -> (n,)` that draws it for each cloud, such as `fk.latent.GridMask()`.
    - `cond`: the condition of the prior, such as the classes of the clouds: arrays with leading axis `batch`. A prior
      that takes none is a `ValueError`.
    - `prior_weight`: of the prior's loss. The number 0 leaves it out: the prior is not even evaluated.
    - `vae_kl_weight`: of the divergence of the latents of each cloud, for variational models.
    - `marginal_kl_weight`: of `marginal_kl`, of a variational model that of the means.
    - `kl_reduction`: `jnp.mean` or `jnp.sum` over the entries of the latents of one cloud; always the mean over clouds.
    - `kl_samples`: `None` takes the divergence from a standard normal, `standard_normal_kl`; a number takes that from
      the prior of the model by `sampled_kl` with so many draws, which trains the prior too: give `prior_weight=0`
      unless it shall be trained twice.
    - `source`, `coupling`, `times`, `weighting`, `block`: as in `fk.flow_matching_loss`. With `block` the encoder is
      worked on in the same blocks.
    - `targets`: as there; `None` is `(fk.Velocity(),)`, and for variational models `fk.Target()` as well; for a flow
      with a `fk.MixtureHead` its own prediction.

    Latents that are not there, rows of zeros, count as zeros in divergences and for the prior.

    **Returns:** the loss, and the parts `flow_loss`, `prior_loss`, `vae_kl` and `marginal_kl`, those that apply.
    """
    check_data("points", points, mask)
    if not callable(encoder_mask):
        check_mask("encoder_mask", _both(mask, encoder_mask))
    _check_cond(model, cond, points)
    if not (_is_zero(vae_kl_weight) or model.variational):
        raise ValueError("`vae_kl_weight` needs a model with `variational=True`.")
    if kl_samples is not None and _is_zero(vae_kl_weight):
        raise ValueError(
            f"`kl_samples` is {kl_samples}, but `vae_kl_weight` is 0: give a weight, or leave it out."
        )
    if targets is None:
        targets = _default_targets(model)
    check_targets(model.flow, targets, weighting)
    # As arrays, so that a warm-up of the weights recompiles nothing; only the number 0 leaves a term out.
    prior_weight, vae_kl_weight, marginal_kl_weight = (
        0 if _is_zero(weight) else jnp.asarray(weight, points.dtype)
        for weight in (prior_weight, vae_kl_weight, marginal_kl_weight)
    )
    error = _CloudError(
        ExampleError(tuple(targets), weighting), vae_kl_weight, kl_reduction, kl_samples
    )
    weights = prior_weight, marginal_kl_weight
    return _loss(
        model,
        points,
        key,
        mask,
        encoder_mask,
        cond,
        weights,
        source,
        coupling,
        times,
        error,
        block,
    )


def set_prior_loss(
    model: SetFlow,
    points: Float[AnyArray, "batch n d"],
    *,
    key: PRNGKey,
    mask: Bool[AnyArray, "batch n"] | None = None,
    cond: Cond = None,
    block: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of the prior of a `SetFlow` alone, on the latents of a batch of clouds: the second of two stages.

    The encoder is in inference mode and gets no gradient, and the flow is not evaluated. Train with
    `trainable=lambda model: model.prior`.

    **Arguments:** as in `set_flow_loss`; `block` is how many clouds are encoded at a time.

    **Returns:** the loss, and the part `prior_loss`, which is the same.
    """
    check_data("points", points, mask)
    check_block(block, points.shape[0])
    _check_cond(model, cond, points)
    loss = _prior_loss(model, points, key, mask, cond, block)
    return loss, {"prior_loss": loss}


def _default_targets(model: SetFlow) -> tuple[AbstractPrediction, ...]:
    if not model.flow.head.squared:
        return (model.flow.prediction,)
    return (Velocity(), Target()) if model.variational else (Velocity(),)


def _check_cond(model: SetFlow, cond: Cond, points: Any) -> None:
    prior_keywords(model.prior, cond)
    check_rows("cond", cond, points.shape[0], "cloud of `points`")


def _both(mask: Any, other: Any) -> Any:
    return mask if other is None else other if mask is None else other & mask


def _is_zero(weight: Scalar) -> bool:
    return isinstance(weight, int | float) and weight == 0


class _CloudError(eqx.Module):
    """The error of one cloud, encoder included, with the latents and the parts beside it."""

    flow_error: ExampleError
    vae_kl_weight: Scalar
    kl_reduction: Callable[[Array], Array]
    kl_samples: int | None

    def __call__(
        self, model: SetFlow, example: Example
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        cond = example.cond
        mean, log_variance = model.posterior(
            cond["points"], cond["mask"], key=cond["key"]
        )
        zkey, kkey = jr.split(cond["latent_key"])
        latents = (
            mean if log_variance is None else draw_latents(mean, log_variance, key=zkey)
        )
        flow_loss, _ = self.flow_error(model.flow, example._replace(cond=latents))
        # The condition comes back with the latents, since a coupling may have permuted both.
        aux = {"latents": (mean, cond["prior"]), "flow_loss": flow_loss}
        if log_variance is None:
            return flow_loss, aux
        kl = self._kl(mean, log_variance, model.prior, cond["prior"], kkey)
        return flow_loss + self.vae_kl_weight * kl, aux | {"vae_kl": kl}

    def _kl(self, mean, log_variance, prior, cond, key) -> Float[Array, ""]:
        if self.kl_samples is None:
            return standard_normal_kl(mean, log_variance, self.kl_reduction)
        options = {"num_samples": self.kl_samples, "reduction": self.kl_reduction}
        return sampled_kl(mean, log_variance, prior, cond, key=key, **options)


@eqx.filter_jit
def _loss(
    model,
    points,
    key,
    mask,
    encoder_mask,
    prior_cond,
    weights,
    source,
    coupling,
    times,
    error,
    block,
):
    prior_weight, marginal_kl_weight = weights
    fkey, ekey, zkey, pkey, mkey = jr.split(key, 5)
    num = points.shape[0]
    if callable(encoder_mask):
        see = lambda points, mask, key: encoder_mask(points, mask, key=key)
        encoder_mask = jax.vmap(see)(jnp.asarray(points), mask, jr.split(mkey, num))
    # The points as the encoder sees them travel with the flow's draws, so that a coupling permutes both alike.
    cond = {
        "points": jnp.asarray(points),
        "mask": _both(mask, encoder_mask),
        "key": jr.split(ekey, num),
        "latent_key": jr.split(zkey, num),
        "prior": jax.tree.map(jnp.asarray, prior_cond),
    }
    batch = Batch(points, cond, mask)
    draw = Draw(source, coupling, times)
    examples = draw_examples(model.flow, batch, draw, fkey)
    loss, aux = mean_over_batch(error, model, examples, block=block)
    latents, prior_cond = aux.pop("latents")
    metrics = {name: jnp.mean(value) for name, value in aux.items()}
    if not _is_zero(prior_weight):
        metrics["prior_loss"] = prior_loss(model.prior, latents, prior_cond, key=pkey)
        loss = loss + prior_weight * metrics["prior_loss"]
    if not _is_zero(marginal_kl_weight):
        encode = jax.checkpoint(
            lambda cloud: model.posterior(
                cloud["points"], cloud["mask"], key=cloud["key"]
            )[0]
        )
        latents = jax.lax.map(encode, cond, batch_size=block or num)
        metrics["marginal_kl"] = marginal_kl(latents)
        loss = loss + marginal_kl_weight * metrics["marginal_kl"]
    return loss, metrics


@eqx.filter_jit
def _prior_loss(model, points, key, mask, cond, block):
    encoder = eqx.nn.inference_mode(model)
    clouds = jnp.asarray(points), mask
    latents = jax.lax.map(
        lambda cloud: encoder.posterior(*cloud)[0],
        clouds,
        batch_size=block or points.shape[0],
    )
    return prior_loss(model.prior, latents, cond, key=key)
