r"""How noise and data of one batch are paired.

A coupling is `(x0, x1, cond, *, key) -> Pairing`, and is given `mask=` if its signature
has it. It returns indices of the data, not arrays, so that labels, masks and any other
pytree follow the data they belong to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowkit._checks import check_call
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
    """A source that replaces the one that was drawn, such as a cloud with its points in
    another order."""


Coupling: TypeAlias = Callable[..., Pairing]

NO_ASSIGNMENT = (
    "`x0` or `x1` holds NaN or infinity, so there is no assignment; check the data."
)


def independent(
    x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
) -> Pairing:
    """Pairs as they were drawn: the default."""
    del x0, x1, cond, key
    return Pairing()


class ChainedCouplings(eqx.Module):
    """Couplings one after another, each applied to the batch that the last one returned.

    ```python
    coupling = fk.ChainedCouplings((fk.Paired(batch.x0), fk.point_assignment))
    ```

    **Arguments:**

    - `couplings`: at least one; their weights are multiplied. `fk.Paired` must come first,
      because its noise is in the order of the batch.
    """

    couplings: tuple[Coupling, ...]

    def __check_init__(self):
        if not self.couplings:
            raise ValueError(
                "`couplings` must hold at least one coupling, such as `fk.independent`."
            )
        if any(map(_holds_paired, self.couplings[1:])):
            raise ValueError(
                "`couplings` holds `fk.Paired` after another coupling, which may move the "
                "data away from their noise; put it first."
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

        keys = jr.split(key, len(self.couplings))
        # The row numbers and the weights are moved like any other data.
        rows = jnp.arange(x1.shape[0])
        weights = None
        moved = False

        for coupling, ckey in zip(self.couplings, keys, strict=True):
            data = (x1, cond, mask, rows, weights)
            x0, data, factors = pair(coupling, x0, data, key=ckey)
            # The same object if no rows were taken: a question about the program, not
            # about values, so it has an answer under tracing too.
            moved = moved or data[3] is not rows
            x1, cond, mask, rows, weights = data
            weights = _product(weights, factors)

        return Pairing(
            data=rows if moved else None, weights=weights, x0=jnp.asarray(x0)
        )


def _holds_paired(coupling: Coupling) -> bool:
    if isinstance(coupling, ChainedCouplings):
        return any(map(_holds_paired, coupling.couplings))
    return isinstance(coupling, Paired)


def _product(a: Array | None, b: Array | None) -> Array | None:
    """The product of two lists of weights; `None` stands for ones."""
    if a is None:
        return b
    if b is None:
        return a
    return a * b


class Paired(eqx.Module):
    r"""Noise that was paired with the data before, mixed with fresh noise.

    $$x_0 = \sqrt{1 - \beta}\, x_0^{\mathrm{paired}} + \sqrt{\beta}\, x_0^{\mathrm{fresh}}$$

    The fresh noise is the noise that the loss draws. Both are standard normal and
    independent, so their mixture is too, for every $\beta$: 0 keeps the pairs as they are,
    1 gives independent ones. In between, the field near $t = 0$ is easier to learn than
    that of the pairs alone, and paths are straighter than those of independent noise.

    ```python
    coupling = fk.Paired(batch.x0, beta=0.2)
    loss = fk.flow_matching_loss(flow, batch.points, key=key, coupling=coupling)
    ```

    The pairs are held in the order of the batch. In `fk.ChainedCouplings` this must come
    first: after a coupling that moves the data, it would give them the wrong noise.

    **Arguments:**

    - `x0`: the paired noise, the shape of the data, from `fk.superset_pairs` or elsewhere.
    - `beta`: the fraction of the variance that is fresh, in [0, 1].

    **Reference:** Hui et al., Not-So-Optimal Transport Flows for 3D Point Cloud Generation
    (2025), arXiv 2502.12456.
    """

    x0: Float[Array, "batch ..."]
    beta: float | Array = 0.0

    def __init__(
        self, x0: Float[AnyArray, "batch ..."], beta: Number | Float[Array, ""] = 0.0
    ):
        if not is_traced(beta) and not 0 <= beta <= 1:
            raise ValueError(
                "`beta` must be in [0, 1], the fraction of the variance that is fresh; "
                f"got {beta}."
            )
        self.x0 = jnp.asarray(x0)
        # A Python number stays static, so that `beta=0` is known while tracing.
        self.beta = float(beta) if isinstance(beta, Number) else beta

    def __call__(
        self, x0: FloatArray, x1: FloatArray, cond: Cond = None, *, key: PRNGKey
    ) -> Pairing:
        del cond, key
        if self.x0.shape != x1.shape:
            raise ValueError(
                f"`x0` of the pairs must have the shape {x1.shape} of the data, "
                f"got {self.x0.shape}."
            )

        paired = self.x0.astype(x0.dtype)
        if isinstance(self.beta, float) and self.beta == 0:
            # Then nothing reads the fresh noise, and the compiler does not even draw it.
            return Pairing(x0=paired)

        beta = jnp.asarray(self.beta, x0.dtype)
        return Pairing(x0=jnp.sqrt(1 - beta) * paired + jnp.sqrt(beta) * x0)


def pair(
    coupling: Coupling, x0: FloatArray, data: tuple[Any, ...], *, key: PRNGKey
) -> tuple[Array, tuple[Any, ...], Array | None]:
    """Source and data as a coupling pairs them, and the factors of the loss.

    **Arguments:**

    - `data`: `(x1, cond, mask, ...)`. Every array in it has one row per example, and the
      same rows of all of them are taken.
    """
    pairing = call_coupling(coupling, x0, data, key=key)
    # A replaced source comes first: the rows of `source` are rows of it.
    source = jnp.asarray(x0) if pairing.x0 is None else pairing.x0.astype(x0.dtype)
    source = _take(source, pairing.source)
    return source, _take(data, pairing.data), pairing.weights


def reorder_source(
    coupling: Coupling,
    x0: FloatArray,
    data: tuple[Any, Any, Any],
    *,
    key: PRNGKey,
) -> Float[Array, "batch ..."]:
    """The source in the order that a coupling gives it.

    **Raises:** `ValueError` if the coupling does anything else: the data must keep their
    place.
    """
    x0, moved, weights = pair(coupling, x0, data, key=key)
    # `pair` returns the very same tuple if no rows were taken, which is known under
    # tracing.
    if moved is not data or weights is not None:
        raise ValueError(
            "`assignment` may only choose the order of the noise, but it moved the data or "
            "returned weights; use `fk.point_assignment` or "
            "`fk.EntropicPointAssignment()`."
        )

    return x0


def call_coupling(
    coupling: Coupling, x0: FloatArray, data: tuple[Any, ...], *, key: PRNGKey
) -> Pairing:
    """The pairing that a coupling returns, checked; the mask is passed if it takes one."""
    if isinstance(coupling, type):
        raise ValueError(
            f"`coupling` is the class {coupling.__name__}; give an instance of it, such as "
            f"`fk.{coupling.__name__}()`."
        )

    x1, cond, mask, *_ = data
    keywords = {"mask": mask} if has_parameter(coupling, "mask") else {}
    check_call("coupling", coupling, "x0, x1, cond", "key", *keywords)
    pairing = coupling(x0, x1, cond, key=key, **keywords)

    if not isinstance(pairing, Pairing):
        raise ValueError(
            "`coupling` must return a `fk.Pairing`, such as `fk.Pairing(source=rows)`, but "
            f"returned a {type(pairing).__name__}."
        )
    return _checked(pairing, x0.shape, trusted=_is_from_flowkit(coupling))


def _is_from_flowkit(coupling: Coupling) -> bool:
    # A function has a module of its own, an instance that of its class.
    return getattr(coupling, "__module__", "").startswith("flowkit.")


def _checked(pairing: Pairing, shape: tuple[int, ...], *, trusted: bool) -> Pairing:
    """The pairing with its shapes checked, and its rows too unless they are trusted."""
    if pairing.x0 is not None and pairing.x0.shape != shape:
        raise ValueError(
            f"`coupling` returned a source of shape {pairing.x0.shape}, which must be "
            f"{shape}."
        )

    num = shape[0]
    for name in ("source", "data", "weights"):
        value = getattr(pairing, name)
        if value is not None and jnp.shape(value) != (num,):
            raise ValueError(
                f"`coupling` returned `{name}` of shape {jnp.shape(value)}, which must be "
                f"{(num,)}, one entry per example."
            )

    # The check below costs time at every step, and these rows are in range by
    # construction. A chain is trusted too, because each of its parts has come through
    # here.
    if trusted:
        return pairing

    # JAX clips indices that are out of range, so a wrong one would train on wrong pairs.
    return pairing._replace(
        source=_rows_in_range("source", pairing.source, num),
        data=_rows_in_range("data", pairing.data, num),
    )


def _rows_in_range(name: str, rows: Any, num: int) -> Array | None:
    if rows is None:
        return None
    message = f"`coupling` returned a `{name}` row outside 0 ... {num - 1}, the rows of the batch."
    if is_traced(rows):
        return eqx.error_if(rows, jnp.any((rows < 0) | (rows >= num)), message)
    if np.any((np.asarray(rows) < 0) | (np.asarray(rows) >= num)):
        raise ValueError(message)
    return jnp.asarray(rows)


def _take(tree: Any, rows: Array | None) -> Any:
    if rows is None:
        return tree
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], tree)


def check_batches(x0: FloatArray, x1: FloatArray) -> None:
    """Raises for batches between which there is no plan."""
    if x0.shape != x1.shape:
        raise ValueError(
            "`x0` and `x1` must be batches of equal shape, "
            f"got {x0.shape} and {x1.shape}."
        )
    if x1.shape[:1] in ((), (0,), (1,)):
        raise ValueError(
            f"`x1` has shape {x1.shape}, too small a batch for a plan: give at least two "
            "examples, or use `fk.independent`."
        )
