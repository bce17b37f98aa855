"""Priors over latents `(k, c)`: any distribution over the rows, or a flow over all of them together.

A prior is conditional if its `sample` and `log_prob` take a `cond`, such as the class of a cloud.
"""

import math
import operator
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._distributions import AbstractDistribution, GaussianMixture, Normal
from flowkit._flow import Flow
from flowkit._losses import flow_matching_loss
from flowkit._masks import has_parameter
from flowkit._solve import DEFAULT_ADJOINT, DEFAULT_SOLVER, log_prob, resolve, sample
from flowkit._types import AnyArray, Cond, FloatArray, PRNGKey


class FlowPrior(AbstractDistribution):
    r"""A flow over latents, trained by flow matching on the latents of an encoder.

    It works in standardised coordinates, $(z - m) / s$ with $m$ and $s$ of shape `(c,)`, which are trained beside it
    to be the moments of the latents: their scale drifts while the encoder learns, and a flow from a standard normal
    works best where its data are of that size.

    **Arguments:**

    - `flow`: a `fk.Flow` over arrays `(k, c)`. A network that takes a condition makes the prior conditional; one that
      is equivariant under permutations of the `k` rows makes it blind to their order, as sets of slots need it, which
      a `fk.nn.MLP` over all entries is not.
    - `size`: `c`.
    - `solver`, `num_steps`, `stepsize_controller`, `max_steps`, `adjoint`, `throw`: for sampling
      and densities, as in `fk.sample`.
    """

    flow: Flow
    mean: Float[Array, " c"]
    log_std: Float[Array, " c"]
    solver: dfx.AbstractSolver
    stepsize_controller: dfx.AbstractStepSizeController | None
    adjoint: dfx.AbstractAdjoint
    num_steps: int | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    throw: bool = eqx.field(static=True)

    def __init__(
        self,
        flow: Flow,
        size: int,
        *,
        solver: dfx.AbstractSolver = DEFAULT_SOLVER,
        num_steps: int | None = None,
        stepsize_controller: dfx.AbstractStepSizeController | None = None,
        max_steps: int = 4096,
        adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
        throw: bool = True,
    ):
        self.flow = flow
        self.mean = jnp.zeros(size)
        self.log_std = jnp.zeros(size)
        self.solver = solver
        self.stepsize_controller = stepsize_controller
        self.adjoint = adjoint
        self.num_steps = None if num_steps is None else operator.index(num_steps)
        self.max_steps = operator.index(max_steps)
        self.throw = throw
        # Misuse is reported here, not at the first sample.
        resolve(solver, num_steps, stepsize_controller, max_steps, adjoint, throw)

    def _options(self) -> dict[str, Any]:
        return {
            "solver": self.solver,
            "num_steps": self.num_steps,
            "stepsize_controller": self.stepsize_controller,
            "max_steps": self.max_steps,
            "adjoint": self.adjoint,
            "throw": self.throw,
        }

    def sample(
        self, shape: tuple[int, ...], *, key: PRNGKey, cond: Cond = None
    ) -> Float[Array, "..."]:
        """Latents `(..., k, c)`, the leading axes independent, and those of the arrays in `cond` too."""
        rows, event = shape[:-2], shape[-2:]
        samples = sample(
            self.flow,
            event,
            num_samples=math.prod(rows),
            key=key,
            cond=_joined(cond, rows),
            **self._options(),
        )
        return self.mean + jnp.exp(self.log_std) * jnp.reshape(samples.values, shape)

    def log_prob(self, x: FloatArray, cond: Cond = None) -> Float[Array, ""]:
        """Log-density of latents `(..., k, c)` in nats, by the exact trace, summed over the leading axes.

        The arrays in `cond` have the same leading axes.
        """
        z = (jnp.asarray(x) - self.mean) / jnp.exp(self.log_std)
        one = lambda z, cond: log_prob(self.flow, z, cond, **self._options())
        rows = jnp.reshape(z, (-1, *z.shape[-2:]))
        values = jax.vmap(one)(rows, _joined(cond, z.shape[:-2]))
        return jnp.sum(values) - rows.shape[0] * rows.shape[1] * jnp.sum(self.log_std)


def mixture_prior(num_components: int, size: int, *, key: PRNGKey) -> GaussianMixture:
    """A `fk.GaussianMixture` over latents `(k, size)` to be trained: equal weights, unit covariances, random means.

    The means are standard normal. Its rows are independent, so it is blind to the order of `k` latents.
    """
    if num_components < 1 or size < 1:
        raise ValueError(
            f"`num_components` and `size` must be at least 1, got {num_components} and {size}."
        )
    return GaussianMixture(jr.normal(key, (num_components, size)))


def prior_loss(
    prior: AbstractDistribution,
    latents: Float[AnyArray, "batch k c"],
    cond: Cond = None,
    *,
    key: PRNGKey,
) -> Float[Array, ""]:
    r"""What trains a prior on given latents; no gradient reaches them.

    For a `FlowPrior` the flow-matching loss of its own prediction, in its standardised coordinates, plus the negative
    log-likelihood of $\mathcal N(m, s^2)$ which trains these; for any other distribution $-\log p(z)$. The means over
    the batch and, but for the flow itself, the entries.

    **Arguments:**

    - `prior`: the prior.
    - `latents`: `(batch, k, c)`.
    - `cond`: the condition of the prior, arrays with leading axis `batch`. A prior that takes none is a `ValueError`.
    - `key`: for the times and the noise of the flow.
    """
    latents = jax.lax.stop_gradient(jnp.asarray(latents))
    if not isinstance(prior, FlowPrior):
        return -prior.log_prob(latents, **prior_keywords(prior, cond)) / latents.size
    mean, std = prior.mean, jnp.exp(prior.log_std)
    moments = -Normal(mean, std).log_prob(latents) / latents.size
    standardised = jax.lax.stop_gradient((latents - mean) / std)
    targets = (prior.flow.prediction,)
    return (
        flow_matching_loss(prior.flow, standardised, cond, targets=targets, key=key)
        + moments
    )


def prior_keywords(prior: AbstractDistribution, cond: Cond) -> dict[str, Any]:
    """What hands a condition to a prior; raises if it takes none."""
    if cond is None:
        return {}
    if not has_parameter(prior.sample, "cond") or not has_parameter(
        prior.log_prob, "cond"
    ):
        raise ValueError(
            f"`cond` was given, but the prior, a {type(prior).__name__}, does not take one; use a "
            "`fk.latent.FlowPrior` whose network has a condition, or leave `cond` out."
        )
    return {"cond": cond}


def _joined(cond: Cond, rows: tuple[int, ...]) -> Cond:
    """The arrays of `cond`, with the axes that they share with the latents joined into one."""

    def join(leaf):
        if not eqx.is_array(leaf) or leaf.shape[: len(rows)] != rows:
            raise ValueError(
                f"`cond` must hold arrays with the leading axes {rows} of the latents, got {leaf!r}."
            )
        return jnp.reshape(leaf, (-1, *leaf.shape[len(rows) :]))

    return jax.tree.map(join, cond)
