"""Means over a batch, computed in blocks with summed gradients.

On a CPU the activations of a whole batch fall out of the cache, and on any device they fill the memory. Here each
block's gradient is taken in the forward pass, right after its value, so only one block's activations ever exist.
"""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def mean_over_batch(
    fn: Callable, shared: PyTree[Any], examples: PyTree[Any], *, block: int | None
) -> tuple[Float[Array, ""], PyTree[Any]]:
    """The mean of the first result of `fn(shared, example) -> (value, aux)` over the leading axis of `examples`.

    **Arguments:**

    - `fn`: a function of one example, which closes over no traced array.
    - `shared`: what all examples share, such as the model.
    - `examples`: a pytree of arrays with equal leading axes.
    - `block`: how many examples at a time; `None` for all at once. Values and gradients are the same, reverse mode
      only.

    **Returns:** the mean, and the `aux` of all examples, through which no gradient flows.

    **Raises:** `ValueError` if `block` does not divide the batch.
    """
    num = batch_size(examples)
    check_block(block, num)
    if block is None or block == num:
        values, aux = _apply(fn, shared, examples)
        return jnp.mean(values), jax.lax.stop_gradient(aux)
    total, aux = _blocked_sum((shared, examples), fn, block)
    return total / num, jax.lax.stop_gradient(aux)


def check_block(block: int | None, num: int) -> None:
    """Raises for blocks that do not divide the batch."""
    if block is not None and (block < 1 or num % block != 0):
        raise ValueError(
            f"`block` must be positive and divide the batch of {num}, got {block}."
        )


def batch_size(examples: PyTree[Any]) -> int:
    """The length of the leading axis of the arrays."""
    return next(
        leaf.shape[0] for leaf in jax.tree.leaves(examples) if eqx.is_array(leaf)
    )


def _apply(
    fn: Callable, shared: PyTree[Any], examples: PyTree[Any]
) -> tuple[Float[Array, " b"], PyTree[Any]]:
    return eqx.filter_vmap(ft.partial(fn, shared))(examples)


def _split(examples: PyTree[Any], block: int) -> PyTree[Any]:
    # Consecutive examples go to different blocks: a batch sharded over devices stays sharded within each block,
    # whereas a plain reshape to (blocks, block) would gather it onto every device.
    split = lambda leaf: jnp.swapaxes(
        jnp.reshape(leaf, (block, -1, *leaf.shape[1:])), 0, 1
    )
    return jax.tree.map(split, examples)


def _merge(blocks: PyTree[Any]) -> PyTree[Any]:
    return jax.tree.map(
        lambda leaf: jnp.reshape(jnp.swapaxes(leaf, 0, 1), (-1, *leaf.shape[2:])),
        blocks,
    )


@eqx.filter_custom_vjp
def _blocked_sum(shared_and_examples, fn, block):
    shared, examples = shared_and_examples

    def step(carry, example):
        values, aux = _apply(fn, shared, example)
        return carry, (jnp.sum(values), aux)

    _, (sums, aux) = jax.lax.scan(step, None, _split(examples, block))
    return jnp.sum(sums), _merge(aux)


@_blocked_sum.def_fwd
def _blocked_sum_fwd(perturbed, shared_and_examples, fn, block):
    shared, examples = shared_and_examples
    diff_shared, fixed_shared = eqx.partition(shared, perturbed[0])
    diff_examples, fixed_examples = eqx.partition(examples, perturbed[1])

    def block_sum(diff, fixed_example):
        diff_shared, diff_example = diff
        example = eqx.combine(diff_example, fixed_example)
        values, aux = _apply(fn, eqx.combine(diff_shared, fixed_shared), example)
        return jnp.sum(values), aux

    def step(gradient, example):
        diff_example, fixed_example = example
        value_and_grad = jax.value_and_grad(block_sum, has_aux=True)
        (value, aux), (d_shared, d_example) = value_and_grad(
            (diff_shared, diff_example), fixed_example
        )
        return jax.tree.map(jnp.add, gradient, d_shared), (value, d_example, aux)

    start = jax.tree.map(jnp.zeros_like, diff_shared)
    blocks = _split(diff_examples, block), _split(fixed_examples, block)
    d_shared, (sums, d_examples, aux) = jax.lax.scan(step, start, blocks)
    return (jnp.sum(sums), _merge(aux)), (d_shared, _merge(d_examples))


@_blocked_sum.def_bwd
def _blocked_sum_bwd(residuals, gradient, perturbed, shared_and_examples, fn, block):
    del perturbed, shared_and_examples, fn, block
    d_total, _ = gradient
    return jax.tree.map(lambda leaf: d_total.astype(leaf.dtype) * leaf, residuals)
