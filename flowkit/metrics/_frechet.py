"""The Frechet distance of two sets in the space of some features."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowkit._checks import as_size
from flowkit._types import AnyArray, is_traced
from flowkit.metrics._gaussian import squared_w2
from flowkit.metrics._inputs import check_values, working_dtype


def frechet_distance(
    x: Float[AnyArray, "n ..."],
    y: Float[AnyArray, "m ..."],
    features: Callable[..., Any],
    *,
    block: int = 256,
) -> Float[Array, ""]:
    r"""The Frechet distance of two sets, from the moments of their features.

    $$|\mu_x - \mu_y|^2 + \mathrm{tr}\bigl(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}\bigr)$$

    with means $\mu$ and covariances $A$, $B$ of the features, which divide by $n - 1$. As
    is usual, this is the square of `gaussian_w2`. It is the FID only for the features of
    one particular network, so do not call it FID for features of your own. Compare values
    only if the features and the numbers of examples are the same.

    The value is biased: it is positive for two sets of one distribution, and grows as the
    sets get smaller. Give both sets the same size, and report the value together with its
    floor, the distance between two halves of the data:

    ```python
    floor = fk.metrics.frechet_distance(data[:5000], data[5000:10000], features)
    found = fk.metrics.frechet_distance(samples[:5000], data[5000:10000], features)
    ```

    A set needs more examples than there are features, or its covariance is singular. The
    value is then still defined, but is mostly bias.

    **Arguments:**

    - `x (n, ...)`, `y (m, ...)`: the two sets, at least two examples each.
    - `features`: `example -> (d,)`, for one example. It is vmapped and compiled here, so
      pass the same function, or a module, in every call.
    - `block`: how many examples are worked on at a time. Only their features are held in
      memory; moments are summed in float64.

    **Reference:** Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to
    a Local Nash Equilibrium* (2017), arXiv 1706.08500.
    """
    if is_traced(x, y):
        raise ValueError(
            "`x` and `y` must be known, since their moments are summed in float64 on the "
            "host: call `frechet_distance` outside of `jax.jit` and `jax.vmap`."
        )
    size = as_size("block", block)
    for name, examples in (("x", x), ("y", y)):
        check_values(name, examples)
        if len(examples) < 2:
            raise ValueError(
                f"`{name}` holds one example; a covariance needs at least two."
            )

    mean_x, cov_x = _moments(x, features, size)
    mean_y, cov_y = _moments(y, features, size)
    # Of means far from zero, float32 has too few digits for their difference.
    parts = (mean_x - mean_y, cov_x, cov_y)
    squared = squared_w2(*[jnp.asarray(part, float) for part in parts])
    return squared.astype(working_dtype(x))


def _moments(
    examples: Any, features: Callable[..., Any], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean `(d,)` and covariance `(d, d)` of the features, in float64."""
    # On the host, where a slice does not compile a program of its own.
    examples = np.asarray(examples)
    total = len(examples)
    size = min(size, total)

    count = 0
    mean = np.zeros(())
    scatter = np.zeros(())
    for start in range(0, total, size):
        # The last block is filled up with copies, so that all blocks have one shape.
        rows = np.minimum(np.arange(start, start + size), total - 1)
        values = np.asarray(_features(features, examples[rows]), np.float64)
        values = values[: total - start]
        _check_features(values)

        # Moments of blocks are joined around their means: sums of squares would cancel.
        block_mean = np.mean(values, axis=0)
        centered = values - block_mean
        shift = block_mean - mean
        joined = count + len(values)
        between = np.multiply.outer(shift, shift) * (count * len(values) / joined)
        scatter = scatter + centered.T @ centered + between
        mean = mean + shift * (len(values) / joined)
        count = joined

    return mean, scatter / (total - 1)


def _check_features(values: np.ndarray) -> None:
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(
            f"`features` gives shape {values.shape[1:]} for one example; a vector (d,) "
            "is needed."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            "`features` gives values that are not finite; check its inputs and its range."
        )


@eqx.filter_jit
def _features(features, examples):
    return jax.vmap(features)(examples)
