"""Networks that compute in half precision with weights in single precision."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._masks import has_parameter
from flowkit._types import Mask, PRNGKey
from flowkit.nn._layers.arrays import cast


class HalfPrecision(eqx.Module):
    """Any network, computed in bfloat16, while its weights keep their own precision.

    ```python
    flow = fk.Flow(fk.nn.HalfPrecision(fk.nn.MLP(2, key=key)))
    ```

    Weights, points and conditions are rounded at each call, and the result has the type of
    the inputs. The gradient goes through the rounding, so weights, moments of the optimizer
    and averages stay in float32, and so do losses. Times are not rounded, and neither are
    scalars. The result is accurate to about three digits, and an adaptive solver would
    resolve the rounding errors. So sample on a fixed grid of steps, or from
    `flow.network.network`, which has the same weights without rounding.

    **Arguments:**

    - `network`: called `(t, x, cond)`, where `t` may be the two times of a `FlowMap`, with
      `mask=` and `key=` if its signature has them.
    - `dtype`: `jnp.bfloat16`, or `jnp.float16`, whose gradients underflow without a scaled
      loss.

    **Reference:** Micikevicius et al., *Mixed precision training*, 2018 (arXiv 1710.03740).
    """

    network: Any
    dtype: Any = eqx.field(static=True, default=jnp.bfloat16, converter=jnp.dtype)

    def __call__(
        self, t: Any, *inputs: Any, mask: Mask | None = None, key: PRNGKey | None = None
    ) -> Float[Array, "..."]:
        """What the network returns, in the type of its inputs."""
        if mask is not None and not has_parameter(self.network, "mask"):
            raise ValueError(
                "`mask` was given, but the network does not take one; add a `mask=None` "
                "argument to its `__call__`."
            )
        keywords = {}
        for name, value in (("mask", mask), ("key", key)):
            if has_parameter(self.network, name):
                keywords[name] = value

        leaves = jax.tree.leaves(inputs)
        given = [leaf for leaf in leaves if _is_rounded(leaf)]
        # Where nothing has axes, nothing was rounded.
        given = given or [leaf for leaf in leaves if eqx.is_inexact_array(leaf)]
        rounded = [jax.tree.map(self._round, one) for one in inputs]
        # The times of a flow map are close to each other: rounding loses their difference.
        value = cast(self.network, self.dtype)(t, *rounded, **keywords)
        return jnp.asarray(value, jnp.result_type(*given or [value]))

    def _round(self, leaf: Any) -> Any:
        return jnp.asarray(leaf, self.dtype) if _is_rounded(leaf) else leaf


def _is_rounded(leaf: Any) -> bool:
    """Whether this is a floating-point array that has axes."""
    return eqx.is_inexact_array(leaf) and jnp.ndim(leaf) > 0
