r"""Means over a batch that is worked on block by block.

On a CPU the activations of a whole batch fall out of the cache, and on any device they
fill the memory. For the mean $L(\theta, z) = \tfrac1B \sum_i f(\theta, z_i)$ over $B$
examples the rule of forward mode

$$\dot L = \langle \nabla_\theta L, \dot\theta \rangle + \langle \nabla_z L, \dot z \rangle$$

needs the gradient alone. It is taken together with the value, one block after another,
so only the activations of one block ever exist. The rule is linear in the tangents, so
reverse mode is its transpose, and both modes can be nested.
"""

import functools as ft
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Float, PyTree

from flowkit._devices import is_within_device, num_shares, over_devices
from flowkit._types import sum_dtype


class AutomaticBlock(eqx.Module):
    """Chooses how many examples are worked on at a time: the default of every `block=`.

    The choice is made while the computation is traced. On a CPU a block is the largest
    part of the batch for which the results of all matrix products, in the error that is
    averaged, fit into `cache_bytes`, together with the shifted views of the largest
    `fk.nn.Conv`. A block is larger than that if its products take fewer than
    `flops_per_byte` operations per byte of the weights, since every block reads all
    weights and adds up their gradients. It is smaller if the results of all operations do
    not fit into `memory_bytes`. It always has at least four examples, so a batch of prime
    size is one block. The whole batch is also one block:

    - where all of it fits,
    - on any other platform,
    - if the error has an XLA convolution, whose gradient takes several times as long
      inside a loop on a CPU (`fk.nn.Conv` does not, and counts as a product),
    - if JAX sees more than one device, outside of a training step that divides the batch
      over them, since it may be split all the same.

    **Arguments:**

    - `cache_bytes`: the limit in bytes. `benchmarks/blocks.py` compares the default with
      fixed sizes.
    - `flops_per_byte`: how many operations justify another pass over the weights.
    - `memory_bytes`: the limit in bytes for the results of all operations. About half of
      them exist at a time.
    """

    # Matrix products are what the compiler stores: it fuses most other operations into
    # them. Counting everything would let activations of many steps look larger than they
    # are.
    cache_bytes: int = eqx.field(converter=operator.index, default=9 * 2**20)
    flops_per_byte: int = eqx.field(converter=operator.index, default=100)

    # The C library of Linux keeps up to 32 MiB for the next step. It returns anything
    # larger, and a step would spend up to half of its time on faults of fresh pages.
    memory_bytes: int = eqx.field(converter=operator.index, default=64 * 2**20)

    def __check_init__(self):
        for name in ("cache_bytes", "flops_per_byte", "memory_bytes"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"`{name}` must be positive, got {value}.")


Block: TypeAlias = int | None | AutomaticBlock
"""How many examples at a time: a number, `None` for all of them, or a choice made while tracing."""


def mean_over_batch(
    fn: Callable,
    shared: PyTree[Any],
    examples: PyTree[Any],
    *,
    block: Block = AutomaticBlock(),
) -> tuple[Float[Array, ""], PyTree[Any]]:
    """The mean over a batch of the first result of `fn(shared, example) -> (value, aux)`.

    ```python
    def error(model, x):
        return jnp.sum((jax.vmap(model)(x) - x) ** 2), None

    def loss(model, batch, key):
        return fk.training.mean_over_batch(error, model, batch)[0]
    ```

    flowkit's losses are built on it. It processes the batch block by block. In training
    on several devices, each device processes its own part of the examples; the value and
    its gradients stay the same.

    **Arguments:**

    - `fn`: a function of one example. It closes over no traced array.
    - `shared`: what all examples share, such as the model.
    - `examples`: a pytree of arrays with equal leading axes.
    - `block`: how many examples at a time, on each device.

    **Returns:** the mean, and the `aux` of all examples, through which no gradient
    flows.

    **Raises:** `ValueError` if `block` does not divide the batch.
    """
    means, aux = _by_share(_mean, fn, shared, examples, block)
    return jnp.mean(means), jax.lax.stop_gradient(aux)


def map_over_batch(
    fn: Callable, shared: PyTree[Any], examples: PyTree[Any], *, block: Block
) -> PyTree[Any]:
    """`fn(shared, example)` for all examples, block by block; arguments as in `mean_over_batch`."""
    return _by_share(_map, fn, shared, examples, block)


