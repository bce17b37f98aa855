r"""Couplings of whole examples by entropic plans, balanced and unbalanced.

A plan is a matrix of probabilities $P_{ij}$, with the data as its rows and the source as
its columns.
"""

import math
import operator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from flowkit._couplings.base import check_batches, NO_ASSIGNMENT, Pairing
from flowkit._distances import squared_costs, squared_distances
from flowkit._transport import (
    check_epsilon,
    is_prescribed,
    sinkhorn,
    soft_minima,
)
from flowkit._types import Cond, FloatArray, is_traced, Number, PRNGKey


# A plan with more effective partners than this fraction of the batch is refused.
_DIFFUSE = 0.9

# A known plan with a larger error is refused: noise that is drawn from it has another
# distribution.
_LARGEST_ERROR = 0.1


class Plan(NamedTuple):
    """An entropic plan of a batch."""

    log_probs: Float[Array, "batch batch"]
    """Logarithms of the plan divided by its mass; rows are data, columns the source."""
    mass: Float[Array, ""]
    """The mass of the plan, 1 if both of its marginals are prescribed."""
    num_partners: Float[Array, ""]
    """The effective number of partners of an example: 1 for a permutation, the size of the
    batch if independent."""
    error: Float[Array, ""]
    """The largest relative error of a row's marginal; where it is not prescribed, the
    largest relative change of a row in the last iteration."""
    iterations: Int[Array, ""]


class EntropicCoupling(eqx.Module):
    r"""Entropic optimal transport of the batch, on the device.

    Every datum draws its noise from its row of the plan

    $$\min_P\; \langle P, C \rangle + \epsilon\, \mathrm{KL}(P \,\|\, a b^\top),
    \qquad P 1 = a,\quad P^\top 1 = b$$

    with $C_{ij} = \|x_{1,i} - x_{0,j}\|^2$ and equal weights $a_i = b_j = 1/B$. This lies
    between `fk.assignment` ($\epsilon \to 0$) and `fk.independent` ($\epsilon \to \infty$).

    With $\epsilon = 2 \sigma^2$ in the unit of $C$ the plan is that of a Schroedinger bridge
    of noise $\sigma$ between the two batches:
    `fk.EntropicCoupling(2 * sigma**2, relative=False)`.

    Data keep their order, so labels stay with their examples. A noise example may be drawn
    more than once, or not at all; on average the noise keeps its distribution.

    **Arguments:**

    - `epsilon`: the regularization relative to the spread, which is the mean of $C_{ij}$
      once both batches have mean zero; at least 1e-6, the least that float32 resolves.
    - `max_iterations`: the maximum number of Sinkhorn iterations. The default is too
      low for an `epsilon` of 1e-3 or less: see `plan(x0, x1).error`.
    - `tolerance`: the relative error of a row's marginal at which it stops earlier.
    - `relative`: if `False`, `epsilon` is in the unit of $C$, the same for every batch.

    **Raises:** an error for NaN or infinity in the batch, and for a diffuse plan, whose
    effective number of partners is above nine tenths of the batch, so that it barely differs
    from `fk.independent`. It is a `ValueError` where values are known, and an error at run
    time otherwise. An iteration that ends with errors above 0.1 is a `ValueError`, but only
    where values are known.

    **Reference:** Cuturi, Sinkhorn Distances (2013), arXiv 1306.0895; Pooladian et al.,
    Multisample Flow Matching (2023), arXiv 2304.14772; Tong et al. (2024), arXiv 2302.00482.
    """

    epsilon: float = 0.05
    max_iterations: int = 1000
    tolerance: float = 1e-3
    relative: bool = True

    def __init__(
        self,
        epsilon: Number = 0.05,
        max_iterations: int = 1000,
        tolerance: Number = 1e-3,
        *,
        relative: bool = True,
    ):
        _check_sinkhorn(epsilon, max_iterations, tolerance, relative)
        self.epsilon = float(epsilon)
        self.max_iterations = operator.index(max_iterations)
        self.tolerance = float(tolerance)
        self.relative = bool(relative)

    def plan(self, x0: FloatArray, x1: FloatArray) -> Plan:
        """The plan of a batch, to see how diffuse it is."""
        check_batches(x0, x1)
        return _solve(x0, x1, _options(self, (math.inf, math.inf)))

    def __call__(
        self, x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
    ) -> Pairing:
        del cond
        plan = self.plan(x0, x1)
        _check_convergence(plan, self)
        log_probs = _sharp(plan, "lower `epsilon`")
        return Pairing(source=jr.categorical(key, log_probs, axis=1))


