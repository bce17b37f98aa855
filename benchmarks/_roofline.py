"""What a program asks of a machine, and what the machine can do.

A program is counted by its matrix products: their operations, and the bytes of their
operands and results. Both are read from the program as JAX traces it, before a compiler
joins or drops anything. Of a program that keeps activations in the cache, only a part of
these bytes comes from memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import _report
import equinox as eqx
import jax
import jax.numpy as jnp

from flowkit import _blocks


TRIAD_SIZE = 2**25
"""Numbers in an array of the triad: 128 MiB, more than any cache."""


class Work(NamedTuple):
    """The matrix products of a program: operations, and bytes of operands and results."""

    flops: int
    num_bytes: int


def gradient_work(loss: Callable[..., Any], model: Any, *arguments: Any) -> Work:
    """The work of a loss and its gradient. A loss may return metrics as well."""

    def scalar(model, *arguments):
        value = loss(model, *arguments)
        return value[0] if isinstance(value, tuple) else value

    gradient = eqx.filter_value_and_grad(scalar)
    jaxpr, _, _ = eqx.filter_make_jaxpr(gradient)(model, *arguments)
    flops = 0
    num_bytes = 0
    for equation, times, _ in _blocks._equations(jaxpr.jaxpr):
        if equation.primitive.name != "dot_general":
            continue
        arrays = [var.aval for var in (*equation.invars, *equation.outvars)]
        flops += times * _blocks._flops(equation)
        num_bytes += times * sum(a.size * a.dtype.itemsize for a in arrays)
    return Work(flops, num_bytes)


def bandwidth_measure() -> Callable[[], float]:
    """Measures the bytes per second that a triad, `a <- b + s a`, reads and writes."""
    # The result takes the memory of `a`: no new pages, and nothing is read to be replaced.
    triad = jax.jit(lambda a, b: b + 0.5 * a, donate_argnums=0)
    b = jnp.ones(TRIAD_SIZE)
    arrays = [jnp.zeros(TRIAD_SIZE)]

    def call():
        arrays[0] = triad(arrays[0], b)
        return arrays[0]

    num_bytes = 3 * b.size * b.dtype.itemsize
    return lambda: num_bytes / _report.seconds_of_one(call, least=0.5)
