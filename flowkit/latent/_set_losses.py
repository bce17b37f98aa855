"""The losses of a `SetFlow`: of all of it, or of its prior on the latents of the encoder."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._blocks import (
    AutomaticBlock,
    Block,
    check_block,
    map_over_batch,
    mean_over_batch,
)
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
    block: Block = AutomaticBlock(),
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a `SetFlow` on a batch of clouds, and its parts.

    It is the sum of the flow-matching loss given the latents, the weighted loss of the prior
    on these latents, and the weighted divergences. The prior's loss moves the prior and never
    the encoder; in a variational model it sees the means of the latents.

    **Arguments:**

    - `model`: the model.
    - `points`, `mask`: clouds `(batch, n, d)` and which of their points are valid.
    - `encoder_mask`: `(batch, n)`, which valid points the encoder may see; the flow is
      trained on all valid ones. Or a function `(points, mask, *, key) -> (n,)` that draws
      it for each cloud, such as `fk.latent.GridMask()`.
    - `cond`: the condition of the prior, such as the classes of the clouds: arrays with
      leading axis `batch`. A prior that takes none is a `ValueError`.
    - `prior_weight`: the weight of the prior's loss. The number 0 leaves it out: the prior
      is not even evaluated.
    - `vae_kl_weight`: the weight of the divergence of the latents of each cloud, for
      variational models.
    - `marginal_kl_weight`: the weight of `marginal_kl` of the latents; in a variational
      model, of their means.
    - `kl_reduction`: `jnp.mean` or `jnp.sum` over the entries of the latents of one cloud;
      over clouds it is always the mean.
    - `kl_samples`: `None` takes the divergence from a standard normal,
      `standard_normal_kl`. A number takes the divergence from the prior of the model, by
      `sampled_kl` with that many draws. This trains the prior, too, so give
      `prior_weight=0` unless you want to train it twice.
    - `source`, `coupling`, `times`, `weighting`, `block`: as in `fk.flow_matching_loss`. The
      encoder is computed in the same blocks.
    - `targets`: as there. By default `(fk.Velocity(),)`, for variational models with
      `fk.Target()` as well, and for a flow with a `fk.MixtureHead` its own prediction.

    Rows of zeros, which mean that there is no latent, count as zeros in divergences and for
    the prior.

    **Returns:** the loss, and the parts `flow_loss`, `prior_loss`, `vae_kl` and
    `marginal_kl`, those that apply.
    """
    check_data("points", points, mask)
    if not callable(encoder_mask):
        check_mask("encoder_mask", _both(mask, encoder_mask))
    _check_cond(model, cond, points)
    _check_divergence(model, vae_kl_weight, kl_samples)
    if targets is None:
        targets = _default_targets(model)
    check_targets(model.flow, targets, weighting)

    points = jnp.asarray(points)
    dtype = points.dtype
    error = _CloudError(
        flow_error=ExampleError(tuple(targets), weighting),
        vae_kl_weight=_traced_weight(vae_kl_weight, dtype),
        kl_reduction=kl_reduction,
        kl_samples=kl_samples,
    )
    terms = _Terms(
        error=error,
        prior_weight=_traced_weight(prior_weight, dtype),
        marginal_kl_weight=_traced_weight(marginal_kl_weight, dtype),
        encoder_mask=encoder_mask,
    )
    draw = Draw(source, coupling, times)
    return _loss(model, Batch(points, cond, mask), draw, terms, key, block=block)


