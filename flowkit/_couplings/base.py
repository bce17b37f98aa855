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

from flowkit._masks import has_parameter
from flowkit._types import AnyArray, Cond, FloatArray, is_traced, Number, PRNGKey


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

NO_ASSIGNMENT = (
    "`x0` or `x1` holds NaN or infinity, so there is no assignment; check the data."
)


class ChainedCouplings(eqx.Module):
    """Couplings one after another, each applied to what the one before made of the batch.

    ```python
    coupling = fk.ChainedCouplings((fk.Paired(batch.x0), fk.point_assignment))
    ```

    **Arguments:**

    - `couplings`: at least one; their weights are multiplied. `fk.Paired` must come first, as its noise is in the
      order of the batch.
    """

    couplings: tuple[Coupling, ...]

    def __check_init__(self):
        if not self.couplings:
            raise ValueError(
                "`couplings` must hold at least one coupling, for instance `fk.independent`."
            )
        if any(isinstance(coupling, Paired) for coupling in self.couplings[1:]):
            raise ValueError(
                "`couplings` holds `fk.Paired` behind another coupling, which may move the data away from their noise; "
                "put it first."
            )

    def __call__(
        self,
        x0: FloatArray,
        x1: FloatArray,
        cond: Cond = None,
        *,
        mask: Bool[AnyArray, "batch n"] | None = None,
        key: PRNGKey,
    ) -> Pairing:
        rows, weights, moved = jnp.arange(x1.shape[0]), None, False
        for coupling, ckey in zip(
            self.couplings, jr.split(key, len(self.couplings)), strict=True
        ):
            pairing = call_coupling(coupling, x0, (x1, cond, mask), key=ckey)
            x0, (x1, cond, mask, rows, weights) = _apply(
                pairing, x0, (x1, cond, mask, rows, weights)
            )
            factors, moved = pairing.weights, moved or pairing.data is not None
            weights = (
                weights
                if factors is None
                else factors
                if weights is None
                else weights * factors
            )
        return Pairing(
            data=rows if moved else None, weights=weights, x0=jnp.asarray(x0)
        )


class Paired(eqx.Module):
    r"""Noise that was paired with the data before, mixed with fresh noise.

    $$x_0 = \sqrt{1 - \beta}\, x_0^{\mathrm{paired}} + \sqrt{\beta}\, x_0^{\mathrm{fresh}}$$

    The fresh noise is what the loss draws. Both are standard normal and independent, so their mixture is too, for every
    $\beta$: at 0 the pairs as they are, at 1 independent ones. Between, the field near $t = 0$ is easier to learn than
    that of the pairs alone, and paths are straighter than those of independent noise.

    ```python
    loss = fk.flow_matching_loss(flow, batch.points, key=key, coupling=fk.Paired(batch.x0, beta=0.2))
    ```

    The pairs are held in the order of the batch. So in `fk.ChainedCouplings` this must come first: behind a coupling
    that moves the data it would give them the noise of others.

    **Arguments:**

    - `x0`: the paired noise, the shape of the data; from `fk.superset_pairs`, or of any other origin.
    - `beta`: the part of the variance that is fresh, in [0, 1].

    **Reference:** Hui et al., Not-So-Optimal Transport Flows for 3D Point Cloud Generation (2025), arXiv 2502.12456.
    """

    x0: Float[Array, "batch ..."]
    beta: float | Array = 0.0

    def __init__(
        self, x0: Float[AnyArray, "batch ..."], beta: Number | Float[Array, ""] = 0.0
    ):
        if not is_traced(beta) and not 0 <= beta <= 1:
            raise ValueError(
                f"`beta` must be in [0, 1], the part of the variance that is fresh; got {beta}."
            )
        self.x0 = jnp.asarray(x0)
        self.beta = float(beta) if isinstance(beta, Number) else beta

    def __call__(
        self, x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
    ) -> Pairing:
        del cond, key
        if self.x0.shape != x1.shape:
            raise ValueError(
                f"`x0` of the pairs must have the shape {x1.shape} of the data, got {self.x0.shape}."
            )
        if (
            isinstance(self.beta, float) and self.beta == 0
        ):  # then the fresh noise need not even be drawn
            return Pairing(x0=self.x0.astype(x0.dtype))
        beta = jnp.asarray(self.beta, x0.dtype)
        return Pairing(
            x0=jnp.sqrt(1 - beta) * self.x0.astype(x0.dtype) + jnp.sqrt(beta) * x0
        )


def pair(
    coupling: Coupling, x0: FloatArray, data: tuple[Any, ...], *, key: PRNGKey
) -> tuple[Array, Any, Array | None]:
    """The source and the data as a coupling pairs them, and the factors of the loss.

    **Arguments:** `data` is `(x1, cond, mask)`; the rows of all of it are taken alike.
    """
    pairing = call_coupling(coupling, x0, data, key=key)
    return *_apply(pairing, x0, data), pairing.weights


def reorder_source(
    coupling: Coupling,
    x0: FloatArray,
    x1: FloatArray,
    cond: Cond,
    mask: Any,
    *,
    key: PRNGKey,
) -> Float[Array, "batch ..."]:
    """The source as a coupling pairs it, which may do nothing else."""
    pairing = call_coupling(coupling, x0, (x1, cond, mask), key=key)
    if pairing.data is not None or pairing.weights is not None:
        raise ValueError(
            "`assignment` may only choose the order of the noise, but it moved the data or returned weights; "
            "use `fk.point_assignment` or `fk.EntropicPointAssignment()`."
        )
    return _apply(pairing, x0, ())[0]


def call_coupling(
    coupling: Coupling, x0: FloatArray, data: tuple[Any, Any, Any], *, key: PRNGKey
) -> Pairing:
    """What a coupling returns, given the mask if it takes one."""
    x1, cond, mask = data
    masks = {"mask": mask} if has_parameter(coupling, "mask") else {}
    pairing = coupling(x0, x1, cond, key=key, **masks)
    if pairing.x0 is not None and pairing.x0.shape != x0.shape:
        raise ValueError(
            f"`coupling` returned a source of shape {pairing.x0.shape} in place of {x0.shape}."
        )
    return pairing


def _apply(
    pairing: Pairing, x0: FloatArray, data: tuple[Any, ...]
) -> tuple[Array, Any]:
    """The source and the rows of the data that belong together."""
    source = jnp.asarray(x0) if pairing.x0 is None else pairing.x0.astype(x0.dtype)
    return _take(source, pairing.source), _take(data, pairing.data)


def _take(tree: Any, rows: Array | None) -> Any:
    return (
        tree
        if rows is None
        else jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], tree)
    )


def independent(
    x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
) -> Pairing:
    """Pairs as they were drawn: the default."""
    del x0, x1, cond, key
    return Pairing()


def check_batches(x0: FloatArray, x1: FloatArray) -> None:
    """Raises for batches that no plan can be made of."""
    if x0.shape != x1.shape:
        raise ValueError(
            f"`x0` and `x1` must be batches of equal shape, got {x0.shape} and {x1.shape}."
        )
    if x1.shape[:1] in ((), (0,), (1,)):
        raise ValueError(
            f"`x1` has shape {x1.shape}, too small a batch for a plan: give at least two examples, or use "
            "`fk.independent`."
        )
