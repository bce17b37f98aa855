"""Models with latents: an encoder, a flow given the latents, and a prior; autoencoders."""

from flowkit._namespace import public_names as _public_names
from flowkit.latent._autoencoders import (
    Autoencoder as Autoencoder,
    autoencoder_loss as autoencoder_loss,
    Decoder as Decoder,
    decoder_loss as decoder_loss,
    VAE as VAE,
    vae_loss as vae_loss,
)
from flowkit.latent._divergences import (
    marginal_kl as marginal_kl,
    sampled_kl as sampled_kl,
    standard_normal_kl as standard_normal_kl,
)
from flowkit.latent._encode import encode_sets as encode_sets
from flowkit.latent._grid_mask import grid_mask as grid_mask, GridMask as GridMask
from flowkit.latent._priors import (
    FlowPrior as FlowPrior,
    mixture_prior as mixture_prior,
    prior_loss as prior_loss,
)
from flowkit.latent._set_flow import SetFlow as SetFlow
from flowkit.latent._set_losses import (
    set_flow_loss as set_flow_loss,
    set_prior_loss as set_prior_loss,
)


__dir__ = _public_names(globals())
