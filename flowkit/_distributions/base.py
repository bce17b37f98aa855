r"""What a distribution is.

`d.sample(shape, key=key)` draws one array of that shape; `d.log_prob(x)` is summed over
all entries. The trailing axes of a shape are the event of the distribution, its leading
axes are independent rows: a mixture in two dimensions draws a cloud `(n, 2)` of
independent points.
"""

import abc
import operator
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowkit._types import FloatArray, PRNGKey


class AbstractDistribution(eqx.Module):
    """A distribution over arrays.

    To add one: subclass and implement `sample` and `log_prob`. Accept any leading axes
    as independent rows, and store what can be trained unconstrained.
    """

    @abc.abstractmethod
    def sample(self, shape: Sequence[int], *, key: PRNGKey) -> Float[Array, "..."]:
        """One draw of the given shape."""

    @abc.abstractmethod
    def log_prob(self, x: FloatArray) -> Float[Array, ""]:
        """Log-density of `x` in nats, summed over all its entries."""

    def score(self, x: FloatArray) -> Float[Array, "..."]:
        r"""$\nabla_x \log p(x)$, the shape of `x`."""
        return jax.grad(self.log_prob)(jnp.asarray(x))


class AbstractExactDistribution(AbstractDistribution):
    r"""A distribution of data whose flow from a Gaussian source is known in closed form.

    Here $x_1$ is drawn from it, $x_0$ from the source, and $x = \alpha x_1 + \sigma x_0$.
    To add one: implement `posterior` and `marginal` as well; `fk.exact_flow` and
    `fk.marginal` then take it.
    """

    @abc.abstractmethod
    def posterior(
        self, source: AbstractDistribution
    ) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
        r"""A function `(x, alpha, sigma) -> (x0, x1)`, the means of $x_0$ and $x_1$ given $x$.

        What does not depend on `x` is computed here, once. The function is an
        `eqx.Module` if it holds arrays.
        """

    @abc.abstractmethod
    def marginal(
        self, alpha: Array, sigma: Array, source: AbstractDistribution
    ) -> AbstractDistribution:
        r"""The distribution of $\alpha x_1 + \sigma x_0$."""


def as_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape as a tuple of Python integers."""
    return tuple(operator.index(size) for size in shape)


def broadcast(value: Any, shape: tuple[int, ...]) -> Any:
    """An array in the given shape; a number stays one."""
    # Explicitly, for programs that forbid the promotion of ranks.
    return value if isinstance(value, float) else jnp.broadcast_to(value, shape)
