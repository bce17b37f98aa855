r"""Log-probabilities by the instantaneous change of variables.

Along the ODE, $\frac{d}{dt} \log p_t(x_t) = -\nabla \cdot v(t, x_t)$. Running it backwards from the data together
with $\dot\ell = \nabla \cdot v$ from $\ell(1) = 0$ gives $\log p_1(x_1) = \log p_0(x_0) + \ell(0)$.

**Reference:** Chen et al., Neural Ordinary Differential Equations (2018), arXiv 1806.07366; Grathwohl et al., FFJORD
(2019), arXiv 1810.01367; Hutchinson, A stochastic estimator of the trace (1990).
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_example, check_sampling
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._masks import zero_masked
from flowkit._solve.ode import end_of, end_state, jump_to_data, MaskedVelocity, solve
from flowkit._solve.options import DEFAULT_CONTROLLER, DEFAULT_SOLVER, solver_options
from flowkit._types import (
    AnyArray,
    Cond,
    FloatArray,
    Mask,
    PRNGKey,
    Scalar,
    VelocityField,
)


def log_prob(
    flow: VelocityField,
    x1: FloatArray,
    cond: Cond = None,
    *,
    key: PRNGKey | None = None,
    num_probes: int | None = None,
    source: AbstractDistribution = Normal(),
    mask: Mask | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController = DEFAULT_CONTROLLER,
    max_steps: int = 4096,
) -> Float[Array, ""]:
    r"""The log-density in nats that the flow gives to one example.

    Exact trace without a key, $d$ derivatives per evaluation; with a key Hutchinson's estimate
    $\nabla \cdot v \approx \mathrm{mean}_k\, \epsilon_k^\top J \epsilon_k$ with random signs $\epsilon_k$ that stay
    fixed along the trajectory, one derivative per probe: unbiased for the integral.

    For a point cloud this is the joint density of its points, over all valid entries. Vectorise with `jax.vmap`: each
    example keeps its own step sizes, so its value does not depend on its neighbours.

    **Arguments:**

    - `flow`: a `fk.Flow` or any velocity field. A flow whose velocity ends before `t = 1` (see `fk.Flow`) gives the
      density at its last time.
    - `x1`: one example.
    - `cond`: handed to the velocity.
    - `key`: for the probes; `None` for the exact trace.
    - `num_probes`: how many probes, 1 if `None`.
    - `source`: the law of the noise, the one of training.
    - `mask`: `(n,)`, the valid points.
    - `solver`, `num_steps`, `stepsize_controller`, `max_steps`: as in `fk.integrate`.
    """
    options = solver_options(solver, num_steps, stepsize_controller, max_steps)
    if num_probes is not None and (num_probes < 1 or key is None):
        raise ValueError(
            f"`num_probes` must be at least 1, and needs a `key`; got {num_probes} and {key}."
        )
    _check_source(source, mask)
    x1 = jnp.asarray(x1)
    check_example("x1", x1, mask)
    return _log_prob(flow, x1, cond, key, num_probes or 1, source, mask, options)


def sample_and_log_prob(
    flow: VelocityField,
    shape: tuple[int, ...],
    *,
    num_samples: int,
    key: PRNGKey,
    num_probes: int | None = None,
    cond: Cond = None,
    cond_axes: int | None = 0,
    source: AbstractDistribution = Normal(),
    mask: Bool[AnyArray, "batch n"] | None = None,
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController = DEFAULT_CONTROLLER,
    max_steps: int = 4096,
) -> tuple[Float[Array, "batch ..."], Float[Array, " batch"]]:
    """Samples with their log-densities in nats, from one solve.

    A flow whose velocity ends before `t = 1` (see `fk.Flow`) finishes with the jump to the data; the density is the one
    before the jump.

    Arguments as in `fk.sample`, and `num_probes`: Hutchinson probes per sample; `None` for the exact trace.

    **Returns:** values `(num_samples, *shape)` and log-densities `(num_samples,)`.
    """
    options = solver_options(solver, num_steps, stepsize_controller, max_steps)
    check_sampling(shape, num_samples, cond, cond_axes, mask)
    _check_source(source, mask)
    if num_probes is not None and num_probes < 1:
        raise ValueError(
            f"`num_probes` must be at least 1, or None for the exact trace, got {num_probes}."
        )
    return _sample_and_log_prob(
        flow,
        shape,
        num_samples,
        key,
        num_probes,
        cond,
        cond_axes,
        source,
        mask,
        options,
    )


class _WithDivergence(eqx.Module):
    """The velocity of `(x, l)`, where `l` integrates the divergence; exact if there are no probes."""

    velocity: VelocityField
    probes: Float[Array, "probes ..."] | None

    def __call__(
        self, t: Scalar, state: tuple[Array, Array], cond: Cond = None
    ) -> tuple[Array, Array]:
        x, _ = state
        v, derivative = jax.linearize(lambda x: self.velocity(t, x, cond), x)
        probes = _basis(x) if self.probes is None else self.probes
        terms = jax.vmap(lambda probe: jnp.vdot(probe, derivative(probe)))(probes)
        return v, jnp.sum(terms) if self.probes is None else jnp.mean(terms)


def _basis(x: Array) -> Float[Array, "size ..."]:
    return jnp.reshape(jnp.eye(x.size, dtype=x.dtype), (x.size, *x.shape))


def _with_divergence(
    flow: VelocityField, x: Array, mask, key, num_probes
) -> _WithDivergence:
    velocity = flow if mask is None else MaskedVelocity(flow, mask)
    probes = (
        None if key is None else jr.rademacher(key, (num_probes, *x.shape), x.dtype)
    )
    return _WithDivergence(velocity, probes)


def _check_source(source: AbstractDistribution, mask: Any) -> None:
    if (
        mask is not None
        and isinstance(source, Normal)
        and max(jnp.ndim(source.mean), jnp.ndim(source.std)) > 1
    ):
        raise ValueError(
            "`source` must be the same for all points if there is a `mask`: `mean` and `std` () or (d,)."
        )


def _source_log_prob(
    source: AbstractDistribution, x: Array, mask: Array | None
) -> Float[Array, ""]:
    if mask is None:
        return source.log_prob(x)
    return jnp.sum(jnp.where(mask, jax.vmap(source.log_prob)(x), 0))


@eqx.filter_jit
def _log_prob(flow, x1, cond, key, num_probes, source, mask, options):
    velocity = _with_divergence(flow, x1, mask, key, num_probes)
    x1 = x1 if mask is None else zero_masked(x1, mask)
    t0, t1 = jnp.asarray(end_of(flow), x1.dtype), jnp.zeros((), x1.dtype)
    start = x1, jnp.zeros((), x1.dtype)
    solution = solve(velocity, start, cond, t0, t1, options)
    x0, change = end_state(solution)
    return _source_log_prob(source, x0, mask) + change


@eqx.filter_jit
def _sample_and_log_prob(
    flow, shape, num_samples, key, num_probes, cond, cond_axes, source, mask, options
):
    flow = eqx.nn.inference_mode(flow)
    skey, pkey = jr.split(key)
    x0 = source.sample((num_samples, *shape), key=skey)
    keys = None if num_probes is None else jr.split(pkey, num_samples)

    def one(x0, cond, mask, key):
        velocity = _with_divergence(flow, x0, mask, key, num_probes)
        x0 = x0 if mask is None else zero_masked(x0, mask)
        t0, t1 = jnp.zeros((), x0.dtype), jnp.asarray(end_of(flow), x0.dtype)
        start = x0, jnp.zeros((), x0.dtype)
        solution = solve(velocity, start, cond, t0, t1, options)
        x1, change = end_state(solution)
        return jump_to_data(flow, x1, cond, mask), _source_log_prob(
            source, x0, mask
        ) - change

    return eqx.filter_vmap(one, in_axes=(0, cond_axes, 0, 0))(x0, cond, mask, keys)
