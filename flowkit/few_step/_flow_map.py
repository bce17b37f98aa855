r"""A flow map: the average velocity between two times, and the derivative that trains it.

Along a flow with velocity $v$, the average velocity from `s` to `t` is

$$u(x_s, s, t) = \frac{1}{t - s} \int_s^t v(x_\tau, \tau)\, d\tau, \qquad
  x_t = x_s + (t - s)\, u(x_s, s, t), \qquad u(x, s, s) = v(x, s).$$

The end of the jump does not depend on where along the trajectory it starts. Its derivative
with respect to `s` is therefore zero, which gives

$$u = v + (t - s)\, \frac{du}{ds}, \qquad
  \frac{du}{ds} = \partial_x u \cdot v + \partial_s u,$$

in both directions of time.

**Reference:** Geng et al., Mean Flows for One-step Generative Modeling, 2025 (arXiv
2505.13447); Boffi et al., Flow Map Matching, 2024 (arXiv 2406.07507).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_call, check_instance, check_time
from flowkit._flow import AbstractPath, as_time, Flow, LinearPath, network_keywords
from flowkit._masks import has_parameter, zero_masked
from flowkit._print import ShortDoc
from flowkit._types import Cond, FloatArray, is_traced, Mask, PRNGKey, Scalar, Times


def both_times(s: Scalar, t: Scalar) -> Float[Array, " 2"]:
    """What a network of two times sees: `(s, t)`."""
    return jnp.stack([s, t])


def expanded_interval(s: Scalar, t: Scalar) -> Float[Array, ""]:
    """The single time that a network of one time sees.

    `s` for jumps to the end, `2 - s` for the velocity at `s`; the two meet at 1. It serves
    the two slices `t = 1` and `t = s` of `facm_loss` and `consistency_loss` only; any other
    pair that is known is a `ValueError`.

    **Reference:** Peng et al., FACM, 2025 (arXiv 2507.03738).
    """
    if not is_traced(s, t) and t != s and t != 1:
        raise ValueError(
            "`t` must be `s` or 1 for a map with `times=expanded_interval`, "
            f"got s={s} and t={t}; a map with `both_times` has all pairs."
        )
    s = jnp.asarray(s)
    # Both branches give 1 at `s = t = 1`, where a jump to the end and the velocity
    # agree.
    return jnp.where(s == t, 2 - s, s)


class FlowMap(ShortDoc, eqx.Module):
    """A network read as an average velocity between two times.

    ```python
    network = fk.nn.MLP(2, time_embedding=fk.nn.RawTime(2), key=key)
    flow_map = fk.few_step.FlowMap(network)
    flow_map(0.0, 1.0, x0)                # the average velocity from noise to data
    x0 + flow_map(0.0, 1.0, x0)           # the data, in one step
    fk.few_step.velocity_of(flow_map)     # the flow, for any solver
    ```

    The same network serves one step, several steps, and the adaptive solver.

    **Arguments:**

    - `network`: called `(times, x, cond)`, and with `mask=` and `key=` if its signature has
      them; `times` is an array `(2,)`, of `s` and `t`. It returns the shape of `x`. Any
      network of flowkit works, with `fk.nn.RawTime(2)` or `fk.nn.TwoTimes(...)` as its
      time embedding. It must have a forward-mode derivative.
    - `path`: how noise and data are joined; `fk.LinearPath()` by default.
    - `times`: what the network sees of `(s, t)`: `both_times`, or `expanded_interval`.
    """

    network: Callable
    path: AbstractPath
    times: Callable[..., Times] = eqx.field(static=True)
    takes_mask: bool = eqx.field(static=True)
    takes_key: bool = eqx.field(static=True)

    def __init__(
        self,
        network: Callable,
        path: AbstractPath = LinearPath(),
        *,
        times: Callable[..., Times] = both_times,
    ):
        check_instance("network", network)
        self.network = network
        self.path = path
        self.times = times
        self.takes_mask = has_parameter(network, "mask")
        self.takes_key = has_parameter(network, "key")
        keywords = network_keywords(self, None, None)
        check_call("network", network, "times, x, cond", *keywords)

    def __call__(
        self,
        s: Scalar,
        t: Scalar,
        x: FloatArray,
        cond: Cond = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        """The average velocity from `(s, x)` to `t`, the shape of `x`; zero at masked points.

        **Raises:** `ValueError` for known times outside [0, 1], and for a network whose
        output has another shape.
        """
        x = jnp.asarray(x)
        times = self.times(_checked("s", s, x), _checked("t", t, x))

        keywords = network_keywords(self, mask, key)
        value = jnp.asarray(self.network(times, x, cond, **keywords), x.dtype)
        if value.shape != x.shape:
            raise ValueError(
                f"`network` must return the shape of `x`, {x.shape}, "
                f"but returned {value.shape}."
            )

        return value if mask is None else zero_masked(value, mask)


def _checked(name: str, t: Scalar, x: Array) -> Array:
    check_time(name, t)
    return as_time(t).astype(x.dtype)


def jump(
    flow_map: Callable,
    s: Scalar,
    t: Scalar,
    x: FloatArray,
    cond: Cond = None,
    mask: Mask | None = None,
) -> Float[Array, "..."]:
    """From `x` at `s` to time `t`, earlier or later: `x + (t - s) u(x, s, t)`."""
    x = jnp.asarray(x)
    keywords = {} if mask is None else {"mask": mask}
    average = flow_map(s, t, x, cond, **keywords)
    return x + jnp.asarray(t - jnp.asarray(s), x.dtype) * average


class _Instantaneous(eqx.Module):
    """The network of the velocity: the average over no time."""

    flow_map: FlowMap

    def __call__(self, t, x, cond=None, mask=None, key=None):
        return self.flow_map(t, t, x, cond, mask, key)


def velocity_of(flow_map: FlowMap) -> Flow:
    """The flow that the map follows, `v(t, x) = u(x, t, t)`.

    It is for `fk.sample`, `fk.encode`, `fk.log_prob` and any solver.
    """
    return Flow(_Instantaneous(flow_map), flow_map.path)


def total_derivative(
    flow_map: Callable,
    s: Scalar,
    t: Scalar,
    x: FloatArray,
    velocity: FloatArray,
    *args,
    **keywords,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""The average velocity and its derivative along a velocity, with `t` fixed.

    $$\frac{du}{ds} = \partial_x u \cdot v + \partial_s u$$

    One forward-mode pass, which costs about two evaluations. The derivative carries no
    gradient.

    **Arguments:**

    - `flow_map`: a function `(s, t, x, *args, **keywords)`.
    - `s`, `t`, `x`: the times and the place.
    - `velocity`: the velocity there.
    - `args`, `keywords`: the other arguments of the map.

    **Raises:** `ValueError` if the network has no forward-mode derivative, like kernels
    with a custom gradient, and for a velocity of another shape than `x`.
    """
    x = jnp.asarray(x)
    if velocity.shape != x.shape:
        raise ValueError(
            f"`velocity` must have the shape of `x`, {x.shape}, got {velocity.shape}."
        )
    s = as_time(s).astype(x.dtype)
    along = lambda s, x: flow_map(s, t, x, *args, **keywords)
    # Along the flow time advances by one while `x` moves by the velocity; `t` stays.
    tangents = (jnp.ones_like(s), jnp.asarray(velocity, x.dtype))

    try:
        value, derivative = jax.jvp(along, (s, x), tangents)
    except (TypeError, ValueError, NotImplementedError) as error:
        # A mistake in the network is raised again here, as it is. If the network works,
        # only its derivative can have failed.
        jax.eval_shape(along, s, x)
        raise ValueError(
            "`flow_map` holds a function without a forward-mode derivative (a `custom_vjp`, "
            "such as a fused attention kernel); build the network from plain operations, as "
            "`fk.nn.Attention` is."
        ) from error

    return value, jax.lax.stop_gradient(derivative)
