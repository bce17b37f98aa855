r"""Stochastic sampling: the same marginals as the ODE, with noise on the way.

For every $w(t) \ge 0$ the equation

$$dx = \bigl(v(t, x) + w(t)\, \nabla \log p_t(x)\bigr)\, dt + \sqrt{2 w(t)}\, dW$$

has the marginals $p_t$ of the path. The score follows from the velocity where noise and data are
independent and the noise is normal, $x_0 \sim \mathcal N(\mu_0, s_0^2)$:

$$\nabla \log p_t(x) = -\frac{\mathbb E[x_0 \mid x_t = x] - \mu_0}{s_0^2\, \sigma_t}.$$

**References:** Albergo, Boffi, Vanden-Eijnden, Stochastic Interpolants, 2023 (arXiv 2303.08797);
Ma et al., SiT, 2024 (arXiv 2401.08740).
"""

from collections.abc import Sequence
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float

from flowkit._checks import as_size, check_instance
from flowkit._distributions import AbstractDistribution, Normal
from flowkit._flow import (
    bare,
    convert,
    Flow,
    Noise,
    Target,
    unstandardize,
    Velocity,
)
from flowkit._masks import zero_masked
from flowkit._solve.grid import Grid
from flowkit._solve.noise_scales import NoiseScale, SigmaNoise
from flowkit._solve.ode import end_state
from flowkit._solve.options import compiled, DEFAULT_ADJOINT
from flowkit._solve.sample import as_batch
from flowkit._solve.watch import raise_failures
from flowkit._types import (
    AnyArray,
    Cond,
    Mask,
    numbers_as_arrays,
    PRNGKey,
    VelocityField,
)


def sample_sde(
    flow: VelocityField,
    shape: Sequence[int],
    *,
    num_samples: int,
    key: PRNGKey,
    noise_scale: NoiseScale = SigmaNoise(),
    cond: Cond = None,
    cond_axes: int | None = 0,
    source: AbstractDistribution = Normal(),
    mask: Bool[AnyArray, "batch n"] | None = None,
    solver: dfx.AbstractSolver = dfx.Euler(),
    num_steps: int = 250,
    last_step: float | None = None,
    adjoint: dfx.AbstractAdjoint = DEFAULT_ADJOINT,
    throw: bool = True,
) -> Float[Array, "num_samples ..."]:
    r"""Draws samples by a stochastic differential equation with the marginals of the flow.

    The added noise corrects errors that the ODE would carry to its end, at the price of more
    steps. Use it where a trained flow is good but not exact, and `fk.sample` for everything else.
    It is valid for flows trained on independent pairs. After couplings or reflow, the velocity
    does not give the score, and samples are wrong; `fk.certify` detects this.

    ```python
    samples = fk.sample_sde(flow, (2,), num_samples=1000, key=key)
    samples = fk.sample_sde(flow, (2,), num_samples=1000, key=key, solver=diffrax.ShARK(),
                            num_steps=50, noise_scale=fk.solvers.SineNoise(0.5))
    ```

    Each sample has a Brownian path of its own. Memory does not grow with the steps. The last step
    is free of noise: it goes from `t = 1 - last_step` to the expected data, so that the pole of
    the score at `t = 1` is never met.

    **Arguments:**

    - `flow`: a `fk.Flow`, guided or not, or a `fk.Standardized` one.
    - `noise_scale`: $w(t)$, one of `fk.solvers.SigmaNoise`, `ConstantNoise`, `LinearNoise`,
        `SineNoise`, `DecreasingNoise`, `DiffusionNoise`, or a function `(path, t) -> ()`.
    - `source`: the normal distribution of the noise, the one of training.
    - `solver`: a Diffrax solver for additive noise: `diffrax.Euler()`, or, with two evaluations a
        step and a higher order, `diffrax.ShARK()` and `diffrax.SRA1()`.
    - `num_steps`: the number of steps, with the last one.
    - `last_step`: the length of the last step; by default that of all other steps, but
      no shorter than the final interval that the network was not trained on.
    - `shape`, `num_samples`, `key`, `cond`, `cond_axes`, `mask`, `adjoint`, `throw`: as in
        `fk.sample`.

    **Returns:** samples `(num_samples, *shape)`.

    **Raises:** `ValueError` where the score is not known: for a source that is not normal, and for
    velocity fields without a path.
    """
    _check_flow(flow)
    _check_source(source)
    _check_solver(solver)
    check_instance("noise_scale", noise_scale)
    num_steps = as_size("num_steps", num_steps)
    # A first and a last step, and one with noise.
    if num_steps < 3:
        raise ValueError(f"`num_steps` must be at least 3, got {num_steps}.")
    batch = as_batch(
        shape, num_samples, cond=cond, cond_axes=cond_axes, source=source, mask=mask
    )
    grid = _grid(flow, num_steps, last_step)
    method = _Method(numbers_as_arrays(noise_scale), solver, adjoint, throw)
    return _sample_sde(flow, batch, key, grid, method)


class _Method(eqx.Module):
    noise_scale: NoiseScale
    solver: dfx.AbstractSolver
    adjoint: dfx.AbstractAdjoint
    throw: bool = eqx.field(static=True)


