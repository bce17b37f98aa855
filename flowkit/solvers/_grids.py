r"""Grids of time for a fixed number of steps, to be given as `diffrax.StepTo(times)`.

All run from 0 to `end`, which is `flow.t_end`: 1, or a little less for `fk.Target()` flows,
which jump to the data from there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowkit._checks import as_size


def shifted_grid(
    num_steps: int, shift: float, *, end: float = 1.0
) -> Float[Array, " num_steps_and_1"]:
    r"""$t_i = \kappa u_i / (1 + (\kappa - 1) u_i)$ for uniform $u_i = i / n$.

    **Arguments:**

    - `num_steps`: $n$.
    - `shift`: $\kappa$. Above 1 the steps are short near the data, below 1 near the noise. A
      shift of 3 in noise time, as in papers on images, is 1/3 here.
    - `end`: the last time.

    **Reference:** Esser et al., Scaling Rectified Flow Transformers, 2024 (arXiv 2403.03206).
    """
    if not shift > 0:
        raise ValueError(f"`shift` must be positive, got {shift}.")
    uniform = _uniform(num_steps)
    return _times(shift * uniform / (1 + (shift - 1) * uniform), end)


def power_grid(
    num_steps: int, power: float = 2.0, *, end: float = 1.0
) -> Float[Array, " num_steps_and_1"]:
    r"""$t_i = (i / n)^p$: short steps near the noise for $p > 1$; quadratic by default.

    **Arguments:** `num_steps`, $n$; `power`, $p$; `end`, the last time.
    """
    if not power > 0:
        raise ValueError(f"`power` must be positive, got {power}.")
    return _times(_uniform(num_steps) ** power, end)


def edm_grid(
    num_steps: int,
    rho: float = 7.0,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    end: float = 1.0,
) -> Float[Array, " num_steps_and_1"]:
    r"""The grid of EDM, for a linear path: $t_i = 1 / (1 + \sigma_i)$ with

    $$\sigma_i = \Bigl(\sigma_{\max}^{1/\rho} + \tfrac{i}{n-1}
    \bigl(\sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho}\bigr)\Bigr)^\rho, \qquad \sigma_n = 0.$$

    $\sigma$ is the ratio of noise to data, $(1 - t) / t$. The first time is 0.

    **Arguments:** `num_steps`, $n \ge 2$; `rho`, $\rho$; `sigma_min` and `sigma_max`; `end`, the
    last time.

    **Reference:** Karras et al., Elucidating the Design Space of Diffusion-Based Generative
    Models, 2022 (arXiv 2206.00364), equation 5.
    """
    if as_size("num_steps", num_steps) < 2:
        raise ValueError(f"`num_steps` must be at least 2, got {num_steps}.")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"`sigma_min` must be positive and below `sigma_max`, got {sigma_min} and "
            f"{sigma_max}."
        )
    roots = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps)
    times = 1 / (1 + np.append(roots**rho, 0))
    # The paper starts from noise of the greatest scale; a flow starts from noise alone.
    times[0] = 0
    return _times(times, end)


def _uniform(num_steps: int) -> np.ndarray:
    return np.linspace(0, 1, as_size("num_steps", num_steps) + 1)


def _times(times: np.ndarray, end: float) -> Array:
    if not 0 < end <= 1:
        raise ValueError(f"`end` must be in (0, 1], got {end}.")
    dtype = jax.dtypes.canonicalize_dtype(float)
    return jnp.asarray(end * times, dtype)
