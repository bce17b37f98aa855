r"""A flow of standardized data, which takes and returns data in their own units.

$$x = m + s\, z, \qquad \log p(x) = \log p(z) - \sum \log s.$$

The flow itself, its noise and its trajectories live in the coordinates $z$: there tolerances,
initial weights and a standard normal source fit the data, whatever the units of $x$.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowkit._checks import check_data
from flowkit._types import (
    AnyArray,
    Cond,
    Constant,
    FloatArray,
    is_traced,
    Mask,
    Number,
    PRNGKey,
    Scalar,
    VelocityField,
)


class Standardized(eqx.Module):
    r"""A flow over standardized data: losses, samples and log-densities are in the data's units.

    ```python
    flow = fk.Standardized(fk.Flow(network), x1.mean(0), x1.std(0))
    loss = fk.flow_matching_loss(flow, x1, key=key)       # x1 as it is
    fk.sample(flow, (2,), num_samples=1000, key=key)      # in the units of x1
    fk.log_prob(flow, x1[0])                              # in nats per these units
    ```

    `fk.flow_matching_loss`, `fk.flow_matching_errors` and `fk.explained_velocity` standardize the
    data before they draw; `fk.sample`, `fk.sample_and_log_prob`, `fk.log_prob` and `fk.encode`
    convert at the data end. The noise end, the `source`, and the bare ODE of `fk.integrate` stay
    in standardized coordinates. Training leaves `mean` and `std` as they are.

    **Arguments:**

    - `flow`: a `fk.Flow` or any velocity field over standardized data.
    - `mean`, `std`: the shift and the scale of the data: numbers, or arrays that broadcast to the
        shape of one example, such as `(d,)`.

    **Raises:** `ValueError` for a `std` that is not positive and finite.
    """

    flow: VelocityField
    shift: Constant
    scale: Constant

    def __init__(
        self,
        flow: VelocityField,
        mean: Number | Float[AnyArray, "..."],
        std: Number | Float[AnyArray, "..."],
    ):
        if isinstance(flow, Standardized):
            raise ValueError("`flow` is a `fk.Standardized` already; give its `flow`.")
        if not is_traced(mean, std):
            _check_moments(mean, std)

        self.flow = flow
        self.shift = Constant(jnp.asarray(mean, float))
        self.scale = Constant(jnp.asarray(std, float))

    @classmethod
    def of(
        cls,
        flow: VelocityField,
        x1: Float[AnyArray, "batch ..."],
        *,
        mask: Bool[AnyArray, "batch n"] | None = None,
    ) -> "Standardized":
        """`flow` over `x1` with its mean and deviation per coordinate, the last axis.

        **Arguments:**

        - `flow`: as for the class.
        - `x1`: the data, `(batch, ...)`.
        - `mask`: `(batch, n)`, which points of each cloud are valid. The others do not count.

        **Raises:** `ValueError` for data that are not finite at valid points, and for a
        coordinate that does not vary.
        """
        check_data("x1", x1, mask)
        values = np.asarray(x1)
        if mask is not None:
            values = values[np.asarray(mask)]

        axes = tuple(range(values.ndim - 1))
        # In double precision, since NumPy sums half precision in half precision.
        mean = np.mean(values, axis=axes, dtype=float)
        std = np.std(values, axis=axes, dtype=float)
        # The mean of equal numbers is rounded, and then they have a deviation from it.
        varies = np.max(values, axis=axes) > np.min(values, axis=axes)
        return cls(flow, mean, np.where(varies, std, 0.0))

    def __call__(
        self,
        t: Scalar,
        x: FloatArray,
        cond: Cond = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        """The velocity of the standardized example."""
        keywords = {"mask": mask, "key": key}
        # A plain velocity field need not know masks and keys.
        given = {name: value for name, value in keywords.items() if value is not None}
        return self.flow(t, x, cond, **given)


def _check_moments(mean: Any, std: Any) -> None:
    if not np.all(np.isfinite(mean)):
        raise ValueError("`mean` must be finite.")
    if not (np.all(np.isfinite(std)) and np.all(np.asarray(std) > 0)):
        raise ValueError(
            f"`std` must be positive and finite, got {std}; a coordinate that does not vary "
            "needs no flow: leave it out, or give it the `std` 1."
        )


def check_bare(name: str, field: Any) -> None:
    """Raises for a `Standardized` where its units would be left out."""
    if isinstance(field, Standardized):
        raise ValueError(
            f"`{name}` must not be a `fk.Standardized`, since flow maps have no units: give its "
            "`flow` with standardized data, and convert the samples back yourself."
        )


def same_units(one: Standardized, other: Standardized, *, rtol: float = 0.0) -> bool:
    """Whether both have the same mean and deviation, as far as these are known."""
    units = [(each.shift, each.scale) for each in (one, other)]
    return is_traced(units) or bool(eqx.tree_equal(*units, rtol=rtol))


def bare(flow: VelocityField) -> Any:
    """The flow over standardized data."""
    return flow.flow if isinstance(flow, Standardized) else flow


def standardize(flow: VelocityField, x: FloatArray) -> FloatArray:
    """Data in the coordinates of the bare flow; unchanged for a flow without units."""
    if not isinstance(flow, Standardized):
        return x
    x = jnp.asarray(x)
    return (x - _like(flow.shift, x)) / _like(flow.scale, x)


def unstandardize(flow: VelocityField, z: Array) -> Array:
    """The inverse of `standardize`."""
    if not isinstance(flow, Standardized):
        return z
    return _like(flow.shift, z) + _like(flow.scale, z) * z


def log_scale(
    flow: VelocityField, x: FloatArray, mask: Mask | None
) -> Float[Array, ""]:
    r"""$\sum \log s$ over the valid entries of one example."""
    if not isinstance(flow, Standardized):
        return jnp.zeros((), x.dtype)

    logs = jnp.log(_like(flow.scale, x))
    if mask is None:
        return jnp.sum(logs)
    rows = jnp.reshape(mask, mask.shape + (1,) * (x.ndim - 1))
    return jnp.sum(jnp.where(rows, logs, 0))


def _like(constant: Constant, x: FloatArray) -> Array:
    # Broadcast by hand, for `jax_numpy_rank_promotion="raise"`.
    value = jax.lax.stop_gradient(constant.value).astype(x.dtype)
    try:
        return jnp.broadcast_to(value, x.shape)
    except ValueError as error:
        raise ValueError(
            f"`mean` and `std` of `fk.Standardized` have shape {value.shape}, which does not "
            f"broadcast to the data, of shape {x.shape}."
        ) from error