def _by_share(
    work: Callable,
    fn: Callable,
    shared: PyTree[Any],
    examples: PyTree[Any],
    block: Block,
) -> PyTree[Any]:
    """`work(fn, shared, examples, block)`, by each device on its share of the examples."""
    num = batch_size(examples)
    check_block(block, num)
    shares = num_shares(num)
    if shares == 1:
        return work(fn, shared, examples, block)

    def of_share(functions, examples):
        fn, shared = functions
        return work(fn, shared, examples, share_of_block(block, num // shares))

    return over_devices(of_share, (fn, shared), examples)


def _mean(
    fn: Callable, shared: PyTree[Any], examples: PyTree[Any], block: Block
) -> tuple[Float[Array, " 1"], PyTree[Any]]:
    """`mean_over_batch` on one device."""
    size = block_size(fn, shared, examples, block)
    if size == batch_size(examples):
        values, aux = _apply((fn, shared), examples)
        return jnp.mean(values, keepdims=True), aux

    mean, aux = _blocked_mean((fn, shared), examples, size=size)
    return mean[None], aux


def _map(
    fn: Callable, shared: PyTree[Any], examples: PyTree[Any], block: Block
) -> PyTree[Any]:
    """`map_over_batch` on one device."""
    size = block_size(fn, shared, examples, block)
    if size == batch_size(examples):
        return eqx.filter_vmap(ft.partial(fn, shared))(examples)
    return jax.lax.map(ft.partial(fn, shared), examples, batch_size=size)


def share_of_block(block: Block, num: int) -> Block:
    """The block for a part of `num` examples: the largest number that divides both."""
    if block is None or isinstance(block, AutomaticBlock):
        return block
    return math.gcd(block, num)


def check_block(block: Block, num: int) -> None:
    """Raises for blocks that do not divide the batch."""
    if block is None or isinstance(block, AutomaticBlock):
        return
    if block < 1 or num % block != 0:
        raise ValueError(
            f"`block` must be positive and divide the batch of {num}, got {block}."
        )


def batch_size(examples: PyTree[Any]) -> int:
    """The length of the leading axis of the arrays."""
    sizes = [leaf.shape[0] for leaf in jax.tree.leaves(examples) if eqx.is_array(leaf)]
    if not sizes:
        raise ValueError("`examples` has no arrays; give those of the batch.")
    return sizes[0]


def block_size(
    fn: Callable, shared: PyTree[Any], examples: PyTree[Any], block: Block
) -> int:
    """How many examples are worked on at a time, all of them if `block` is `None`."""
    num = batch_size(examples)
    check_block(block, num)
    if block is None:
        return num
    if not isinstance(block, AutomaticBlock):
        return operator.index(block)
    return _chosen_size(fn, shared, examples, block)


def _chosen_size(
    fn: Callable, shared: PyTree[Any], examples: PyTree[Any], block: AutomaticBlock
) -> int:
    num = batch_size(examples)
    # Tracing does not tell whether a batch is split over devices, and a loop over blocks
    # of a split batch would reduce the gradient in each of them.
    may_be_split = jax.device_count() > 1 and not is_within_device()
    if jax.default_backend() != "cpu" or may_be_split:
        return num

    example = jax.tree.map(_without_leading_axis, examples)
    jaxpr, _, _ = eqx.filter_make_jaxpr(fn)(shared, example)
    all_bytes = 0
    num_bytes = 0
    num_flops = 0
    views_bytes = 0
    for eqn, times, has_rule in _equations(jaxpr.jaxpr):
        name = eqn.primitive.name
        all_bytes += times * _output_bytes(eqn)
        if name == "conv_general_dilated":
            if not has_rule:
                return num
            # Views are made again for each product: those of one layer exist at a time.
            views_bytes = max(views_bytes, _views_bytes(eqn))
        if name in ("dot_general", "conv_general_dilated"):
            num_bytes += times * _output_bytes(eqn)
            num_flops += times * _flops(eqn)

    sizes = [size for size in range(1, num + 1) if num % size == 0]
    # Fewer would wait for each operation to begin: one takes up to twice as long.
    smallest = min((size for size in sizes if size >= 4), default=num)

    def at_most(num_bytes: int, limit: int) -> int:
        fitting = (size for size in sizes if size * num_bytes <= limit)
        return max(smallest, max(fitting, default=1))

    cached = at_most(num_bytes + views_bytes, block.cache_bytes)
    # Smaller blocks would wait for the weights and their gradients.
    least = block.flops_per_byte * _num_bytes(shared)
    worthwhile = (size for size in sizes if size * num_flops >= least)
    wanted = max(cached, min(worthwhile, default=num))
    return min(wanted, at_most(all_bytes, block.memory_bytes))


def _without_leading_axis(leaf: Any) -> Any:
    if not eqx.is_array(leaf):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def _equations(
    jaxpr: Any, times: int = 1, has_rule: bool = False
) -> Iterator[tuple[Any, int, bool]]:
    """The equations without inner ones that run on a CPU.

    Each comes with how often it runs, and with whether it has its own derivative rule.
    """
    for eqn in jaxpr.eqns:
        inner = list(_inner_jaxprs(eqn))
        if not inner:
            yield eqn, times, has_rule
        ruled = has_rule or eqn.primitive.name == "custom_jvp_call"
        for sub in inner:
            yield from _equations(sub, times * eqn.params.get("length", 1), ruled)


def _inner_jaxprs(eqn: Any) -> Iterator[Any]:
    params = dict(eqn.params)
    platforms = params.get("branches_platforms")
    if platforms is not None:
        # A branch of `jax.lax.platform_dependent`, whose default is `None` and last.
        runs = [names is None or "cpu" in names for names in platforms]
        params["branches"] = params["branches"][runs.index(True)]

    is_jaxpr = lambda value: isinstance(value, Jaxpr | ClosedJaxpr)
    for value in jax.tree.leaves(list(params.values()), is_leaf=is_jaxpr):
        if is_jaxpr(value):
            yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


def _num_bytes(model: PyTree[Any]) -> int:
    """The bytes of all weights."""
    weights = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in weights)


def _output_bytes(eqn: Any) -> int:
    return sum(var.aval.size * var.aval.dtype.itemsize for var in eqn.outvars)


def _views_bytes(eqn: Any) -> int:
    """The bytes of all shifted views of which a convolution is a matrix product."""
    kernel = eqn.invars[1].aval
    [out] = (var.aval for var in eqn.outvars)
    # Each output takes all taps and channels of its group, from any of the kernels.
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    out_size = kernel.shape[out_axis]
    taken = kernel.size // out_size * eqn.params["feature_group_count"]
    return out.size // out_size * taken * out.dtype.itemsize


def _flops(eqn: Any) -> int:
    """The operations of a matrix product or a convolution."""
    left, right = (var.aval for var in eqn.invars)
    [out] = (var.aval for var in eqn.outvars)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)
    # Each output is a product of all taps and channels of one of the kernels.
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    return 2 * out.size * right.size // right.shape[out_axis]


