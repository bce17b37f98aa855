"""The entry to NumPyro, which is imported when it is first used."""

from collections.abc import Sequence
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp

from flowkit._checks import as_shape
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import bare
from flowkit._solve import DEFAULT_ADJOINT, DEFAULT_SOLVER, resolve
from flowkit._solve.grid import checked
from flowkit._solve.ode import end_of
from flowkit._types import Cond, PRNGKey, VelocityField


def numpyro(
    flow: VelocityField,
    shape: Sequence[int],
    *,
    cond: Cond = None,
    batch_ndim: int = 0,
    key: PRNGKey | None = None,
    num_probes: int | None = None,
    source: AbstractDistribution = Normal(),
    solver: dfx.AbstractSolver = DEFAULT_SOLVER,
    num_steps: int | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
    adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
) -> Any:
    r"""A flow as a distribution of [NumPyro](https://num.pyro.ai): a prior, a guide, a proposal.

    ```python
    prior = fk.interop.numpyro(flow, (2,), solver=fk.RK4(), num_steps=10)

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    model = numpyro.handlers.reparam(model, config={"x": TransformReparam()})
    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=1000)
    ```

    It is a `TransformedDistribution`, the source moved by the ODE:
    $\log p(x_1) = \log p_0(x_0) - \log \lvert \det \partial x_1 / \partial x_0 \rvert$. With
    `TransformReparam`, NUTS moves the noise $x_0$, and no trace is taken; without it, NUTS moves
    $x_1$, and every gradient goes through `fk.log_prob`. Samples are differentiable, as guides
    need them to be.

    NUTS solves the ODE many times for every sample. A grid, such as ten steps of `fk.RK4()`, costs
    the same everywhere and keeps the density smooth; adaptive steps do neither. A solve that fails
    gives NaN, which NUTS counts as a divergent transition.

    **Arguments:**

    - `flow`: a `fk.Flow` or any velocity field.
    - `shape`: the shape of one event.
    - `cond`: the condition.
    - `batch_ndim`: the number of leading axes of every array in `cond` that form the batch
      shape of the distribution; by default `cond` is a single condition, and the batch shape is
      `()`.
    - `key`, `num_probes`: for Hutchinson's estimate of the trace, as in `fk.log_prob`. The probes
        are the same in every call, so that gradients fit values.
    - `source`: the distribution of the noise, the one of training.
    - `solver`, `num_steps`, `stepsize_controller`, `max_steps`, `adjoint`: as in `fk.integrate`.
        A `diffrax.StepTo` goes from noise to data; densities are taken backward along it.
        The default `adjoint` works for NUTS and SVI; for forward mode and second derivatives,
        such as those of `AutoLaplaceApproximation`, give `diffrax.DirectAdjoint()`.

    **Returns:** a `numpyro.distributions.TransformedDistribution`.

    **Raises:** `ValueError` if `cond` has no such leading axes, and for `num_probes` without a
    `key`; `ImportError` if NumPyro is not there.
    """
    try:
        from flowkit.interop._flow_distribution import flow_distribution, Solves
    except ImportError as error:
        raise ImportError(
            '`fk.interop.numpyro` needs NumPyro: `pip install "flowkit-jax[numpyro]"`.'
        ) from error

    if num_probes is not None and (num_probes < 1 or key is None):
        raise ValueError(
            f"`num_probes` must be at least 1, and needs a `key`; got {num_probes} and {key}."
        )

    # Checked now: otherwise errors would only appear in the middle of a model.
    how = resolve(solver, num_steps, stepsize_controller, max_steps, adjoint, False)
    options = {
        "solver": solver,
        "num_steps": num_steps,
        "stepsize_controller": _checked_grid(flow, stepsize_controller, how),
        "max_steps": max_steps,
        "adjoint": adjoint,
        "throw": False,
    }
    probes = {"key": key, "num_probes": num_probes}
    cond = jax.tree.map(jnp.asarray, cond)
    solves = Solves(
        flow, cond, source, probes, options, as_shape(shape), _batch(cond, batch_ndim)
    )
    return flow_distribution(solves)


def _checked_grid(flow: VelocityField, controller: Any, how: Any) -> Any:
    """The controller; a grid is checked, since a compiled model cannot look at its times."""
    if not isinstance(controller, dfx.StepTo):
        return controller
    return checked(how, 0, end_of(bare(flow))).controller


def _batch(cond: Cond, batch_ndim: int) -> tuple[int, ...]:
    """The leading axes that all arrays in the condition share."""
    if batch_ndim == 0:
        return ()
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(cond)]
    batches = {shape[:batch_ndim] for shape in shapes}
    if len(batches) != 1 or len(min(batches)) != batch_ndim:
        raise ValueError(
            f"`cond` must hold arrays that share {batch_ndim} leading axes (`batch_ndim`), "
            f"got shapes {shapes}."
        )
    return batches.pop()