class UnbalancedCoupling(eqx.Module):
    r"""Unbalanced transport of the batch, on the device: outliers lose mass.

    $$\min_P\; \langle P, C \rangle + \epsilon\, \mathrm{KL}(P \,\|\, a b^\top)
      + \rho_1 \mathrm{KL}(P 1 \,\|\, a) + \rho_0 \mathrm{KL}(P^\top 1 \,\|\, b)$$

    with the data as rows. Then $P$ is divided by its mass. With $\nu = P 1$, each datum $i$
    is taken $B \nu_i$ times on average, rounded up or down, and draws its noise from its
    row. The flow ends at the data as $\nu$ weighs them: fewer outliers, and less of what
    the source does not reach. A finite `rho0` also weighs the noise, and then training sees
    another source than sampling.

    With `weight_power` $k$ the loss of a pair is multiplied by $(B \nu_i)^{-k}$, limited to
    `max_weight`. With $k = 1$ all data weigh the same in the loss, and with $k > 1$ rare data
    weigh more. So does their noise, while samples start from the source as it is: where the
    paths of pairs do not cross, samples follow $\nu$ whatever the weights.

    **Arguments:**

    - `rho0`, `rho1`: how strongly the marginals of source and data are held, relative to
      the spread as `epsilon` is; `math.inf` prescribes a marginal. With both infinite this
      is `fk.EntropicCoupling`.
    - `epsilon`, `max_iterations`, `tolerance`: as in `fk.EntropicCoupling`.
    - `relative`: if `False`, `epsilon`, `rho0` and `rho1` are in the unit of $C$.
    - `weight_power`: the power $k$; 0 for no weights.
    - `max_weight`: the largest weight.

    **Raises:** an error for a diffuse plan, for NaN and for an iteration that ends too early,
    as `fk.EntropicCoupling` does.

    **Reference:** Chizat et al. (2016), arXiv 1607.05816; Eyring et al., Unbalancedness in
    Neural Monge Maps Improves Unpaired Domain Translation (2024), arXiv 2311.15100. Weights:
    Song et al., Reweighted Flow Matching via Unbalanced OT for Label-free Long-tailed
    Generation (2025), arXiv 2509.25713.
    """

    rho0: float = math.inf
    rho1: float = 2.0
    epsilon: float = 0.05
    weight_power: float = 0.0
    max_weight: float = 10.0
    max_iterations: int = 1000
    tolerance: float = 1e-3
    relative: bool = True

    def __init__(
        self,
        rho0: Number = math.inf,
        rho1: Number = 2.0,
        epsilon: Number = 0.05,
        *,
        weight_power: Number = 0.0,
        max_weight: Number = 10.0,
        max_iterations: int = 1000,
        tolerance: Number = 1e-3,
        relative: bool = True,
    ):
        _check_sinkhorn(epsilon, max_iterations, tolerance, relative)
        if not (rho0 > 0 and rho1 > 0):
            raise ValueError(
                "`rho0` and `rho1` must be positive, `math.inf` to prescribe a marginal; "
                f"got {rho0}, {rho1}."
            )
        if not weight_power >= 0 or not max_weight >= 1:
            raise ValueError(
                "`weight_power` must not be negative, and `max_weight` at least 1, the "
                f"weight of an average example; got {weight_power} and {max_weight}."
            )

        self.rho0 = float(rho0)
        self.rho1 = float(rho1)
        self.epsilon = float(epsilon)
        self.weight_power = float(weight_power)
        self.max_weight = float(max_weight)
        self.max_iterations = operator.index(max_iterations)
        self.tolerance = float(tolerance)
        self.relative = bool(relative)

    def plan(self, x0: FloatArray, x1: FloatArray) -> Plan:
        """The plan of a batch, to see how diffuse it is and how it weighs each example."""
        check_batches(x0, x1)
        return _solve(x0, x1, _options(self, (self.rho1, self.rho0)))

    def __call__(
        self, x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
    ) -> Pairing:
        del cond
        rkey, ckey = jr.split(key)
        fix = (
            "lower `epsilon`, or raise `rho0` and `rho1` if a few examples have all of the "
            "mass"
        )
        plan = self.plan(x0, x1)
        _check_convergence(plan, self)
        log_probs = _sharp(plan, fix)
        probs = jnp.sum(jnp.exp(log_probs), axis=1)

        rows = _systematic_draw(probs, rkey)
        source = jr.categorical(ckey, log_probs[rows], axis=1)
        if self.weight_power == 0:
            return Pairing(source, rows)

        num = probs.shape[0]
        # The limit also bounds the power of a row with hardly any mass.
        weights = (num * probs[rows]) ** -self.weight_power
        return Pairing(source, rows, jnp.minimum(weights, self.max_weight))


def _systematic_draw(probs: Float[Array, " batch"], key: PRNGKey) -> Array:
    """As many rows as there are, row `i` of them `B p_i` times, rounded up or down."""
    num = probs.shape[0]
    offset = jr.uniform(key, (), probs.dtype)
    # One place in each of B equal parts of [0, 1].
    places = (jnp.arange(num, dtype=probs.dtype) + offset) / num
    # On the right side, so that a row without mass is never drawn.
    rows = jnp.searchsorted(jnp.cumsum(probs), places, side="right")
    # The cumulative sum may end a little below 1.
    return jnp.minimum(rows, num - 1)