def _apply(
    shared: PyTree[Any], examples: PyTree[Any]
) -> tuple[Float[Array, " b"], PyTree[Any]]:
    fn, shared = shared
    return eqx.filter_vmap(ft.partial(fn, shared))(examples)


def _split(examples: PyTree[Any], size: int) -> PyTree[Any]:
    # Consecutive examples go to different blocks: a batch sharded over devices stays
    # sharded within each block, whereas a plain reshape to (blocks, size) would gather it
    # onto every device.
    def split(leaf):
        return jnp.swapaxes(jnp.reshape(leaf, (size, -1, *leaf.shape[1:])), 0, 1)

    return jax.tree.map(split, examples)


def _merge(blocks: PyTree[Any]) -> PyTree[Any]:
    def merge(leaf):
        return jnp.reshape(jnp.swapaxes(leaf, 0, 1), (-1, *leaf.shape[2:]))

    return jax.tree.map(merge, blocks)


@eqx.filter_custom_jvp
def _blocked_mean(shared, examples, *, size):
    def step(carry, block):
        return carry, _apply(shared, block)

    _, (values, aux) = jax.lax.scan(step, None, _split(examples, size))
    return jnp.mean(_merge(values)), _merge(aux)


@_blocked_mean.def_jvp
def _blocked_mean_jvp(primals, tangents, *, size):
    num = batch_size(primals[1])
    # A tangent is `None` where nothing is differentiated, such as frozen weights.
    moving, fixed = eqx.partition(primals, _is_moving(tangents))
    tangents, _ = eqx.partition(tangents, _is_moving(tangents))

    def share_of_mean(moving_block, fixed_block):
        shared, block = eqx.combine(moving_block, fixed_block)
        values, aux = _apply(shared, block)
        return jnp.sum(values.astype(sum_dtype(values.dtype))) / num, (
            values,
            aux,
        )

    def step(total, block):
        moving_block = (moving[0], block[0])
        fixed_block = (fixed[0], block[1])
        gradient = jax.grad(share_of_mean, has_aux=True)
        (of_shared, of_block), out = gradient(moving_block, fixed_block)
        # Hundreds of small terms would lose their digits in half precision.
        total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, of_shared)
        return total, (of_block, out)

    zeros = lambda leaf: jnp.zeros(leaf.shape, sum_dtype(leaf.dtype))
    start = jax.tree.map(zeros, moving[0])
    blocks = _split((moving[1], fixed[1]), size)
    of_shared, (of_blocks, (values, aux)) = jax.lax.scan(step, start, blocks)

    mean = jnp.mean(_merge(values))
    gradient = (of_shared, _merge(of_blocks))
    d_mean = _inner_product(gradient, tangents).astype(mean.dtype)
    return (mean, _merge(aux)), (d_mean, jax.tree.map(lambda _: None, aux))


def _is_moving(tangents: PyTree[Any]) -> PyTree[bool]:
    is_none = lambda leaf: leaf is None
    return jax.tree.map(lambda leaf: leaf is not None, tangents, is_leaf=is_none)


def _inner_product(gradient: PyTree[Any], tangents: PyTree[Any]) -> Float[Array, ""]:
    def product(a, b):
        wide = sum_dtype(a.dtype)
        return jnp.sum(jnp.real(a.astype(wide) * b.astype(wide)))

    products = jax.tree.leaves(jax.tree.map(product, gradient, tangents))
    return ft.reduce(operator.add, products)
