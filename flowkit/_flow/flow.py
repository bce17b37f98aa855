"""A flow: a network, the path along which it is trained, and what it predicts."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_call, check_instance, check_time
from flowkit._flow.heads import AbstractHead, PointHead
from flowkit._flow.paths import AbstractPath, as_time, clip_time, LinearPath
from flowkit._flow.predictions import AbstractPrediction, convert, CUT, Velocity
from flowkit._masks import has_parameter, zero_masked
from flowkit._print import ShortDoc
from flowkit._types import Cond, FloatArray, Mask, PRNGKey, Scalar


class Flow(ShortDoc, eqx.Module):
    """A network read as a velocity field, whatever it predicts.

    ```python
    flow = fk.Flow(network, path=fk.CosinePath(), prediction=fk.Noise())
    flow(t, x, cond)                         # the velocity
    flow.predict(fk.Target(), t, x, cond)    # any other prediction
    ```

    A flow is Diffrax's `(t, y, args) -> dy/dt`, for one example.

    **Arguments:**

    - `network`: called `(t, x, cond)`, and with `mask=` and `key=` if its signature has
      them; `t` is an array `()` of the type of `x`. It returns the shape of `x`, or what the
      `head` reads.
    - `path`: how noise and data are joined; `fk.LinearPath()` by default.
    - `prediction`: what the network's output means. `fk.Velocity()`, the default, is
      exact on the closed interval [0, 1]. The velocity of a `fk.Noise()` network is
      evaluated at `t = 1e-3` at the earliest and that of a `fk.Target()` network at `t
      = 1 - 1e-3` at the latest, where samplers finish with the jump to the data: an
      error e of such a network becomes an error of about e log(1000) in a sample,
      whatever the solver.
    - `head`: how the output is read: as the prediction, the default, or as a distribution of it,
      `fk.MixtureHead(k)`.

    **Raises:** `ValueError` for a network that does not take `(t, x, cond)` in this order.
    """

    network: Callable
    path: AbstractPath
    prediction: AbstractPrediction
    head: AbstractHead
    takes_mask: bool = eqx.field(static=True)
    takes_key: bool = eqx.field(static=True)

    def __init__(
        self,
        network: Callable,
        path: AbstractPath = LinearPath(),
        prediction: AbstractPrediction = Velocity(),
        *,
        head: AbstractHead = PointHead(),
    ):
        check_instance("network", network)
        self.network = network
        self.path = path
        self.prediction = prediction
        self.head = head
        self.takes_mask = has_parameter(network, "mask")
        self.takes_key = has_parameter(network, "key")
        keywords = network_keywords(self, None, None)
        check_call("network", network, "t, x, cond", *keywords)

    @property
    def t_start(self) -> float:
        """The first time at which a velocity is evaluated."""
        return CUT if self.prediction.singular_start else 0.0

    @property
    def t_end(self) -> float:
        """The last time at which a velocity is evaluated.

        If it is below 1, samplers jump to the data from here.
        """
        return min(self.path.t_end, 1 - CUT if self.prediction.singular_end else 1.0)

    def __call__(
        self,
        t: Scalar,
        x: FloatArray,
        cond: Cond = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        """The velocity at `(t, x)`, the shape of `x`; zero at masked points.

        **Arguments:**

        - `t`: the time, in [0, 1].
        - `x`: one example.
        - `cond`: what the network is conditioned on.
        - `mask`: `(n,)`, which points are valid.
        - `key`: for networks that draw random numbers, such as dropout.

        **Raises:** `ValueError` if `t` is known and outside [0, 1], if the network
        cannot take the mask, or if its output has another shape than `x`.
        """
        t = clip_time(_checked_time(t, x), self.t_start, self.t_end)
        return self.predict(Velocity(), t, x, cond, mask=mask, key=key)

    def predict(
        self,
        target: AbstractPrediction,
        t: Scalar,
        x: FloatArray,
        cond: Cond = None,
        *,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        """Any prediction at `(t, x)`, converted from the network's own by `fk.convert`.

        It is zero at masked points.

        `fk.Score()` is the score for a standard normal source only.
        """
        x = jnp.asarray(x)
        t = _checked_time(t, x)
        value = self.head.mean(self.output(t, x, cond, mask=mask, key=key), x)
        value = convert(value, t, x, self.path, source=self.prediction, target=target)
        return value if mask is None else zero_masked(value, mask)

    def output(
        self,
        t: Scalar,
        x: FloatArray,
        cond: Cond = None,
        *,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        """What the network returns at `(t, x)`, for the `head` to read; zero at masked points."""
        x = jnp.asarray(x)
        keywords = network_keywords(self, mask, key)
        value = jnp.asarray(
            self.network(_checked_time(t, x), x, cond, **keywords), x.dtype
        )
        return value if mask is None else zero_masked(value, mask)


def network_keywords(of: Any, mask: Mask | None, key: PRNGKey | None) -> dict:
    """The mask and the key for a network that takes them."""
    if mask is not None and not of.takes_mask:
        raise ValueError(
            "`mask` was given, but the network does not take one; add a `mask=None` "
            "argument to its `__call__`."
        )
    keywords = {"mask": mask} if of.takes_mask else {}
    return keywords | ({"key": key} if of.takes_key else {})


def _checked_time(t: Scalar, x: FloatArray) -> Float[Array, ""]:
    check_time("t", t)
    return as_time(t, x.dtype)
