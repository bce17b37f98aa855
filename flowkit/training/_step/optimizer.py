"""What counts as an optimizer: anything with Optax's `init` and `update`."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree


@runtime_checkable
class Optimizer(Protocol):
    """Anything with Optax's `init(params)` and `update(updates, state, params)`.

    Every `optax.GradientTransformation` has them, and so does `optax.MultiSteps`.
    """

    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def update(self) -> Callable[..., Any]: ...


def check_optimizer(optimizer: Any) -> None:
    """Raises for a class, which has the methods of its instances."""
    if isinstance(optimizer, type):
        raise ValueError(
            f"`optimizer` is the class {optimizer.__qualname__}; pass an instance."
        )


def as_transformation(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer as a transformation that takes extra arguments such as `value`."""
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    elif not isinstance(optimizer, optax.GradientTransformation):
        optimizer = optax.GradientTransformation(optimizer.init, optimizer.update)
    return optax.with_extra_args_support(optimizer)


def update_counts(opt_state: PyTree[Any]) -> Int[Array, " accumulators"] | None:
    """How many updates each `optax.MultiSteps` has made; `None` if there is none.

    Without one every step is an update; with one a step may only accumulate a gradient.
    """

    def accumulates(node):
        return isinstance(node, optax.MultiStepsState)

    nodes = jax.tree.leaves(opt_state, is_leaf=accumulates)
    counts = [node.gradient_step for node in nodes if accumulates(node)]
    return jnp.stack(counts) if counts else None
