r"""Maps between two times: one network of the average velocity, and its derivative along a trajectory.

With $\psi_{s \to t}$ the map of the flow $dx/dt = v(x, t)$, the average velocity is

$$u(x, s, t) = \frac{\psi_{s \to t}(x) - x}{t - s}, \qquad u(x, t, t) = v(x, t),$$

in either direction of time. Along a trajectory, with $t$ fixed, $x + (t - s) u$ does not change, so that

$$u = v + (t - s) \frac{du}{ds}, \qquad \frac{du}{ds} = \partial_x u \cdot v + \partial_s u,$$

and one forward-mode derivative, `total_derivative`, is all that the losses of this namespace need.

**Reference:** Geng et al., Mean Flows for One-step Generative Modeling (2025), arXiv 2505.13447.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import accepts
from flowkit._flow import checked_time, Flow, network_keywords, zero_masked
from flowkit._heads import PointHead
from flowkit._paths import AbstractPath, LinearPath
from flowkit._types import Cond, FloatArray, is_traced, Mask, PRNGKey, Scalar


def both_times(s: Float[Array, ""], t: Float[Array, ""]) -> Float[Array, " 2"]:
    """The pair `(s, t)`, for networks of two times: the default."""
    return jnp.stack([s, t])


def expanded_interval(s: Float[Array, ""], t: Float[Array, ""]) -> Float[Array, ""]:
    r"""One number for the pairs that FACM trains: `s` for a jump from `s` to 1, and `2 - s` for the velocity at `s`.

    Networks of one time, in [0, 2], serve then as they are. There is no number for any other pair, so the map jumps to
    `t = 1` only.

    **Reference:** Peng et al., FACM: Flow-Anchored Consistency Models (2025), arXiv 2507.03738.
    """
    if not is_traced(s, t) and t != s and t != 1:
        raise ValueError(
            f"`t` must be `s` or 1 for a map with `times=expanded_interval`, got s={s} and t={t}; `both_times` has all "
            "pairs."
        )
    return jnp.where(s == t, 2 - s, s)


class FlowMap(eqx.Module):
    """A network read as the average velocity between two times; the jump from `s` to `t` is `x + (t - s) u`.

    ```python
    network = fk.nn.MLP(2, time_embedding=fk.nn.TwoTimes(), key=key)
    flow_map = fk.few_step.FlowMap(network)
    flow_map(s, t, x, cond)                       # the average velocity
    fk.few_step.velocity_of(flow_map)             # the same network as a fk.Flow, for any solver
    ```

    **Arguments:**

    - `network`: called `(times, x, cond)`, and with `mask=` and `key=` if its signature has them; returns the shape of
      `x`. `times` is a vector `(2,)`, from `s` to `t`: the networks of `fk.nn` take it with
      `time_embedding=fk.nn.TwoTimes(...)`.
    - `path`: how noise and data are joined; `fk.LinearPath()` by default.
    - `times`: what the network is given for `(s, t)`: `both_times`, or `expanded_interval` for networks of one time.
    """

    network: Callable
    path: AbstractPath
    times: Callable = eqx.field(static=True)
    takes_mask: bool = eqx.field(static=True)
    takes_key: bool = eqx.field(static=True)

    def __init__(self, network: Callable, path: AbstractPath = LinearPath(), *, times: Callable = both_times):
        self.network = network
        self.path = path
        self.times = times
        self.takes_mask, self.takes_key = accepts(network, "mask"), accepts(network, "key")

    def __call__(
        self,
        s: Scalar,
        t: Scalar,
        x: FloatArray,
        cond: Cond = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        """The average velocity from `s` to `t` of the trajectory that is at `x` at time `s`; zero at masked points.

        **Arguments:**

        - `s`, `t`: times in [0, 1], in either order; with equal times it is the velocity.
        - `x`: one example.
        - `cond`: what the network is conditioned on.
        - `mask`: `(n,)`, which points are valid.
        - `key`: for networks that draw random numbers, such as dropout.

        **Raises:** `ValueError` if a time is known and outside [0, 1], if the network cannot take the mask, or if its
        output has another shape than `x`.
        """
        x = jnp.asarray(x)
        times = self.times(checked_time("s", s, x), checked_time("t", t, x))
        value = jnp.asarray(self.network(times, x, cond, **network_keywords(self, mask, key)), x.dtype)
        value = PointHead().mean(value, x)
        return value if mask is None else zero_masked(value, mask)


class _Diagonal(eqx.Module):
    """The average velocity over an interval of no length."""

    flow_map: FlowMap

    def __call__(
        self, t: Scalar, x: FloatArray, cond: Cond = None, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "..."]:
        return self.flow_map(t, t, x, cond, mask, key)


def velocity_of(flow_map: FlowMap) -> Flow:
    """The velocity $v(x, t) = u(x, t, t)$ of a flow map, as a `fk.Flow`: for solvers, likelihoods and diagnostics."""
    return Flow(_Diagonal(flow_map), flow_map.path)


def jump(
    flow_map: FlowMap,
    s: Scalar,
    t: Scalar,
    x: FloatArray,
    cond: Cond = None,
    *,
    mask: Mask | None = None,
    key: PRNGKey | None = None,
) -> Float[Array, "..."]:
    r"""The point at `t` of the trajectory that is at `x` at `s`: $x + (t - s)\, u(x, s, t)$, one evaluation.

    Arguments as in `FlowMap.__call__`.
    """
    u = flow_map(s, t, x, cond, mask, key)
    x = jnp.asarray(x)
    moved = x + (checked_time("t", t, x) - checked_time("s", s, x)) * u
    return moved if mask is None else zero_masked(moved, mask)


def total_derivative(
    flow_map: FlowMap,
    s: Scalar,
    t: Scalar,
    x: FloatArray,
    velocity: FloatArray,
    cond: Cond = None,
    *,
    mask: Mask | None = None,
    key: PRNGKey | None = None,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""The average velocity $u$, and $du/ds = \partial_x u \cdot v + \partial_s u$ with `t` fixed.

    One forward-mode derivative, about twice the cost of one evaluation. It knows nothing of what is trained: a loss
    stops the gradient of the second result.

    **Arguments:** as in `FlowMap.__call__`, and `velocity`, the shape of `x`: the direction $v$ in which `x` moves.

    **Raises:** `ValueError` for a network with an operation that has no forward-mode derivative, as fused attention
    kernels and functions with a `jax.custom_vjp`.
    """
    x = jnp.asarray(x)
    s, t = checked_time("s", s, x), checked_time("t", t, x)
    at = lambda s, x: flow_map(s, t, x, cond, mask, key)
    try:
        return jax.jvp(at, (s, x), (jnp.ones_like(s), jnp.asarray(velocity, x.dtype)))
    except Exception as error:
        if _lacks_forward_mode(error):
            raise ValueError(
                "`network` has no forward-mode derivative, which the losses of flow maps need; replace the operation "
                "with a `jax.custom_vjp`, such as a fused attention kernel, by one of plain JAX like `fk.nn.Attention`."
                f" JAX says: {error}"
            ) from error
        raise


_FORWARD_MODE_MESSAGES = ("forward-mode", "Differentiation rule for", "do not support JVP")


def _lacks_forward_mode(error: Any) -> bool:
    return isinstance(error, TypeError | ValueError | NotImplementedError | RuntimeError) and any(
        message in str(error) for message in _FORWARD_MODE_MESSAGES
    )
