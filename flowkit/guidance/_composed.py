r"""Several conditions at once, each with its own strength.

$v = v_\varnothing + \sum_i \omega_i (v_{c_i} - v_\varnothing)$.
"""

from collections.abc import Sequence
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._checks import check_rows
from flowkit._flow import Flow, Standardized
from flowkit._types import AnyArray, Cond, FloatArray, Mask, PRNGKey, Scalar
from flowkit.guidance._classifier_free import check_head, null_of


def composed(
    flow: Flow | Standardized,
    scales: Sequence[Scalar] | Float[AnyArray, " k"],
    *,
    null: Cond = None,
) -> Flow | Standardized:
    r"""A flow whose samples fit several conditions, for samplers.

    $$v(t, x, c) = v(t, x, \varnothing)
        + \sum_i \omega_i \left(v(t, x, c_i) - v(t, x, \varnothing)\right)$$

    The condition of one example has a leading axis, one row for each scale. A negative scale
    leads away from its condition. With one row it is `fk.guided`. All conditions go through the
    network in one batch. As with `fk.guided`, samples follow no known distribution: the sum of
    scores of $p_t(x \mid c_i)$ is not the score of a product at any time but the last.

    ```python
    both = fk.guidance.composed(flow, (1.5, -0.5))     # more of the first, less of the second
    fk.sample(both, shape, num_samples=16, cond=pairs, key=key)     # pairs: (16, 2, ...)
    ```

    **Arguments:**

    - `flow`: a flow trained with conditions left out at times, see `fk.drop_condition`.
    - `scales`: $\omega_i$.
    - `null`: the condition that stands for none, as in `fk.guided`.

    **Raises:** `ValueError` for heads other than `fk.PointHead()`; at the first evaluation, for
    a condition without a row for each scale.

    **Reference:** Liu, Li, Du, Torralba, Tenenbaum, Compositional Visual Generation with
    Composable Diffusion Models, 2022 (arXiv 2206.01714).
    """
    if isinstance(flow, Standardized):
        # As in `guided`, the units stay outside.
        inner = composed(cast(Flow, flow.flow), scales, null=null)
        return eqx.tree_at(lambda flow: flow.flow, flow, inner)
    check_head("flow", flow)
    if not len(scales):
        raise ValueError("`scales` must hold a number for each condition.")
    network = _Composed(flow, jnp.asarray(scales, float), null)
    return Flow(network, flow.path, flow.prediction)


class _Composed(eqx.Module):
    flow: Flow
    scales: Float[Array, " k"]
    null: Any

    def __call__(
        self,
        t: Scalar,
        x: FloatArray,
        cond: Cond = None,
        mask: Mask | None = None,
        key: PRNGKey | None = None,
    ) -> Float[Array, "..."]:
        num = len(self.scales)
        if not jax.tree.leaves(cond):
            raise ValueError(
                f"`cond` is missing; a composed flow needs one with {num} rows."
            )
        check_rows("cond", cond, num, "scale")

        # All conditions, and none, go through the network in one batch.
        first = jax.tree.map(lambda rows: rows[0], cond)
        rows = jax.tree.map(
            lambda rows, none: jnp.concatenate([rows, none[None]]),
            cond,
            null_of(first, self.null),
        )

        def output(cond):
            return self.flow.output(t, x, cond, mask=mask, key=key)

        *conditional, unconditional = jax.vmap(output)(rows)
        result = unconditional
        for scale, of_one in zip(self.scales, conditional, strict=True):
            scale = scale.astype(of_one.dtype)
            result = result + scale * (of_one - unconditional)
        return result
