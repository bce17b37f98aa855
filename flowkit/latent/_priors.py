"""Priors over latents `(k, c)`: a distribution over the rows, or a flow over all of them.

A prior is conditional if its `sample` and `log_prob` take a `cond`, such as the class of a
cloud.
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

    It works in standardized coordinates, $(z - m) / s$ with $m$ and $s$ of shape `(c,)`,
    which are trained with it to be the moments of the latents. The scale of the latents
    drifts while the encoder learns, and a flow from a standard normal works best where its
    data have unit scale.

    **Arguments:**

    - `flow`: a `fk.Flow` over arrays `(k, c)`. A network that takes a condition makes the
      prior conditional. A network that is equivariant under permutations of the `k` rows
      makes the prior independent of their order, which sets of slots need; a `fk.nn.MLP`
      over all entries is not equivariant.
    - `size`: `c`, the last axis of the latents; any other is a `ValueError`.
    - `solver`, `num_steps`, `stepsize_controller`, `max_steps`, `adjoint`, `throw`: options
      of sampling and densities, as in `fk.sample`.
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
        """Latents `(..., k, c)`, independent along the leading axes.

        The arrays in `cond` have the same leading axes.
        """
        _check_size("shape", shape, self)
        rows = shape[:-2]
        event = shape[-2:]
        samples = sample(
            self.flow,
            event,
            num_samples=math.prod(rows),
            key=key,
            cond=_joined(cond, rows),
            **self._options(),
        )
        # Axes are written out, so that this also runs where JAX refuses to promote
        # ranks.
        values = samples.values * jnp.exp(self.log_std)[None, None]

        return jnp.reshape(values + self.mean[None, None], shape)

    def log_prob(self, x: FloatArray, cond: Cond = None) -> Float[Array, ""]:
        """Log-density of latents `(..., k, c)` in nats, summed over the leading axes.

        The trace is exact. The arrays in `cond` have the same leading axes.
        """
        x = jnp.asarray(x)
        _check_size("x", x.shape, self)
        rows = jnp.reshape(x, (-1, *x.shape[-2:]))
        rows = (rows - self.mean[None, None]) / jnp.exp(self.log_std)[None, None]

        one = lambda z, cond: log_prob(self.flow, z, cond, **self._options())
        values = jax.vmap(one)(rows, _joined(cond, x.shape[:-2]))

        # The change of variables to standardized coordinates, once per row of latents.
        num_rows = rows.shape[0] * rows.shape[1]
        return jnp.sum(values) - num_rows * jnp.sum(self.log_std)


def mixture_prior(num_components: int, size: int, *, key: PRNGKey) -> GaussianMixture:
    """A `fk.GaussianMixture` over latents `(k, size)`, to be trained.

    It starts with equal weights, unit covariances and standard normal means. Its rows are
    independent, so it does not depend on the order of the `k` latents.
    """
    if num_components < 1 or size < 1:
        raise ValueError(
            "`num_components` and `size` must be at least 1, "
            f"got {num_components} and {size}."
        )
    return GaussianMixture(jr.normal(key, (num_components, size)))


def prior_loss(
    prior: AbstractDistribution,
    latents: Float[AnyArray, "batch k c"],
    cond: Cond = None,
    *,
    key: PRNGKey,
) -> Float[Array, ""]:
    r"""The loss of a prior on given latents, which get no gradient.

    For a `FlowPrior` it is the flow-matching loss of its own prediction in standardized
    coordinates, plus the negative log-likelihood of $\mathcal N(m, s^2)$, which trains
    these coordinates. For any other distribution it is $-\log p(z)$. Log-likelihoods are
    divided by the number of entries of the batch.

    **Arguments:**

    - `prior`: the prior.
    - `latents`: `(batch, k, c)`.
    - `cond`: the condition of the prior, arrays with leading axis `batch`. A prior that
      takes none is a `ValueError`.
    - `key`: the key of the times and the noise of the flow.
    """
    latents = jax.lax.stop_gradient(jnp.asarray(latents))
    if not isinstance(prior, FlowPrior):
        return -prior.log_prob(latents, **prior_keywords(prior, cond)) / latents.size

    _check_size("latents", latents.shape, prior)
    std = jnp.exp(prior.log_std)
    moments = -Normal(prior.mean, std).log_prob(latents) / latents.size

    # The flow sees fixed data: its loss must not move the coordinates.
    standardized = (latents - prior.mean[None, None]) / std[None, None]
    standardized = jax.lax.stop_gradient(standardized)
    targets = (prior.flow.prediction,)
    loss = flow_matching_loss(prior.flow, standardized, cond, targets=targets, key=key)
    return loss + moments


def _check_size(name: str, shape: tuple[int, ...], prior: FlowPrior) -> None:
    """Raises for latents of another size than the prior: one of 1 would be broadcast."""
    size = prior.mean.shape[0]
    if len(shape) < 2 or shape[-1] != size:
        raise ValueError(
            f"`{name}` must be (..., k, {size}), as the prior has `size={size}`, got "
            f"{tuple(shape)}; give `FlowPrior` the size of the latents."
        )


def prior_keywords(prior: AbstractDistribution, cond: Cond) -> dict[str, Any]:
    """The keywords that pass a condition to a prior; raises if it takes none."""
    if cond is None:
        return {}
    methods = (prior.sample, prior.log_prob)
    if all(has_parameter(method, "cond") for method in methods):
        return {"cond": cond}
    raise ValueError(
        f"`cond` was given, but the prior, a {type(prior).__name__}, does not take one; use "
        "a `fk.latent.FlowPrior` whose network has a condition, or leave `cond` out."
    )


def _joined(cond: Cond, rows: tuple[int, ...]) -> Cond:
    """The arrays of `cond`, with their leading axes `rows` joined into one."""

    def join(leaf: Any) -> Any:
        if not eqx.is_array(leaf) or leaf.shape[: len(rows)] != rows:
            raise ValueError(
                f"`cond` must hold arrays with the leading axes {rows} of the latents, "
                f"got {leaf!r}."
            )
        return jnp.reshape(leaf, (-1, *leaf.shape[len(rows) :]))

    return jax.tree.map(join, cond)
