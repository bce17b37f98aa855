"""Samples of a model that are outside the support of the prior."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced
from flowkit.metrics._inputs import check_values


class Restricted(NamedTuple):
    """Samples within a support, `values (k, ...)`, and the fraction that they are of all."""

    values: Float[Array, "k ..."]
    acceptance_rate: float


def restrict_to_support(
    samples: Float[AnyArray, "n ..."], inside: Callable[[Any], Any]
) -> Restricted:
    r"""The samples within a support, and the fraction of samples that they are.

    A flow has a positive density everywhere, so some samples of a posterior are where the
    prior has none. Rejecting them gives samples of

    $$\frac{q(x)}{Z} \text{ within the support}, \qquad
    Z = \int_{\mathrm{support}} q(x)\, dx,$$

    and the acceptance rate estimates $Z$: subtract its logarithm from the log-density of the
    flow. A low rate is a finding, not a detail: the flow has not learned where the prior
    ends, and rejection only hides that.

    ```python
    inside = lambda theta: jnp.all(jnp.abs(theta) <= 1)
    values, rate = fk.metrics.restrict_to_support(samples, inside)
    ```

    **Arguments:**

    - `samples (n, ...)`.
    - `inside`: whether one sample lies in the support, `(...) -> ()`, a boolean; for a prior
        with a density, `lambda theta: prior.log_prob(theta) > -jnp.inf`.

    **Returns:** `Restricted(values, acceptance_rate)`, the values in their order.

    **Raises:** `ValueError` if no sample is inside, and within compiled programs, where the
    number of values is not known.
    """
    if is_traced(samples):
        raise ValueError(
            "`samples` is traced, so the number of those inside is not known; call this "
            "outside of `jax.jit` and `jax.vmap`."
        )
    check_values("samples", samples)

    samples = jnp.asarray(samples)
    keep = np.asarray(jax.vmap(inside)(samples))
    if keep.shape != samples.shape[:1] or keep.dtype != bool:
        raise ValueError(
            "`inside` must give one boolean for a sample, such as "
            f"`jnp.all(jnp.abs(x) <= 1)`; it gave {keep.dtype} of shape {keep.shape[1:]}."
        )
    if not keep.any():
        raise ValueError(
            f"`samples` has {len(keep)} samples, and none of them is `inside`; compare their "
            "units with those of the support."
        )
    return Restricted(samples[keep], float(np.mean(keep)))
