"""Models with a latent: an encoder, a flow conditioned on the latents, and a prior over them."""

from flowkit.latent._divergences import marginal_kl as marginal_kl, standard_normal_kl as standard_normal_kl
from flowkit.latent._priors import FlowPrior as FlowPrior, prior_loss as prior_loss
from flowkit.latent._set_flow import set_flow_loss as set_flow_loss, SetFlow as SetFlow
