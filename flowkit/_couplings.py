r"""How noise and data of one batch are paired.

A coupling is `(x0, x1, cond, *, key) -> Pairing`, and is given `mask=` if its signature has it. It returns indices of
the data, not arrays, so that labels, masks and any other pytree follow the data they belong to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from flowkit._checks import accepts
from flowkit._transport import solve_assignment, squared_costs
from flowkit._types import AnyArray, Cond, FloatArray, PRNGKey


class Pairing(NamedTuple):
    """Which source row goes with which data row; `None` stands for the identity."""

    source: Int[Array, " batch"] | None = None
    """Rows of the source."""
    data: Int[Array, " batch"] | None = None
    """Rows of `x1`, `cond` and `mask`."""
    weights: Float[Array, " batch"] | None = None
    """Factors of the loss per pair, 1 if `None`."""
    x0: Float[Array, "batch ..."] | None = None
    """The source in place of the one that was drawn, such as a cloud with its points in another order."""


Coupling: TypeAlias = Callable[..., Pairing]


class Chained(eqx.Module):
    """Couplings one after another, each applied to what the one before made of the batch.

    ```python
    coupling = fk.Chained((fk.Paired(batch.x0), fk.point_assignment))
    ```

    **Arguments:**

    - `couplings`: at least one; their weights are multiplied.
    """

    couplings: tuple[Coupling, ...]

    def __check_init__(self):
        if not self.couplings:
            raise ValueError("`couplings` must hold at least one coupling, for instance `fk.independent`.")

    def __call__(
        self,
        x0: FloatArray,
        x1: FloatArray,
        cond: Cond = None,
        *,
        mask: Bool[AnyArray, "batch n"] | None = None,
        key: PRNGKey,
    ) -> Pairing:
        rows, weights = jnp.arange(x1.shape[0]), None
        for coupling, ckey in zip(self.couplings, jr.split(key, len(self.couplings)), strict=True):
            data = x1, cond, mask, rows, weights
            x0, (x1, cond, mask, rows, weights), factors = pair(coupling, x0, data, key=ckey)
            weights = weights if factors is None else factors if weights is None else weights * factors
        return Pairing(data=rows, weights=weights, x0=jnp.asarray(x0))


def pair(coupling: Coupling, x0: FloatArray, data: tuple[Any, ...], *, key: PRNGKey) -> tuple[Array, Any, Array | None]:
    """The source and the data as a coupling pairs them, and the factors of the loss.

    **Arguments:** `data` is `(x1, cond, mask, ...)`; the rows of all of it are taken alike.
    """
    x1, cond, mask = data[:3]
    masks = {"mask": mask} if accepts(coupling, "mask") else {}
    pairing = coupling(x0, x1, cond, key=key, **masks)
    if pairing.x0 is not None:
        if pairing.x0.shape != x0.shape:
            raise ValueError(f"`coupling` returned a source of shape {pairing.x0.shape} in place of {x0.shape}.")
        x0 = pairing.x0.astype(x0.dtype)
    return _take(jnp.asarray(x0), pairing.source), _take(data, pairing.data), pairing.weights


def _take(tree: Any, rows: Array | None) -> Any:
    return tree if rows is None else jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], tree)


def independent(x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey) -> Pairing:
    """Pairs as they were drawn: the default."""
    del x0, x1, cond, key
    return Pairing()


def assignment(x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey) -> Pairing:
    r"""Exact optimal transport of the batch: the permutation $\pi$ minimising $\sum_i \|x_{0,\pi(i)} - x_{1,i}\|^2$.

    The source is permuted and the data keep their order, so nothing is dropped and every label stays with its
    example. Solved on the host (scipy), about 4 ms for 256 pairs and cubic in the batch.

    **Arguments:**

    - `x0`, `x1`: batches `(b, ...)` of equal shape.

    **Reference:** Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal
    Transport (2024), arXiv 2302.00482; Pooladian et al., Multisample Flow Matching (2023), arXiv 2304.14772.
    """
    del cond, key
    if x0.shape != x1.shape:
        raise ValueError(f"`x0` and `x1` must be batches of equal shape, got {x0.shape} and {x1.shape}.")
    failure = "`x0` or `x1` holds NaN or infinity, so there is no assignment; check the data."
    return Pairing(source=solve_assignment(squared_costs(x1, x0), failure=failure))
