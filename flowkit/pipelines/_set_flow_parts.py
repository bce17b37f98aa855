"""The parts of a `SetFlow` by name: encoders, poolings, conditioners, backbones, priors."""

from typing import Any

import jax
import jax.random as jr

import flowkit as fk
from flowkit import latent, nn


_POINT_COND_SIZE = (
    64  # of the condition of each point; other conditions are for all points
)
_MIXTURE_SIZE = 16  # components of a Gaussian mixture as prior


def build_set_flow(config: Any, *, key: jax.Array) -> latent.SetFlow:
    """The model that a `SetFlowConfig` describes."""
    encoder_key, flow_key, prior_key = jr.split(key, 3)
    paths = {"linear": fk.LinearPath(), "cosine": fk.CosinePath()}
    predictions = {
        "velocity": fk.Velocity(),
        "noise": fk.Noise(),
        "target": fk.Target(),
    }

    flow = fk.Flow(
        _backbone(config, key=flow_key),
        paths[config.path],
        predictions[config.prediction],
        head=_head(config),
    )
    return latent.SetFlow(
        _encoder(config, key=encoder_key),
        flow,
        _prior(config, key=prior_key),
        variational=config.variational,
        normalize=config.normalize,
    )


def is_global(config: Any) -> bool:
    """Whether a cloud has one latent."""
    return config.encoder == "point-net" or config.pooling != "none"


def is_local(config: Any) -> bool:
    """Whether each point has a latent of its own."""
    return config.encoder in ("set-transformer", "dgcnn") and config.pooling == "none"


def _head(config: Any) -> fk.AbstractHead:
    if config.num_components == 1:
        return fk.PointHead()
    return fk.MixtureHead(config.num_components)


def _features(config: Any) -> nn.AbstractFeatures | None:
    return nn.SinusoidalFeatures(nn.banded()) if config.features else None


def _encoder(config: Any, *, key: jax.Array) -> nn.AbstractEncoder:
    # Split even if nothing is pooled, so that a key gives the encoder the same weights.
    encoder_key, pooling_key = jr.split(key)
    in_size = config.in_size
    # A variational encoder returns a mean and a log-variance for every entry.
    out_size = config.latent_size * (2 if config.variational else 1)
    number = config.num_latents
    options: dict[str, Any] = {"features": _features(config), "key": encoder_key}

    match config.encoder:
        case "point-net":
            sizes = config.encoder_sizes
            encoder = nn.PointNet(in_size, out_size, hidden_sizes=sizes, **options)
        case "set-transformer":
            encoder = nn.SetTransformer(in_size, out_size, **options)
        case "dgcnn":
            encoder = nn.DGCNN(in_size, out_size, **options)
        case "slot-attention":
            encoder = nn.SlotAttention(
                in_size,
                out_size,
                num_slots=number,
                **options,
            )
        case "cross-attention":
            encoder = nn.CrossAttentionEncoder(
                in_size, out_size, num_latents=number, **options
            )
        case "gmm":
            encoder = nn.Chained(
                nn.GMMFeaturizer(in_size, num_components=number),
                nn.SetTransformer(in_size, out_size, **options),
            )
        case _:
            raise ValueError(f"`encoder` is unknown: {config.encoder!r}.")
    if config.pooling == "none":
        return encoder
    pooling = _pooling(config.pooling, out_size, key=pooling_key)

    return nn.Pooled(encoder, pooling, out_size=out_size, key=pooling_key)


def _pooling(name: str, size: int, *, key: jax.Array) -> Any:
    match name:
        case "max":
            return nn.max_pool
        case "mean":
            return nn.mean_pool
        case "max-mean":
            return nn.max_mean_pool
        case "attention":
            return nn.AttentionPool(size, key=key)
        case "pma":
            return nn.PMA(size, key=key)
        case "set2set":
            return nn.Set2Set(size, key=key)
    raise ValueError(f"`pooling` is unknown: {name!r}.")


def _backbone(config: Any, *, key: jax.Array) -> nn.AbstractCRN:
    backbone_key, conditioner_key = jr.split(key)
    sizes = (config.in_size, config.latent_size)
    options: dict[str, Any] = {
        "width_size": config.width_size,
        "depth": config.depth,
        "features": _features(config),
        "key": backbone_key,
    }
    head = _head(config)
    if isinstance(head, fk.MixtureHead):
        options["out_size"] = head.out_size(config.in_size)
    if config.backbone == "concat-squash":
        conditioner = _conditioner(config, key=conditioner_key)
        return nn.ConcatSquashMLP(*sizes, conditioner=conditioner, **options)

    # Only from here on: concat-squash takes the time as it is.
    options["time_embedding"] = nn.SinusoidalTime(32, scale=config.time_scale)
    if config.backbone == "cross-attention":
        # One latent makes one token, to which attending would say little.
        num_tokens = 32 if is_global(config) else 1
        return nn.CrossAttentionCRN(*sizes, num_tokens=num_tokens, **options)

    if _conditioner_name(config) in ("per-point", "select"):
        options["cond_size"] = _POINT_COND_SIZE
    options["conditioner"] = _conditioner(config, key=conditioner_key)
    if config.backbone == "dit":
        return nn.DiT(*sizes, **options)
    return nn.AdaLNMLP(*sizes, **options)


def _conditioner_name(config: Any) -> str:
    """The one that was asked for, or the one that suits the number of latents."""
    if config.conditioner != "auto":
        return config.conditioner
    if is_global(config):
        return "broadcast"
    return "per-point" if is_local(config) else "pool"


def _conditioner(config: Any, *, key: jax.Array) -> Any:
    match _conditioner_name(config):
        case "broadcast":
            return nn.Broadcast()
        case "per-point":
            return nn.PerPoint()
        case "pool":
            return nn.Pool()

    return nn.Select(
        config.in_size,
        config.latent_size,
        time_embedding=nn.SinusoidalTime(32, scale=config.time_scale),
        key=key,
    )


def _prior(config: Any, *, key: jax.Array) -> fk.AbstractDistribution:
    size = config.latent_size
    if config.prior == "normal" or is_local(config):
        return fk.Normal()
    if config.prior == "mixture":
        return latent.mixture_prior(_MIXTURE_SIZE, size, key=key)

    # Attention lets several latents see each other, and is blind to their order.
    kind = nn.AdaLNMLP if is_global(config) else nn.DiT
    network = kind(
        size,
        config.num_classes,
        width_size=config.prior_width,
        depth=config.prior_depth,
        time_embedding=nn.SinusoidalTime(128, scale=config.time_scale),
        key=key,
    )

    return latent.FlowPrior(fk.Flow(network), size)