def _grid(flow: Any, num_steps: int, last_step: float | None) -> np.ndarray:
    """The times of all steps but the last one."""
    # Rounding: 1 - 0.999 is above 0.001.
    least = round(1 - bare(flow).t_end, 12)
    last_step = max(1 / num_steps, least) if last_step is None else float(last_step)
    if not least <= last_step < 1 or last_step == 0:
        limit = f"at least {least:g}" if least > 0 else "above 0"
        raise ValueError(f"`last_step` must be {limit} and below 1, got {last_step}.")
    return np.linspace(0, 1 - last_step, num_steps)


@compiled
def _sample_sde(flow, batch, key, grid, method):
    units = flow
    flow = eqx.nn.inference_mode(bare(flow))
    start_key, path_key = jr.split(key)
    starts = batch.starts(start_key)
    grid = jnp.asarray(grid, starts.dtype)

    def one(x, key, cond, mask):
        x = zero_masked(x, mask)
        drift = _Drift(flow, batch.source, method.noise_scale, mask)
        times = grid
        if getattr(method.noise_scale, "singular_start", False):
            # The score is finite there, but the noise is not: a step of the ODE.
            x = x + (grid[1] - grid[0]) * drift.velocity(grid[0], x, cond)
            times = grid[1:]

        x = _solve(drift, x, cond, times, key, method)
        # The mean of the data given the point, which a step with noise would miss.
        value = flow.predict(Target(), grid[-1], x, cond, mask=mask)
        return zero_masked(unstandardize(units, value), mask)

    keys = jr.split(path_key, batch.num_samples)
    axes = (0, 0, batch.cond_axes, 0)
    return eqx.filter_vmap(one, in_axes=axes)(starts, keys, batch.cond, batch.mask)


def _solve(drift, x, cond, times, key, method):
    """The state at the last of the times."""
    path = _GridPath(key, x.shape, x.dtype, _levy_area(method.solver))
    num_steps = len(times) - 1
    solution = dfx.diffeqsolve(
        dfx.MultiTerm(dfx.ODETerm(drift), dfx.ControlTerm(drift.diffusion, path)),
        method.solver,
        times[0],
        times[-1],
        None,
        x,
        cond,
        stepsize_controller=Grid(times),
        adjoint=method.adjoint,
        max_steps=num_steps,
        throw=False,
    )
    if method.throw:
        solution = raise_failures(solution, num_steps)
    return end_state(solution)


class _GridPath(dfx.AbstractPath):
    """A Brownian path for steps that are taken once and never cut in two.

    It makes one draw per increment, where `diffrax.VirtualBrownianTree` makes a dozen. What
    Diffrax calls unsafe is safe on a grid: a step that is repeated for the gradient has the same
    times, which determine the key.
    """

    key: PRNGKey
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    levy_area: Any = eqx.field(static=True)

    @property
    def t0(self):
        return 0

    @property
    def t1(self):
        return 1

    def evaluate(
        self,
        t0: Any,
        t1: Any = None,
        left: bool = True,
        use_levy: bool = False,
    ) -> Any:
        shape = jax.ShapeDtypeStruct(self.shape, self.dtype)
        path = dfx.UnsafeBrownianPath(shape, self.key, self.levy_area)
        return path.evaluate(t0, t1, left, use_levy)


class _Drift(eqx.Module):
    """The velocity plus the score, and the strength of the noise that belongs to it."""

    flow: Flow
    source: Normal
    noise_scale: NoiseScale
    mask: Mask | None

    def __call__(self, t: Any, x: Array, cond: Cond = None) -> Float[Array, "..."]:
        velocity = self.velocity(t, x, cond)
        path = self.flow.path
        x0 = convert(velocity, t, x, path, source=Velocity(), target=Noise())
        score = -(x0 - self.source.mean) / (self.source.std**2 * path.sigma(t))
        return zero_masked(velocity + self.rate(t) * score, self.mask)

    def velocity(self, t: Any, x: Array, cond: Cond) -> Float[Array, "..."]:
        return self.flow(t, x, cond, mask=self.mask)

    def diffusion(
        self, t: Any, x: Array, cond: Cond = None
    ) -> lx.DiagonalLinearOperator:
        del cond
        std = jnp.full_like(x, jnp.sqrt(2 * self.rate(t)))
        return lx.DiagonalLinearOperator(zero_masked(std, self.mask))

    def rate(self, t: Any) -> Array:
        return self.noise_scale(self.flow.path, t)


def _levy_area(solver: dfx.AbstractSolver) -> Any:
    """What the solver has to know of the Brownian path besides its increments."""
    needed = getattr(solver, "minimal_levy_area", dfx.BrownianIncrement)
    areas = (dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea)
    return next(area for area in areas if issubclass(area, needed))


def _check_flow(flow: Any) -> None:
    if not isinstance(bare(flow), Flow):
        raise ValueError(
            "`flow` must be a `fk.Flow`, whose path gives the score of its velocity, got "
            f"{type(flow).__name__}."
        )


def _check_source(source: Any) -> None:
    if not isinstance(source, Normal):
        raise ValueError(
            "`source` must be a `fk.Normal`: for other noise the velocity does not give the "
            f"score; got {type(source).__name__}. Sample by `fk.sample`."
        )


def _check_solver(solver: Any) -> None:
    kinds = (dfx.AbstractItoSolver, dfx.AbstractStratonovichSolver)
    if not isinstance(solver, kinds):
        raise ValueError(
            f"`solver` {type(solver).__name__} does not solve stochastic equations; give "
            "`diffrax.Euler()` or `diffrax.ShARK()`."
        )