def set_prior_loss(
    model: SetFlow,
    points: Float[AnyArray, "batch n d"],
    *,
    key: PRNGKey,
    mask: Bool[AnyArray, "batch n"] | None = None,
    cond: Cond = None,
    block: Block = AutomaticBlock(),
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of the prior of a `SetFlow` alone: the second of two stages.

    It is computed on the latents of a batch of clouds. The encoder is in inference mode and
    gets no gradient, and the flow is not evaluated. Train with
    `trainable=lambda model: model.prior`.

    **Arguments:** as in `set_flow_loss`; `block` is the number of clouds that are encoded at
    a time.

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


def _check_divergence(
    model: SetFlow, vae_kl_weight: Scalar, kl_samples: int | None
) -> None:
    if not (_is_zero(vae_kl_weight) or model.variational):
        raise ValueError("`vae_kl_weight` needs a model with `variational=True`.")
    if kl_samples is not None and _is_zero(vae_kl_weight):
        raise ValueError(
            f"`kl_samples` is {kl_samples}, but `vae_kl_weight` is 0: give a weight, or "
            "leave it out."
        )


def _both(mask: Any, other: Any) -> Any:
    """The points that both masks allow; `None` allows all."""
    if mask is None:
        return other
    if other is None:
        return mask
    return other & mask


def _is_zero(weight: Scalar) -> bool:
    """Whether a weight is the number 0, which leaves its term out of the program."""
    return isinstance(weight, int | float) and weight == 0


def _traced_weight(weight: Scalar, dtype: Any) -> Scalar:
    # As an array, so that a warm-up of the weight recompiles nothing.
    return 0 if _is_zero(weight) else jnp.asarray(weight, dtype)


class _Encoding(NamedTuple):
    """How each cloud is encoded."""

    points: Array
    mask: Array | None
    key: Array
    latent_key: Array

    def posterior(self, model: SetFlow) -> tuple[Array, Array | None]:
        return model.posterior(self.points, self.mask, key=self.key)


class _CloudError(eqx.Module):
    """The error of one cloud, encoder included, with its latents and the parts of the loss.

    `example.extra` says how the cloud is encoded, and `example.cond` is the condition of the
    prior.
    """

    flow_error: ExampleError
    vae_kl_weight: Scalar
    kl_reduction: Callable[[Array], Array]
    kl_samples: int | None

    def __call__(
        self, model: SetFlow, example: Example
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        encoding: _Encoding = example.extra
        mean, log_variance = encoding.posterior(model)
        zkey, kkey = jr.split(encoding.latent_key)

        latents = mean
        if log_variance is not None:
            latents = draw_latents(mean, log_variance, key=zkey)

        flow_loss, _ = self.flow_error(model.flow, example._replace(cond=latents))
        # The condition is returned with the latents, since a coupling may have permuted
        # both.
        aux = {"latents": (mean, example.cond), "flow_loss": flow_loss}
        if log_variance is None:
            return flow_loss, aux

        aux["vae_kl"] = self._kl(model.prior, mean, log_variance, example.cond, kkey)
        return flow_loss + self.vae_kl_weight * aux["vae_kl"], aux

    def _kl(
        self,
        prior: AbstractDistribution,
        mean: Array,
        log_variance: Array,
        cond: Cond,
        key: PRNGKey,
    ) -> Float[Array, ""]:
        if self.kl_samples is None:
            return standard_normal_kl(mean, log_variance, self.kl_reduction)
        return sampled_kl(
            mean,
            log_variance,
            prior,
            cond,
            num_samples=self.kl_samples,
            reduction=self.kl_reduction,
            key=key,
        )


class _Terms(NamedTuple):
    """The terms of the loss, and what the encoder may see."""

    error: _CloudError
    prior_weight: Scalar
    marginal_kl_weight: Scalar
    encoder_mask: Any


@eqx.filter_jit
def _loss(
    model: SetFlow,
    batch: Batch,
    draw: Draw,
    terms: _Terms,
    key: PRNGKey,
    *,
    block: Block,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    fkey, ekey, zkey, pkey, mkey = jr.split(key, 5)
    num = batch.x1.shape[0]
    encoding = _Encoding(
        points=batch.x1,
        mask=_both(batch.mask, _drawn_mask(terms.encoder_mask, batch, mkey)),
        key=jr.split(ekey, num),
        latent_key=jr.split(zkey, num),
    )
    # The encodings travel with the draws of the flow, so that a coupling permutes both alike.
    batch = batch._replace(extra=encoding)
    examples = draw_examples(model.flow, batch, draw, fkey)
    examples = terms.error.flow_error.with_checked_weights(model.flow, examples)

    loss, aux = mean_over_batch(terms.error, model, examples, block=block)
    latents, prior_cond = aux.pop("latents")
    metrics = {name: jnp.mean(value) for name, value in aux.items()}

    if not _is_zero(terms.prior_weight):
        metrics["prior_loss"] = prior_loss(model.prior, latents, prior_cond, key=pkey)
        loss = loss + terms.prior_weight * metrics["prior_loss"]
    if not _is_zero(terms.marginal_kl_weight):
        # All clouds are encoded a second time: no gradient flows through the latents that
        # come out of the blocks, and this divergence is one of the whole batch.
        latents = map_over_batch(_encode, model, encoding, block=block)
        metrics["marginal_kl"] = marginal_kl(latents)
        loss = loss + terms.marginal_kl_weight * metrics["marginal_kl"]

    return loss, metrics


# Encoded again in the backward pass, so that no activations of all clouds are kept.
@eqx.filter_checkpoint
def _encode(model: SetFlow, encoding: _Encoding) -> Array:
    return encoding.posterior(model)[0]


def _drawn_mask(encoder_mask: Any, batch: Batch, key: PRNGKey) -> Any:
    """The mask of the encoder, drawn for each cloud if it is a function."""
    if not callable(encoder_mask):
        return encoder_mask
    keys = jr.split(key, batch.x1.shape[0])
    draw = lambda points, mask, key: encoder_mask(points, mask, key=key)
    return jax.vmap(draw)(batch.x1, batch.mask, keys)


@eqx.filter_jit
def _prior_loss(
    model: SetFlow,
    points: AnyArray,
    key: PRNGKey,
    mask: AnyArray | None,
    cond: Cond,
    block: Block,
) -> Float[Array, ""]:
    # Only to encode: the prior below is that of `model`, which keeps its dropout.
    encoder = eqx.nn.inference_mode(model)
    encode = lambda encoder, cloud: encoder.posterior(*cloud)[0]
    clouds = (jnp.asarray(points), mask)
    latents = map_over_batch(encode, encoder, clouds, block=block)
    return prior_loss(model.prior, latents, cond, key=key)
