r"""Low-rank adapters: fine-tuning that moves every matrix, with few numbers."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from flowkit._types import PRNGKey
from flowkit.training._step import positive, trainable_mask


class Factors(eqx.Module):
    """Two matrices whose product is added to a third one."""

    left: Float[Array, "rows rank"]
    right: Float[Array, "rank columns"]


class LowRankAdapters(eqx.Module):
    r"""A model, and for each of its matrices $W$ a product that is added to it,

    $$W + B A, \qquad B \in \mathbb R^{m \times r}, \quad A \in \mathbb R^{r \times n}.$$

    ```python
    adapted = fk.training.LowRankAdapters(flow, rank=8, key=key)
    adapted_loss = lambda adapted, batch, key: loss(adapted.merged(), batch, key)
    trainable = lambda adapted: adapted.factors
    how = {"num_steps": 1000, "batch_size": 256, "trainable": trainable}
    result = fk.training.fit(adapted_loss, adapted, data, **how, key=key)
    flow = result.ema.merged()
    ```

    $B$ starts at zero, so at first the adapted model equals the model. The kernel of a
    convolution counts as a matrix from all its inputs to its output channels, which are
    the longer of its first and last axes. Biases, and matrices that have no more than
    `rank` rows or columns, have no factors.

    **Arguments:**

    - `model`: any pytree.
    - `rank`: $r$, the rank of what is added.
    - `select`: a function from the model to the parts that get factors; `None` is all.
    - `key`: the key of the initial $A$.

    **Raises:** `ValueError` if nothing gets factors.

    **Reference:** Hu et al., *LoRA: Low-rank adaptation of large language models*, 2021
    (arXiv 2106.09685).
    """

    model: PyTree[Any]
    factors: list[Factors | None]

    def __init__(
        self,
        model: PyTree[Any],
        *,
        rank: int,
        select: Callable[..., Any] | None = None,
        key: PRNGKey,
    ):
        rank = positive("rank", rank)
        chosen = jax.tree.leaves(trainable_mask(model, select, "select"))
        leaves = jax.tree.leaves(model)

        factors = []
        for number, (leaf, is_chosen) in enumerate(zip(leaves, chosen, strict=True)):
            rows, columns = _matrix_shape(leaf) if is_chosen else (0, 0)
            if min(rows, columns) <= rank:
                factors.append(None)
                continue
            right = jr.normal(jr.fold_in(key, number), (rank, columns), leaf.dtype)
            left = jnp.zeros((rows, rank), leaf.dtype)
            factors.append(Factors(left, right / math.sqrt(columns)))
        if not any(factors):
            raise ValueError(
                f"`rank`={rank} leaves no matrix of the model with more rows and columns; "
                "give a smaller one."
            )
        self.model = model
        self.factors = factors

    def merged(self) -> Any:
        """The model with the products added: a plain one, of the same structure."""
        leaves, treedef = jax.tree.flatten(self.model)
        pairs = zip(leaves, self.factors, strict=True)
        return jax.tree.unflatten(treedef, [_sum(*pair) for pair in pairs])


def _matrix_shape(leaf: Any) -> tuple[int, int]:
    """Rows and columns of an array: a kernel has one of them for each output channel."""
    if leaf.ndim < 2 or leaf.size == 0:
        return 0, 0
    # Equinox has the output channels first, flowkit has them last.
    is_first = leaf.ndim == 2 or leaf.shape[0] > leaf.shape[-1]
    rows = leaf.shape[0] if is_first else math.prod(leaf.shape[:-1])
    return rows, leaf.size // rows


def _sum(leaf: Any, factors: Factors | None) -> Any:
    if factors is None:
        return leaf
    return leaf + jnp.reshape(factors.left @ factors.right, leaf.shape)
