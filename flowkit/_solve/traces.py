r"""The trace of a Jacobian $J$: exact, or estimated from products $J \epsilon$.

An estimator draws its probes once for an example and keeps them along the trajectory: the
velocity of the log-density stays smooth, and an unbiased trace gives an unbiased integral.
"""

import abc
import math
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowkit._types import PRNGKey


Derivative = Callable[[Array], Array]
"""The product with the Jacobian, of arrays with the shape of an example."""


class AbstractTrace(eqx.Module):
    """How the trace is computed.

    To add one: subclass, and implement both methods.
    """

    @abc.abstractmethod
    def draw(self, like: Array, *, key: PRNGKey) -> Any:
        """The probes of one example."""

    @abc.abstractmethod
    def estimates(
        self, derivative: Derivative, like: Array, probes: Any
    ) -> Float[Array, " estimates"]:
        """Values whose mean estimates the trace, as independent as they come."""


class ExactTrace(AbstractTrace):
    r"""$\sum_i e_i^\top J e_i$, at the cost of one derivative for each entry.

    **Arguments:** `block_size`, how many derivatives are taken at a time; memory grows with
    this number.
    """

    block_size: int = eqx.field(static=True, converter=operator.index, default=64)

    def __check_init__(self):
        _check_positive("block_size", self.block_size)

    def draw(self, like: Array, *, key: PRNGKey) -> None:
        del like, key

    def estimates(self, derivative, like, probes):
        del probes

        def entry(index):
            one_hot = jnp.zeros(like.size, like.dtype)
            one_hot = one_hot.at[index].set(1)
            column = derivative(one_hot.reshape(like.shape))
            return column.reshape(-1)[index]

        indices = jnp.arange(like.size)
        # In one block, which compiles faster than a loop.
        if like.size <= self.block_size:
            return jnp.sum(jax.vmap(entry)(indices))[None]
        return jnp.sum(jax.lax.map(entry, indices, batch_size=self.block_size))[None]


def rademacher(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
    r"""Random signs, the probes of least variance: $2 (\|S\|_F^2 - \sum_i S_{ii}^2)$, with $S$
    the symmetric part of $J$."""
    return jr.rademacher(key, shape, dtype)


def gaussian(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
    r"""Normal probes, with the variance $2 \|S\|_F^2$."""
    return jr.normal(key, shape, dtype)


def orthogonal(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
    r"""Orthogonal probes of length $\sqrt d$; with one per entry the trace is exact.

    Their errors cancel in part, so that the standard error is an upper bound.
    """
    num, *rest = shape
    size = math.prod(rest)
    if num > size:
        raise ValueError(
            f"`num_probes` must be at most {size}, the entries of an example, for orthogonal "
            f"probes, got {num}."
        )
    # The columns of a normal matrix have no preferred direction.
    columns, _ = jnp.linalg.qr(jr.normal(key, (size, num), dtype))
    return math.sqrt(size) * columns.T.reshape(shape)


class Hutchinson(AbstractTrace):
    r"""$\mathrm{mean}_k\, \epsilon_k^\top J \epsilon_k$ with random probes.

    **Arguments:**

    - `num_probes`: the number of probes, one derivative each.
    - `probes`: `fk.solvers.rademacher`, `gaussian` or `orthogonal`, or any `(key, shape, dtype)
        -> probes` of mean 0 and covariance 1.

    **Reference:** Hutchinson, A stochastic estimator of the trace of the influence matrix, 1990;
    Grathwohl et al., FFJORD, 2019 (arXiv 1810.01367).
    """

    num_probes: int = eqx.field(static=True, converter=operator.index, default=1)
    probes: Callable[..., Array] = eqx.field(static=True, default=rademacher)

    def __check_init__(self):
        _check_positive("num_probes", self.num_probes)

    def draw(self, like: Array, *, key: PRNGKey) -> Array:
        return self.probes(key, (self.num_probes, *like.shape), like.dtype)

    def estimates(self, derivative, like, probes):
        del like
        return _quadratic_forms(derivative, probes)


class HutchPlusPlus(AbstractTrace):
    r"""The exact trace on a sketch of the range of $J$, and Hutchinson's estimate of the rest.

    With $Q$ an orthonormal basis of $J S$ for random signs $S$, and $\Pi = I - Q Q^\top$,

    $$\mathrm{tr}(Q^\top J Q) + \mathrm{mean}_k\, (\Pi g_k)^\top J\, \Pi g_k.$$

    It pays off where few directions carry most of the trace, as in flows of images, and is
    exact where $J$ has at most `num_probes` of them.

    **Arguments:** `num_probes`, the number of probes of each of the three kinds, so that a trace
    costs three times as many derivatives.

    **Reference:** Meyer, Musco, Musco, Woodruff, Hutch++: Optimal Stochastic Trace Estimation, 2021
    (arXiv 2010.09649).
    """

    num_probes: int = eqx.field(static=True, converter=operator.index, default=4)

    def __check_init__(self):
        _check_positive("num_probes", self.num_probes)

    def draw(self, like: Array, *, key: PRNGKey) -> Array:
        if self.num_probes > like.size:
            raise ValueError(
                f"`num_probes` must be at most {like.size}, the entries of an example, got "
                f"{self.num_probes}."
            )
        return jr.rademacher(key, (2, self.num_probes, *like.shape), like.dtype)

    def estimates(self, derivative, like, probes):
        sketch, rest = probes
        shape = sketch.shape
        flat = lambda rows: rows.reshape(self.num_probes, like.size)
        images = flat(jax.vmap(derivative)(sketch))
        basis, _ = jnp.linalg.qr(images.T)
        # Any basis gives the trace, so none has to be differentiated; and QR has no
        # derivative where the images are dependent, as in a network that starts at zero.
        basis = jax.lax.stop_gradient(basis)
        # What the sketch has seen is not estimated again.
        rest = flat(rest) - (flat(rest) @ basis) @ basis.T

        on_sketch = _quadratic_forms(derivative, basis.T.reshape(shape))
        return jnp.sum(on_sketch) + _quadratic_forms(derivative, rest.reshape(shape))


def _quadratic_forms(derivative: Derivative, probes: Array) -> Float[Array, " probes"]:
    form = lambda probe: jnp.vdot(probe, derivative(probe))
    return jax.vmap(form)(probes)


def _check_positive(name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"`{name}` must be at least 1, got {number}.")
