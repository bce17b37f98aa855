"""Priors over latents `(k, c)`: any distribution over the rows, or a flow over all of them together."""

import math

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import Flow
from flowkit._integrate import DEFAULT_CONTROLLER, DEFAULT_SOLVER
from flowkit._likelihood import log_prob
from flowkit._losses import flow_matching_loss
from flowkit._sampling import sample
from flowkit._types import AnyArray, FloatArray, PRNGKey


class FlowPrior(AbstractDistribution):
    r"""A flow over latents, trained by flow matching on the latents of an encoder.

    It works in standardised coordinates, $(z - m) / s$ with $m$ and $s$ of shape `(c,)`, which are trained beside it
    to be the moments of the latents: their scale drifts while the encoder learns, and a flow from a standard normal
    works best where its data are of that size.

    **Arguments:**

    - `flow`: a `fk.Flow` over arrays `(k, c)`.
    - `size`: `c`.
    - `solver`, `stepsize_controller`: for sampling and densities.
    """

    flow: Flow
    mean: Float[Array, " c"]
    log_std: Float[Array, " c"]
    solver: dfx.AbstractSolver
    stepsize_controller: dfx.AbstractStepSizeController

    def __init__(
        self,
        flow: Flow,
        size: int,
        *,
        solver: dfx.AbstractSolver = DEFAULT_SOLVER,
        stepsize_controller: dfx.AbstractStepSizeController = DEFAULT_CONTROLLER,
    ):
        self.flow = flow
        self.mean = jnp.zeros(size)
        self.log_std = jnp.zeros(size)
        self.solver = solver
        self.stepsize_controller = stepsize_controller

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> Float[Array, "..."]:
        """Latents `(..., k, c)`, the leading axes independent."""
        rows, event = shape[:-2], shape[-2:]
        samples = sample(
            self.flow,
            event,
            num_samples=math.prod(rows),
            key=key,
            solver=self.solver,
            stepsize_controller=self.stepsize_controller,
        )
        return self.mean + jnp.exp(self.log_std) * jnp.reshape(samples.values, shape)

    def log_prob(self, x: FloatArray) -> Float[Array, ""]:
        """Log-density of latents `(..., k, c)` in nats, by the exact trace, summed over the leading axes."""
        z = (jnp.asarray(x) - self.mean) / jnp.exp(self.log_std)
        rows = jnp.reshape(z, (-1, *z.shape[-2:]))
        one = lambda z: log_prob(self.flow, z, solver=self.solver, stepsize_controller=self.stepsize_controller)
        return jnp.sum(jax.vmap(one)(rows)) - rows.shape[0] * rows.shape[1] * jnp.sum(self.log_std)


def prior_loss(prior: AbstractDistribution, latents: Float[AnyArray, "batch k c"], *, key: PRNGKey) -> Float[Array, ""]:
    r"""What trains a prior on given latents; no gradient reaches them.

    For a `FlowPrior` the flow-matching loss in its standardised coordinates, plus the negative log-likelihood of
    $\mathcal N(m, s^2)$ which trains these; for any other distribution $-\log p(z)$. The means over the batch and, but
    for the flow itself, the entries.
    """
    latents = jax.lax.stop_gradient(jnp.asarray(latents))
    if not isinstance(prior, FlowPrior):
        return -prior.log_prob(latents) / latents.size
    mean, std = prior.mean, jnp.exp(prior.log_std)
    moments = -Normal(mean, std).log_prob(latents) / latents.size
    standardised = jax.lax.stop_gradient((latents - mean) / std)
    return flow_matching_loss(prior.flow, standardised, key=key) + moments