def _check_sinkhorn(
    epsilon: Number, max_iterations: int, tolerance: Number, relative: bool
) -> None:
    if relative:
        check_epsilon(epsilon, instead="fk.assignment")
    elif not 0 < epsilon < math.inf:
        raise ValueError(f"`epsilon` must be positive and finite, got {epsilon}.")
    if max_iterations < 1 or not tolerance > 0:
        raise ValueError(
            "`max_iterations` and `tolerance` must be positive; "
            f"got {max_iterations} and {tolerance}."
        )


class _Options(NamedTuple):
    """How a plan is made; its numbers are arrays, so that other values do not recompile."""

    epsilon: Array
    tolerance: Array
    rho: tuple[Array | float, Array | float]
    """The prices of rows and columns."""
    max_iterations: int
    relative: bool
    """Whether `epsilon` and `rho` are relative to the spread."""


def _options(
    coupling: EntropicCoupling | UnbalancedCoupling, rho: tuple[float, float]
) -> _Options:
    # Infinity stays a number: where a marginal is prescribed, the program is another one.
    rows, columns = (
        price if math.isinf(price) else jnp.asarray(price) for price in rho
    )
    return _Options(
        epsilon=jnp.asarray(coupling.epsilon),
        tolerance=jnp.asarray(coupling.tolerance),
        rho=(rows, columns),
        max_iterations=coupling.max_iterations,
        relative=coupling.relative,
    )


@eqx.filter_jit
def _solve(x0: FloatArray, x1: FloatArray, options: _Options) -> Plan:
    balanced = all(map(is_prescribed, options.rho))
    cost = squared_costs(x1, x0)
    num = cost.shape[0]
    spread = jnp.maximum(jnp.mean(cost), jnp.finfo(cost.dtype).tiny)
    if not balanced:
        # Moving one of the batches changes an unbalanced plan, so costs are taken in place.
        cost = jax.lax.stop_gradient(squared_distances(x1, x0))

    # In the unit of `epsilon` and `rho`.
    if options.relative:
        cost = cost / spread
        spread = jnp.ones_like(spread)
    epsilon = options.epsilon.astype(cost.dtype)
    everyone = jnp.ones(num, bool)
    f, g, change, iterations = sinkhorn(
        soft_minima(cost, everyone, everyone),
        (num, num),
        epsilon,
        jnp.maximum(epsilon, spread),
        tolerance=options.tolerance,
        max_iterations=options.max_iterations,
        rho=options.rho,
    )

    # Relative to the product of the weights, which is `1 / num**2` for every pair.
    log_plan = (f[:, None] + g[None, :] - cost) / epsilon - 2 * math.log(num)
    log_mass = logsumexp(log_plan)
    log_probs = log_plan - log_mass
    log_rows = logsumexp(log_probs, axis=1, keepdims=True)
    log_columns = logsumexp(log_probs, axis=0, keepdims=True)

    # Mutual information: 0 if data and noise are independent, log B for a permutation.
    information = jnp.sum(jnp.exp(log_probs) * (log_probs - log_rows - log_columns))
    marginal_error = jnp.max(jnp.abs(num * jnp.exp(log_rows) - 1))
    return Plan(
        log_probs=log_probs,
        mass=jnp.exp(log_mass),
        num_partners=num * jnp.exp(-information),
        error=marginal_error if balanced else change,
        iterations=iterations,
    )


def _check_convergence(
    plan: Plan, coupling: EntropicCoupling | UnbalancedCoupling
) -> None:
    """Raises for a known plan whose iteration ended long before it converged."""
    if is_traced(plan.error):
        return
    if plan.error > max(_LARGEST_ERROR, coupling.tolerance):
        raise ValueError(
            f"`max_iterations`={coupling.max_iterations} are too few for "
            f"`epsilon`={coupling.epsilon}: rows of the plan still err by up to "
            f"{float(plan.error):.2g} of their mass; raise `epsilon` or "
            "`max_iterations`."
        )


def _sharp(plan: Plan, fix: str) -> Float[Array, "batch batch"]:
    """The probabilities of a plan that is not diffuse."""
    num = plan.log_probs.shape[0]
    # No comparison with NaN is true, so it would pass for a sharp plan.
    no_plan = jnp.isnan(plan.num_partners)
    diffuse = plan.num_partners > _DIFFUSE * num
    too_diffuse = (
        "`epsilon` makes the plan diffuse: its effective number of partners is above "
        f"{_DIFFUSE} of the {num} examples of the batch, so it barely differs from "
        f"`fk.independent`; {fix}."
    )
    # Known values raise here; traced ones can only raise when the program runs.
    if is_traced(diffuse):
        return eqx.branched_error_if(
            plan.log_probs,
            no_plan | diffuse,
            no_plan.astype(jnp.int32),
            [too_diffuse, NO_ASSIGNMENT],
        )
    if no_plan:
        raise ValueError(NO_ASSIGNMENT)
    if diffuse:
        raise ValueError(too_diffuse)

    return plan.log_probs
