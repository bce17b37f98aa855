r"""Importance weights, in logarithms.

Samples of $q$ stand for a target $p$ with the weights $w_i \propto p(x_i) / q(x_i)$, where
neither density needs to be normalized.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowkit._types import AnyArray, is_traced
from flowkit.metrics._inputs import check_log_values, working_dtype


def normalized_log_weights(
    log_weights: Float[AnyArray, " n"],
) -> Float[Array, " n"]:
    r"""Importance weights that sum to one, in logarithms: $\log w_i - \log \sum_j w_j$.

    ```python
    values, log_q = fk.sample_and_log_prob(flow, (2,), num_samples=1000, key=key)
    log_weights = jax.vmap(log_target)(values) - log_q
    weights = jnp.exp(fk.metrics.normalized_log_weights(log_weights))
    mean = weights @ values  # of the target
    ```

    **Arguments:** `log_weights (n,)`, up to a constant. A weight of zero, such as that of a
    sample outside the support of the target, is `-inf`.

    **Raises:** `ValueError` if all weights are zero; if they are traced, the result is NaN.
    """
    _check(log_weights)
    return _normalized(log_weights)


def effective_sample_size(log_weights: Float[AnyArray, " n"]) -> Float[Array, ""]:
    r"""How many independent samples of the target weighted samples are worth.

    $$\frac{\bigl(\sum_i w_i\bigr)^2}{\sum_i w_i^2},$$

    from 1, if one sample has all the weight, to `n`, if all weights are equal. The error of
    a weighted mean is about that of this many samples of the target. It only takes into
    account regions that have samples: if a part of the target has none, the value stays
    high.

    **Arguments:** `log_weights (n,)`, as in `normalized_log_weights`.

    **Reference:** Kish, *Survey Sampling* (1965).
    """
    _check(log_weights)
    return _effective_sample_size(log_weights)


def _check(log_weights: AnyArray) -> None:
    check_log_values("log_weights", log_weights)
    if is_traced(log_weights):
        return
    if np.max(np.asarray(log_weights)) == -np.inf:
        raise ValueError(
            "`log_weights` are all `-inf`: no sample lies in the support of the target."
        )


@eqx.filter_jit
def _normalized(log_weights):
    log_weights = jnp.asarray(log_weights, working_dtype(log_weights))
    return jax.nn.log_softmax(log_weights)


@eqx.filter_jit
def _effective_sample_size(log_weights):
    # Twice the logarithm is the logarithm of the square.
    return jnp.exp(-jax.nn.logsumexp(2 * _normalized(log_weights)))
